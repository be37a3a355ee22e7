"""Dense U-Net: a student made for INT8 on a CPU.

    stem: 3x3 convolution of stride 2, or (stride 4) pixels unshuffled 4x4 into channels and a 3x3 convolution
    stages: each but the first halves the resolution by a 3x3 convolution, then residual blocks
    decoder: 1x1 projection to the skip's width, x2, plus the skip, one 3x3 convolution
    heads on the four highest levels during training, one at inference

INT8 dot-product units (VNNI, AMX) work on whole multiples of 4 input and 16 output channels of a dense convolution; a
depthwise one leaves them idle and is bound by memory. So 3x3 convolutions are dense here, and the resolution is halved
before the first one. The head is sub-pixel (arXiv 1609.05158): a 1x1 convolution to stride^2 values a class, shuffled
into place, costs half of a linear up-sampling of the logits. The background's logit is 0, the others are what a class
exceeds it by: softmax does not change, and there is a channel less to bring back to the native grid.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from edgeseg.errors import EdgesegError
from edgeseg.students.mobilenetv2 import InvertedResidual
from edgeseg.students.spec import N_OUTPUTS, Spec

ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}


@dataclass(frozen=True)
class DenseSpec(Spec):
    """All that defines one member of the family; stored with its weights.

    Attributes:
        widths: channels of each stage; one more stage halves the resolution once more.
        blocks: residual blocks a stage (after the convolution that halves the resolution).
        expansions: of the residual blocks of a stage: 0: two dense 3x3 convolutions; t > 0: an inverted residual
            (depthwise 3x3 between 1x1 convolutions to and from t times the width).
        stem_stride: 2 or 4.
        head: "subpixel", or "bilinear": one value a class at the resolution of the stem, up-sampled linearly.
        up: of the decoder: "nearest", or "transposed": a learned 2x2 convolution of stride 2 instead of the projection.
        activation: "relu" or "hardswish".
    """

    in_channels: int = 1
    num_classes: int = 4
    widths: tuple[int, ...] = (16, 32, 64, 96, 128)
    blocks: tuple[int, ...] = (0, 1, 1, 1, 1)
    expansions: tuple[int, ...] = (0, 0, 0, 0, 0)
    stem_stride: int = 2
    head: Literal["subpixel", "bilinear"] = "subpixel"
    up: Literal["nearest", "transposed"] = "nearest"
    activation: Literal["relu", "hardswish"] = "relu"
    family: str = field(default="dense", init=False)

    def __post_init__(self) -> None:
        for name in ("widths", "blocks", "expansions"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len({len(self.widths), len(self.blocks), len(self.expansions)}) != 1 or len(self.widths) < N_OUTPUTS:
            raise EdgesegError(f"a dense student has at least {N_OUTPUTS} stages, each with its number of blocks and "
                               f"its expansion: {self}")
        if min(self.widths) < 1 or min(self.blocks) < 0 or min(self.expansions) < 0:
            raise EdgesegError(f"widths are positive, blocks and expansions not negative: {self}")
        for name, known in (("stem_stride", (2, 4)), ("head", ("subpixel", "bilinear")),
                            ("up", ("nearest", "transposed")), ("activation", tuple(ACTIVATIONS))):
            if getattr(self, name) not in known:
                raise EdgesegError(f"{name} of a dense student is {known[0]} or {known[1]}, not {getattr(self, name)}")

    @property
    def stride(self) -> int:
        """Input sizes are multiples of this."""
        return self.stem_stride * 2 ** (len(self.widths) - 1)


class DenseResidual(nn.Module):
    """[B, C, H, W] -> the same shape: x plus two dense 3x3 convolutions of it."""

    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(*conv_bn(width, width, 3, act=act), *conv_bn(width, width, 3))
        self.act = act(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x + self.body(x))


class Up(nn.Module):
    """Deep [B, c_deep, H, W] and skip [B, c_skip, 2H, 2W] -> [B, c_skip, 2H, 2W]."""

    def __init__(self, c_deep: int, c_skip: int, how: str, act: type[nn.Module]) -> None:
        super().__init__()
        if how == "nearest":
            self.up = nn.Sequential(*conv_bn(c_deep, c_skip, 1), nn.Upsample(scale_factor=2.0, mode="nearest"))
        else:
            self.up = nn.Sequential(nn.ConvTranspose2d(c_deep, c_skip, 2, 2, bias=False), nn.BatchNorm2d(c_skip))
        self.mix = nn.Sequential(*conv_bn(c_skip, c_skip, 3, act=act))

    def forward(self, deep: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.mix(self.up(deep) + skip)


class DenseUNet(nn.Module):
    """float32 [B, C, H, W] (H and W multiples of `spec.stride`) -> logits, the background's 0.

    In training mode a list of four, highest resolution first, the first at H x W; in evaluation mode only that one.
    """

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__()
        self.spec = spec
        w, act = spec.widths, ACTIVATIONS[spec.activation]
        if spec.stem_stride == 2:
            self.stem = nn.Sequential(*conv_bn(spec.in_channels, w[0], 3, 2, act))
        else:
            self.stem = nn.Sequential(nn.PixelUnshuffle(4), *conv_bn(16 * spec.in_channels, w[0], 3, act=act))
        self.stages = nn.ModuleList(
            nn.Sequential(*(conv_bn(w[k - 1], w[k], 3, 2, act) if k else []),
                          *(InvertedResidual(w[k], w[k], 1, t) if t else DenseResidual(w[k], act) for _ in range(n)))
            for k, (n, t) in enumerate(zip(spec.blocks, spec.expansions, strict=True)))
        self.decoder = nn.ModuleList(Up(w[k + 1], w[k], spec.up, act) for k in range(len(w) - 1))
        excess = spec.num_classes - 1
        each = spec.stem_stride**2 if spec.head == "subpixel" else 1
        self.heads = nn.ModuleList(nn.Conv2d(w[k], excess * each, 1) for k in range(N_OUTPUTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        levels = {len(skips) - 1: x}
        for k in reversed(range(len(self.decoder))):
            x = levels[k] = self.decoder[k](x, skips[k])
        outputs = [self.logits(k, levels[k]) for k in range(N_OUTPUTS if self.training else 1)]
        return outputs if self.training else outputs[0]

    def logits(self, level: int, features: torch.Tensor) -> torch.Tensor:
        """Of level 0 at the size of the input, of level k at 1 / 2^k of it."""
        excess = self.heads[level](features)
        if self.spec.head == "subpixel":
            excess = F.pixel_shuffle(excess, self.spec.stem_stride)
        else:
            excess = F.interpolate(excess, scale_factor=float(self.spec.stem_stride), mode="bilinear",
                                   align_corners=False)
        return F.pad(excess, (0, 0, 0, 0, 1, 0))


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, act: type[nn.Module] | None = None) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out)]
    return [*layers, act(inplace=True)] if act else layers
