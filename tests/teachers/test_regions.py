"""Overlapping regions as exclusive classes."""

import numpy as np
import torch

from edgeseg.teachers.regions import exclusive_log_probabilities, exclusive_probabilities


def reference(p):
    """p_k * prod_{j>k} (1 - p_j) and prod_j (1 - p_j), written out in float64 for [K, ...]."""
    rows = [np.prod(1 - p, axis=0)]
    for k in range(len(p)):
        rows.append(p[k] * np.prod(1 - p[k + 1 :], axis=0))
    return np.stack(rows)


def test_exclusive_classes_follow_the_formula_and_sum_to_one():
    claims = np.random.default_rng(0).random((3, 4, 5))
    expected = reference(claims)
    np.testing.assert_allclose(expected.sum(0), 1)
    np.testing.assert_allclose(exclusive_probabilities(claims.astype(np.float32)), expected, atol=1e-6)
    logits = torch.from_numpy(np.log(claims / (1 - claims)))[None]
    np.testing.assert_allclose(exclusive_log_probabilities(logits)[0].exp().numpy(), expected, atol=1e-9)


def test_the_last_sure_region_wins():
    claims = np.array([1.0, 1.0, 0.0])[:, None]
    assert exclusive_probabilities(claims)[:, 0].tolist() == [0, 0, 1, 0]


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[200.0], [-200.0], [200.0]]])
    out = exclusive_log_probabilities(logits)
    assert torch.isfinite(out).all()
    assert out.argmax(1).item() == 3
