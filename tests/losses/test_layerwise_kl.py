"""The layer-wise loss against a float64 reference written from the formula, its gradient, and its edges."""

import numpy as np
import pytest
import torch

from edgeseg.labels import IGNORE
from edgeseg.losses.layerwise_kl import (
    kl_divergence,
    labels_at,
    layer_weights,
    layerwise_kl,
    nnunet_hard_loss,
    teacher_at,
)

SIZES = ((16, 12), (8, 6), (4, 3), (2, 2))


def logits(seed: int, grad: bool = False) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, *s, generator=g).mul(3).requires_grad_(grad) for s in SIZES]


def labels(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 4, (2, *SIZES[0]), generator=torch.Generator().manual_seed(seed))


def reference_softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def reference_kl(teacher: np.ndarray, student: np.ndarray, t: float) -> float:
    p, q = reference_softmax(teacher.astype(np.float64) / t), reference_softmax(student.astype(np.float64) / t)
    return float((p * np.log(p / q)).sum(axis=1).mean())


def reference_hard(z: np.ndarray, y: np.ndarray) -> float:
    """Cross-entropy - mean over classes of the batch's soft Dice without background, smooth 1e-5, in float64."""
    p = reference_softmax(z.astype(np.float64))
    one_hot = np.eye(4)[y].transpose(0, 3, 1, 2)
    ce = -np.log((p * one_hot).sum(axis=1)).mean()
    inter, size, truth = ((a[:, 1:]).sum(axis=(0, 2, 3)) for a in (p * one_hot, p, one_hot))
    return float(ce - ((2 * inter + 1e-5) / (size + truth + 1e-5)).mean())


def reference_loss(student: list[np.ndarray], teacher: list[np.ndarray], labels: torch.Tensor, w: float, t: float,
                   t_squared: bool) -> float:
    """The whole formula in float64, four layers."""
    total = 0.0
    for i, weight in enumerate((8 / 15, 4 / 15, 2 / 15, 1 / 15)):
        hard = reference_hard(student[i], labels_at(labels, SIZES[i])[:, 0].numpy())
        soft = reference_kl(teacher[i], student[i], t) * (t * t if t_squared else 1)
        total += weight * ((1 - w) * hard + w * soft)
    return total


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("t", [1.0, 3.0])
@pytest.mark.parametrize("t_squared", [False, True])
def test_loss_equals_the_formula_in_float64(w, t, t_squared):
    student, teacher, y = logits(1), logits(2), labels()
    loss = layerwise_kl(student, teacher, y, nnunet_hard_loss(), w, t, t_squared=t_squared)
    expected = reference_loss([z.numpy() for z in student], [z.numpy() for z in teacher], y, w, t, t_squared)
    assert float(loss) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("w", "t", "t_squared"), [(0.0, 1.0, False), (0.4, 2.0, False), (0.4, 2.0, True),
                                                   (1.0, 1.0, False)])
def test_gradient_is_the_one_of_finite_differences(w, t, t_squared):
    """Central differences of the formula in float64; the loss itself works in float32 by choice (mixed precision)."""
    student, teacher, y = logits(1, grad=True), logits(2), labels()
    layerwise_kl(student, teacher, y, nnunet_hard_loss(), w, t, t_squared=t_squared).backward()
    exact, fixed = [z.detach().double().numpy() for z in student], [z.numpy() for z in teacher]
    rng, step = np.random.default_rng(0), 1e-4

    def slope(layer: int, direction: np.ndarray) -> float:
        sides = [reference_loss([*exact[:layer], exact[layer] + side * direction, *exact[layer + 1:]], fixed, y, w, t,
                                t_squared) for side in (step, -step)]
        return (sides[0] - sides[1]) / (2 * step)

    for layer, z in enumerate(exact):
        gradient = student[layer].grad.double().numpy()
        along = gradient / np.linalg.norm(gradient)  # the steepest direction sees the gradient's length,
        assert slope(layer, along) == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        for place in rng.choice(z.size, 12, replace=False):  # and single logits see its every part
            one = np.zeros(z.size)
            one[place] = 1
            found = slope(layer, one.reshape(z.shape))
            assert gradient.flat[place] == pytest.approx(found, rel=1e-3, abs=1e-4 * np.abs(gradient).max())


def test_equal_logits_have_no_divergence_and_no_gradient():
    z = logits(3, grad=True)
    loss = layerwise_kl(z, [o.detach() for o in z], None, nnunet_hard_loss(), 1.0, 2.0)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert max(float(o.grad.abs().max()) for o in z) < 1e-7


def test_without_distillation_no_teacher_is_needed_and_with_all_of_it_no_label():
    student = logits(1)
    assert torch.isfinite(layerwise_kl(student, None, labels(), nnunet_hard_loss(), 0.0, 1.0))
    assert torch.isfinite(layerwise_kl(student, logits(2), None, nnunet_hard_loss(), 1.0, 1.0))
    with pytest.raises(ValueError, match="labels"):
        layerwise_kl(student, logits(2), None, nnunet_hard_loss(), 0.5, 1.0)
    with pytest.raises(ValueError, match="teacher"):
        layerwise_kl(student, None, labels(), nnunet_hard_loss(), 0.5, 1.0)


def test_the_teacher_gets_no_gradient():
    teacher = logits(2, grad=True)
    layerwise_kl(logits(1, grad=True), teacher, None, nnunet_hard_loss(), 1.0, 1.0).backward()
    assert all(z.grad is None for z in teacher)


def test_divergence_does_not_grow_with_the_image():
    small = [torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)]
    large = [z.repeat(1, 1, 8, 8) for z in small]
    assert float(kl_divergence(*small, 2.0)) == pytest.approx(float(kl_divergence(*large, 2.0)), rel=1e-5)


def test_ignored_pixels_do_not_change_the_hard_loss():
    z, y = logits(1)[0], labels()
    y[:, :4] = IGNORE
    changed = z.clone()
    changed[:, :, :4] = torch.randn_like(changed[:, :, :4]) * 5
    hard = nnunet_hard_loss()
    before, after = (float(hard(x, labels_at(y, SIZES[0]))) for x in (z, changed))
    assert before == pytest.approx(after, abs=1e-6)


def test_both_readings_of_the_teachers_layers():
    outputs = logits(4)[:2]
    own = teacher_at(outputs, SIZES, own_layers=True)
    assert own[0] is outputs[0]
    assert own[1] is outputs[1]
    full = teacher_at(outputs, SIZES, own_layers=False)
    assert full[0] is outputs[0]
    pooled = torch.nn.functional.avg_pool2d(outputs[0].softmax(1), 2)
    np.testing.assert_allclose(full[1].exp().numpy(), pooled.numpy(), atol=1e-6)
    assert not torch.equal(own[1], full[1])
    assert [tuple(z.shape[-2:]) for z in own] == list(SIZES)


def test_four_layers_weigh_8_4_2_1_fifteenths():
    assert layer_weights(4) == pytest.approx((8 / 15, 4 / 15, 2 / 15, 1 / 15))
