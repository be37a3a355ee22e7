"""Contrastive and square losses of features: float64 references written as loops, gradients, sampling, edges."""

import numpy as np
import pytest
import torch

from edgeseg.labels import IGNORE
from edgeseg.losses.contrastive import (
    ANCHORS,
    at_border,
    classes_at,
    draw_pixels,
    feature_mse,
    instance_infonce,
    supervised_infonce,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vectors(n: int, seed: int, width: int = 5) -> torch.Tensor:
    return torch.randn(n, width, generator=seeded(seed), dtype=torch.float64).requires_grad_()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def reference_supervised(anchors: np.ndarray, keys: np.ndarray, classes: np.ndarray, tau: float) -> float:
    rows = []
    for a, own in zip(anchors, classes, strict=True):
        e = np.array([np.exp(cosine(a, k) / tau) for k in keys])
        against = e[classes != own].sum()
        rows.append(np.mean([-np.log(p / (p + against)) for p in e[classes == own]]))
    return float(np.mean(rows))


CLASSES = torch.tensor([0, 1, 1, 0, 2, 1, 0])


@pytest.mark.parametrize("tau", [0.1, 0.4])
def test_supervised_infonce_equals_the_formula_in_float64(tau):
    a, k = vectors(7, 1), vectors(7, 2)
    found = float(supervised_infonce(a, k, CLASSES, tau).detach())
    assert found == pytest.approx(reference_supervised(a.detach().numpy(), k.detach().numpy(), CLASSES.numpy(), tau))


def test_instance_infonce_equals_the_formula_in_float64():
    a, k = vectors(6, 1), vectors(6, 2)
    found, x, y = float(instance_infonce(a, k, 0.4).detach()), a.detach().numpy(), k.detach().numpy()
    e = np.array([[np.exp(cosine(p, q) / 0.4) for q in y] for p in x])
    assert found == pytest.approx(float(np.mean(-np.log(np.diag(e) / e.sum(axis=1)))))


def test_mse_equals_the_formula_in_float64_whatever_the_teachers_scale():
    s, t = torch.randn(2, 3, 4, 5, generator=seeded(1)).double(), torch.randn(2, 3, 4, 5, generator=seeded(2)).double()
    x, y = s.numpy(), t.numpy()
    normal = (y - y.mean(axis=(0, 2, 3), keepdims=True)) / (y.std(axis=(0, 2, 3), keepdims=True) + 1e-5)
    assert float(feature_mse(s, t)) == pytest.approx(float(((x - normal) ** 2).mean()))
    assert float(feature_mse(s, 700 * t + 30)) == pytest.approx(float(feature_mse(s, t)), rel=1e-4)


def test_gradients_of_both_sides_are_those_of_finite_differences():
    assert torch.autograd.gradcheck(lambda a, k: supervised_infonce(a, k, CLASSES, 0.2),
                                    (vectors(7, 1, 3), vectors(7, 2, 3)))
    assert torch.autograd.gradcheck(lambda a, k: instance_infonce(a, k, 0.2), (vectors(4, 1, 3), vectors(4, 2, 3)))
    student = torch.randn(2, 3, 2, 2, generator=seeded(1), dtype=torch.float64).requires_grad_()
    teacher = torch.randn(2, 3, 2, 2, generator=seeded(2), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: feature_mse(s, teacher), (student,))


def test_the_teachers_map_gets_no_gradient_from_mse():
    teacher = torch.randn(2, 3, 2, 2, requires_grad=True)
    feature_mse(torch.randn(2, 3, 2, 2, requires_grad=True), teacher).backward()
    assert teacher.grad is None


def test_labels_decide_what_is_positive_and_what_is_negative():
    directions = torch.eye(3, dtype=torch.float64)[CLASSES]  # one direction a class
    right = float(supervised_infonce(directions, directions, CLASSES, 0.1))
    assert right < 1e-3
    assert float(supervised_infonce(directions, directions, CLASSES.roll(1), 0.1)) > 4
    anchors = vectors(7, 1, width=3)
    before = supervised_infonce(anchors, directions, CLASSES, 0.1)
    before.backward()
    assert supervised_infonce(anchors.detach() - 0.01 * anchors.grad, directions, CLASSES, 0.1) < before.detach()


@pytest.mark.parametrize("n", [0, 1, 5])
def test_one_class_alone_has_no_negatives_and_so_no_loss_and_no_gradient(n):
    a, k = vectors(n, 1), vectors(n, 2)
    loss = supervised_infonce(a, k, torch.full((n,), 3), 0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert a.grad.abs().sum() == k.grad.abs().sum() == 0


def test_a_batch_of_one_image_has_no_loss_and_no_gradient():
    a, k = vectors(1, 1), vectors(1, 2)
    loss = instance_infonce(a, k, 0.1)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert a.grad.abs().sum() == k.grad.abs().sum() == 0


def test_extreme_similarities_stay_finite():
    a = vectors(7, 1)
    loss = supervised_infonce(1e6 * a, -1e-6 * a, CLASSES, 1e-3)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(a.grad).all()


# ---- sampling

def scene(side: int = 64) -> torch.Tensor:
    """Two images: background, a large and a small organ, and a rim that nobody labelled."""
    classes = torch.zeros(2, side, side, dtype=torch.uint8)
    classes[:, side // 4 : side // 2, side // 4 : 3 * side // 4] = 1
    classes[0, 3 * side // 4 : 3 * side // 4 + 6, 8:14] = 2
    classes[:, :3] = IGNORE
    return classes


def test_ignored_pixels_are_never_drawn_and_no_pixel_twice():
    for seed in range(20):
        classes = torch.randint(0, 3, (3, 7, 9), generator=seeded(seed), dtype=torch.uint8)
        classes[torch.rand(classes.shape, generator=seeded(seed)) < 0.5] = IGNORE
        pixels = draw_pixels(classes, seeded(seed))
        assert len(pixels) == int((classes != IGNORE).sum())  # fewer than the limit: all of them
        assert len(set(pixels.tolist())) == len(pixels)
        assert (classes.flatten()[pixels] != IGNORE).all()
    assert len(draw_pixels(torch.full((2, 5, 5), IGNORE), seeded())) == 0


@pytest.mark.parametrize("side", [32, 512])
def test_the_number_of_anchors_is_bounded_whatever_the_image_size(side):
    assert len(draw_pixels(scene(side), seeded())) == ANCHORS


def test_borders_and_small_structures_are_preferred():
    classes = scene()
    border = at_border(classes)
    pixels = draw_pixels(classes, seeded(), 64)
    assert float(border.float().mean()) < 0.06
    assert 0.35 < float(border.flatten()[pixels].float().mean()) < 0.65
    drawn = torch.bincount(classes.flatten()[pixels].long(), minlength=3)
    assert drawn.min() > 10  # of the small organ too, which has 36 of 7808 known pixels


def test_a_border_pixel_has_a_known_pixel_of_another_class_beside_it():
    classes = torch.randint(0, 2, (1, 9, 9), generator=seeded(1), dtype=torch.uint8)
    classes[0, :, :5] = 1
    classes[0, 0:3, 2:8] = IGNORE
    found, c = at_border(classes)[0], classes[0].tolist()
    for y in range(9):
        for x in range(9):
            near = {c[v][u] for v in range(max(0, y - 1), min(9, y + 2)) for u in range(max(0, x - 1), min(9, x + 2))}
            assert bool(found[y, x]) == (c[y][x] != IGNORE and len(near - {IGNORE}) > 1)


def test_the_draw_is_of_its_generator_alone():
    first, same, other = (draw_pixels(scene(), seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_a_cell_has_the_class_of_the_pixel_at_its_centre():
    labels = torch.arange(36, dtype=torch.uint8).reshape(1, 6, 6)
    assert classes_at(labels, (2, 2)).tolist() == [[[7, 10], [25, 28]]]
    assert classes_at(labels, (6, 6)) is labels
