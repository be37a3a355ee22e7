"""INT8 as post-training quantisation will make it, simulated in torch on the student itself; nothing of it is kept.

For every convolution: BatchNorm with its stored statistics folded into weight and bias; weights rounded to -127..127,
one scale a channel; the tensor that enters rounded to 0..255 with one scale and zero point, ranges being the mean over
the calibration frames of their minimum and maximum (NNCF's default). Gradients pass the rounding as if it were not
there (straight-through; zero outside the range): torch's own fake quantisation.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import nn

SMALLEST = 1e-12
"""Least scale, for a channel or tensor that is all zero."""


class Convolution:
    """A convolution of the student with the BatchNorm behind it. `low`, `high`: range of what enters it, None until
    frames have been through it (the heads of training have none: they are not exported)."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> None:
        self.conv, self.norm = conv, norm
        self.low: float | None = None
        self.high: float | None = None
        self.seen: list[tuple[float, float]] = []
        self.observing = False

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with BatchNorm in them: w gamma / sigma and beta + (b - mean) gamma / sigma."""
        weight, bias, norm = self.conv.weight, self.conv.bias, self.norm
        if norm is None:
            return weight, bias
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * factor
        return weight * factor.reshape(-1, 1, 1, 1), shift if bias is None else shift + bias * factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, bias = self.folded()
        if self.observing:
            self.seen.append((float(x.min()), float(x.max())))
        elif self.low is not None and self.high is not None:
            x, weight = rounded(x, self.low, self.high), rounded_weight(weight)
        conv = self.conv
        return torch.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    def settle(self) -> None:
        """Ranges from what was seen, with zero inside (padding must be exact)."""
        if self.seen:
            low, high = np.mean(self.seen, axis=0)
            self.low, self.high = min(float(low), 0.0), max(float(high), 0.0)
        self.seen = []


def rounded(x: torch.Tensor, low: float, high: float) -> torch.Tensor:
    scale = max((high - low) / 255, SMALLEST)
    return torch.fake_quantize_per_tensor_affine(x, scale, round(-low / scale), 0, 255)


def rounded_weight(weight: torch.Tensor) -> torch.Tensor:
    scale = (weight.detach().abs().amax(dim=(1, 2, 3)) / 127).clamp_min(SMALLEST)
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -127, 127)


@contextmanager
def simulated_int8(student: nn.Module, frames: np.ndarray) -> Iterator[Callable[[], None]]:
    """Within the block, `student` computes as in INT8. Its parameters and their names stay what they are.

    Ranges are found anew from `frames` [n, C, gh, gw] whenever the student goes from training to evaluation, so that
    what is scored on dev is what post-training quantisation would make of the weights as they are then. The function
    that the block gets does it at once.
    """
    parts = [Convolution(conv, norm) for conv, norm in convolutions(student)]
    stale = False

    def before(module: nn.Module, _: Any) -> None:
        nonlocal stale
        if module.training:
            stale = True
        elif stale:
            stale = False
            observe(student, parts, frames)

    for part in parts:
        part.conv.forward = part.forward  # type: ignore[method-assign, assignment]
        if part.norm is not None:
            part.norm.forward = MethodType(passed, part.norm)  # type: ignore[method-assign]
    hook = student.register_forward_pre_hook(before)
    try:
        observe(student, parts, frames)  # training starts with ranges too
        yield partial(observe, student, parts, frames)
    finally:
        hook.remove()
        for part in parts:
            for layer in (part.conv, part.norm):
                if layer is not None:
                    del layer.forward


def observe(student: nn.Module, parts: list[Convolution], frames: np.ndarray) -> None:
    """Send `frames` through the network in FP32 and settle the ranges."""
    mode, device = student.training, next(student.parameters()).device
    for part in parts:
        part.observing = True
    with torch.no_grad():
        for x in frames:
            student.eval()(torch.from_numpy(x[None]).to(device))
    student.train(mode)
    for part in parts:
        part.observing = False
        part.settle()


def passed(_: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a BatchNorm does that is folded into the convolution before it."""
    return x


def convolutions(student: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Every convolution of a student, with the BatchNorm that follows it in a Sequential."""
    norms: dict[nn.Module, nn.BatchNorm2d] = {}
    for block in student.modules():
        if isinstance(block, nn.Sequential):
            norms |= {a: b for a, b in pairwise(block) if isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d)}
    return [(layer, norms.get(layer)) for layer in student.modules() if isinstance(layer, nn.Conv2d)]
