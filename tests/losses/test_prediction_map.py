"""Prediction-map distillation against a float64 reference, its gradient, and that a binary task has one."""

import numpy as np
import pytest
import torch

from edgeseg.losses.layerwise_kl import kl_divergence
from edgeseg.losses.prediction_map import prediction_map


def logits(channels: int, seed: int, grad: bool = False) -> torch.Tensor:
    z = torch.randn(2, channels, 5, 4, generator=torch.Generator().manual_seed(seed)).mul(3)
    return z.requires_grad_(grad)


def reference(teacher: np.ndarray, student: np.ndarray, t: float, t_squared: bool) -> float:
    def softened(z: np.ndarray) -> np.ndarray:
        z = z.astype(np.float64) / t
        if z.shape[1] == 1:  # the sigmoid and what it leaves
            p = 1 / (1 + np.exp(-z))
            return np.concatenate([1 - p, p], axis=1)
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    p, q = softened(teacher), softened(student)
    return float((p * np.log(p / q)).sum(axis=1).mean()) * (t * t if t_squared else 1)


@pytest.mark.parametrize("channels", [(1, 1), (2, 2), (4, 4), (2, 1), (1, 2)])
@pytest.mark.parametrize(("t", "t_squared"), [(1.0, True), (4.0, True), (4.0, False)])
def test_the_loss_equals_the_formula_in_float64(channels, t, t_squared):
    teacher, student = logits(channels[0], 1), logits(channels[1], 2)
    found = float(prediction_map(teacher, student, t, t_squared))
    assert found == pytest.approx(reference(teacher.numpy(), student.numpy(), t, t_squared), rel=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
def test_the_gradient_is_the_one_of_finite_differences(channels):
    teacher, student = logits(channels, 1), logits(channels, 2, grad=True)
    prediction_map(teacher, student).backward()
    exact, step = student.detach().double().numpy(), 1e-4
    for place in np.ndindex(exact.shape):
        one = np.zeros(exact.shape)
        one[place] = step
        slope = (reference(teacher.numpy(), exact + one, 4, True) - reference(teacher.numpy(), exact - one, 4, True))
        assert float(student.grad[place]) == pytest.approx(slope / (2 * step), rel=1e-3, abs=1e-6)


def test_a_binary_task_of_one_logit_has_a_value_and_a_gradient():
    teacher, student = logits(1, 1), logits(1, 2, grad=True)
    assert float(kl_divergence(teacher, student.detach(), 4.0)) == 0.0  # the defect: a soft-max over one channel
    loss = prediction_map(teacher, student)
    loss.backward()
    assert float(loss.detach()) > 0.1
    assert float(student.grad.abs().min()) > 0
    assert bool((student.grad.sign() == (student - teacher).sign()).all())  # downhill is towards the teacher


def test_equal_predictions_have_no_loss_and_the_teacher_gets_no_gradient():
    teacher = logits(1, 1, grad=True)
    student = teacher.detach().clone().requires_grad_()
    loss = prediction_map(teacher, student)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert float(student.grad.abs().max()) < 1e-6
    assert teacher.grad is None
