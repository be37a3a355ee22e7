"""MobileNetV2 U-Net: a U-Net whose convolutions are inverted residual blocks (ISMRM 2024, abstract 2094).

    stem conv 3x3 (stride 1 or 2) -> stages of inverted residuals, each but the first halving the resolution
    decoder: 1x1 projection to the skip's width, nearest x2, plus the skip, one inverted residual
    four 1x1 heads on the highest decoder levels during training, one at inference

An inverted residual (MobileNetV2, arXiv 1801.04381): 1x1 expansion by t (left out when t = 1), BN, ReLU; 3x3
depthwise, BN, ReLU; linear 1x1 projection, BN; the input is added when stride and widths allow. The first stage has
t = 1, as in MobileNetV2; ReLU stands for its ReLU6, which INT8 calibration makes needless and whose backward pass took
an eighth of a training step on a CPU. Skips are added, not concatenated: a concatenated decoder block expands twice the
channels at the highest resolution, and such layers are bound by memory, not by MACs.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from edgeseg.errors import EdgesegError
from edgeseg.students.spec import N_OUTPUTS, Spec


@dataclass(frozen=True)
class MobileNetV2Spec(Spec):
    """All that defines one member of the family; stored with its weights.

    Attributes:
        widths: channels of each stage before `width_mult`; one more stage halves the resolution once more.
        blocks: inverted residuals a stage.
        stem_stride: 1 (outputs at 1, 1/2, 1/4, 1/8 of the input) or 2 (the first output is computed at 1/2 and
            up-sampled, the others lie at 1/4, 1/8, 1/16).
    """

    in_channels: int = 1
    num_classes: int = 4
    widths: tuple[int, ...] = (16, 24, 40, 80, 128)
    blocks: tuple[int, ...] = (1, 2, 2, 2, 2)
    width_mult: float = 1.0
    expansion: int = 4
    stem_stride: int = 2
    family: str = field(default="mobilenetv2", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        object.__setattr__(self, "blocks", tuple(self.blocks))
        if self.stem_stride not in (1, 2):
            raise EdgesegError(f"stem stride is 1 or 2, not {self.stem_stride}")
        if self.expansion not in (1, 2, 4, 6, 8):
            raise EdgesegError(f"expansion ratio is 1, 2, 4, 6 or 8, not {self.expansion}")
        if len(self.widths) < N_OUTPUTS + 1 or len(self.widths) != len(self.blocks):
            raise EdgesegError(f"a student has at least {N_OUTPUTS + 1} stages, each with its number of blocks: {self}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Widths after `width_mult`, rounded to multiples of 8 (what INT8 kernels like), at least 8."""
        return tuple(max(8, int(w * self.width_mult / 8 + 0.5) * 8) for w in self.widths)

    @property
    def stride(self) -> int:
        """Input sizes are multiples of this."""
        return self.stem_stride * 2 ** (len(self.widths) - 1)


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class InvertedResidual(nn.Module):
    """[B, c_in, H, W] -> [B, c_out, H/stride, W/stride]."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = c_in * expansion
        expand = [conv_bn(c_in, wide, 1)] if expansion > 1 else []
        depthwise, project = conv_bn(wide, wide, 3, stride, groups=wide), conv_bn(wide, c_out, 1, act=False)
        self.body = nn.Sequential(*expand, depthwise, project)
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class DecoderLevel(nn.Module):
    """Deep [B, c_deep, H, W] and skip [B, c_skip, 2H, 2W] -> [B, c_skip, 2H, 2W]."""

    def __init__(self, c_deep: int, c_skip: int, expansion: int) -> None:
        super().__init__()
        self.project = conv_bn(c_deep, c_skip, 1, act=False)
        self.block = InvertedResidual(c_skip, c_skip, 1, expansion)

    def forward(self, deep: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        up = F.interpolate(self.project(deep), scale_factor=2.0, mode="nearest")
        return self.block(up + skip)


class MobileNetV2UNet(nn.Module):
    """float32 [B, C, H, W] (H and W multiples of `spec.stride`) -> logits.

    In training mode a list of four, highest resolution first, the first at H x W; in evaluation mode only that one.
    """

    def __init__(self, spec: MobileNetV2Spec) -> None:
        super().__init__()
        self.spec = spec
        c, t = spec.channels, spec.expansion
        self.stem = conv_bn(spec.in_channels, c[0], 3, spec.stem_stride)
        self.stages = nn.ModuleList()
        for level, (width, count) in enumerate(zip(c, spec.blocks, strict=True)):
            first = InvertedResidual(c[max(0, level - 1)], width, min(2, level + 1), t if level else 1)
            self.stages.append(nn.Sequential(first, *(InvertedResidual(width, width, 1, t) for _ in range(count - 1))))
        self.decoder = nn.ModuleList(DecoderLevel(c[k + 1], c[k], t) for k in range(len(c) - 1))
        self.heads = nn.ModuleList(nn.Conv2d(c[k], spec.num_classes, 1) for k in range(N_OUTPUTS))

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        x = self.stem(x)
        skips = []
        for stage in self.stages:
            x = stage(x)
            skips.append(x)
        decoded = {}
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](x, skips[level])
            decoded[level] = x
        levels = range(N_OUTPUTS) if self.training else range(1)
        outputs = [self.heads[k](decoded[k]) for k in levels]
        if self.spec.stem_stride == 2:
            outputs[0] = F.interpolate(outputs[0], scale_factor=2.0, mode="bilinear", align_corners=False)
        return outputs if self.training else outputs[0]
