"""Plain U-Net: the small students of the multi-task distillation study (one convolution a level).

    encoder: one 3x3 convolution, BatchNorm, ReLU a level, then a 2x2 max-pool
    bottleneck: the same, of the last width
    decoder: transposed 2x2 convolution, concatenated with the skip, one 3x3 convolution, BatchNorm, ReLU
    head: 1x1 convolution

With three channels in and one logit out, widths 16, 32, 64 have the published 57,297 parameters (S1) and 32, 64, 128
the published 227,233 (S2). A grey task has one channel: repeating it three times would compute the same functions with
more of them. Two classes are one logit z, given out as [0, z], of which the softmax is the sigmoid of z.

Features have the same paths as in the multi-task teachers: encoder.K and decoder.K at 1/2^K of the resolution, pools.K
at half of encoder.K's (what the study pairs as "encoder" is pools.1), bottleneck.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from edgeseg.errors import EdgesegError
from edgeseg.students.spec import Spec


@dataclass(frozen=True)
class UNetSpec(Spec):
    """All that defines one member of the family; stored with its weights.

    Attributes:
        widths: channels of each level, the last one the bottleneck's; one more level halves the resolution once more.
    """

    in_channels: int = 3
    num_classes: int = 2
    widths: tuple[int, ...] = (16, 32, 64)
    family: str = field(default="unet", init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if len(self.widths) < 2 or not all(isinstance(w, int) and w > 0 for w in self.widths):
            raise EdgesegError(f"a unet student has two or more widths, whole numbers above 0, not {self.widths}")

    @property
    def stride(self) -> int:
        """Input sizes are multiples of this."""
        return 2 ** (len(self.widths) - 1)


def conv_bn(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class Up(nn.Module):
    """Deep [B, c_deep, H, W] and skip [B, c_skip, 2H, 2W] -> [B, c_skip, 2H, 2W]."""

    def __init__(self, c_deep: int, c_skip: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(c_deep, c_skip, 2, 2)
        self.mix = conv_bn(2 * c_skip, c_skip)

    def forward(self, deep: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat([self.up(deep), skip], dim=1))


class UNet(nn.Module):
    """float32 [B, C, H, W] (H and W multiples of `spec.stride`) -> logits [B, K, H, W]; a list of one in training mode,
    as the published network has one output: its layer-wise loss is that of the full resolution alone."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        w = spec.widths
        self.encoder = nn.ModuleList(conv_bn(before, c) for before, c in pairwise((spec.in_channels, *w[:-1])))
        self.pools = nn.ModuleList(nn.MaxPool2d(2) for _ in w[:-1])
        self.bottleneck = conv_bn(w[-2], w[-1])
        self.decoder = nn.ModuleList(Up(w[k + 1], w[k]) for k in range(len(w) - 1))
        self.head = nn.Conv2d(w[0], 1 if spec.num_classes == 2 else spec.num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        if x.shape[-2] % self.spec.stride or x.shape[-1] % self.spec.stride:
            raise EdgesegError(f"{x.shape[-2]} x {x.shape[-1]} pixels cannot be halved {len(self.decoder)} times: give "
                               f"this U-Net multiples of {self.spec.stride}")
        skips = []
        for block, pool in zip(self.encoder, self.pools, strict=True):
            x = block(x)
            skips.append(x)
            x = pool(x)
        x = self.bottleneck(x)
        for k in reversed(range(len(self.decoder))):
            x = self.decoder[k](x, skips[k])
        logits = self.head(x)
        if self.spec.num_classes == 2:
            logits = F.pad(logits, (0, 0, 0, 0, 1, 0))
        return [logits] if self.training else logits
