"""ConvLSTM family for clips: EchoDFKD's students, and members made for a CPU.

    block b (0 .. blocks-1), filters * 2^b wide: `layers` times { ConvLSTM 3x3, BatchNorm of its output }; all but the
        last block end in a 2x2 max-pool
    decoder, from the second deepest block up: nearest x2, 3x3 convolution, BatchNorm: no activation, no recurrence
    head: 1x1 convolution

BatchNorm stands outside the recurrence: the next frame gets the cell's own output, the next layer the normalised one.
Nothing looks ahead, so `step` computes frame by frame what `forward` computes of a clip. With the default spec and
blocks, layers in 1..4 these are the 16 published sizes.

Their cost is set by the multiply-accumulates at full resolution. Two things that are not in the published network:
`stem_stride` halves (or quarters) the resolution before the first cell and puts it back in the head, sub-pixel as in
`dense`; `skips` adds the blocks' outputs to the decoder's, as a U-Net would, for no multiply-accumulate at all.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from edgeseg.errors import EdgesegError
from edgeseg.students.spec import N_OUTPUTS, Spec

State = tuple[torch.Tensor, ...]
"""h0, c0, h1, c1, ... of the cells in the order in which a frame passes them, each [B, width, h, w]."""


@dataclass(frozen=True)
class ConvLSTMSpec(Spec):
    """All that defines one member of the family; stored with its weights.

    Attributes:
        blocks: resolution levels. layers: ConvLSTM cells a block. filters: width of the first block, doubled by each.
        stem_stride: 1: none, as published; 2 or 4: a strided convolution before the first cell, a sub-pixel head.
        skips: the output of each block is added to that of the decoder at its resolution.
    """

    in_channels: int = 1
    num_classes: int = 2
    blocks: int = 3
    layers: int = 1
    filters: int = 12
    stem_stride: int = 1
    skips: bool = False
    family: str = field(default="convlstm", init=False)
    recurrent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.blocks, self.layers, self.filters) < 1:
            raise EdgesegError(f"a ConvLSTM student has at least one block, layer and filter: {self}")
        if self.stem_stride not in (1, 2, 4):
            raise EdgesegError(f"stem_stride of a ConvLSTM student is 1, 2 or 4, not {self.stem_stride}")

    @property
    def stride(self) -> int:
        """Input sizes are multiples of this."""
        return self.stem_stride * 2 ** (self.blocks - 1)

    def width(self, block: int) -> int:
        return self.filters * 2**block

    def states(self, size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """Name -> shape [1, width, h, w] of every state of one clip whose frames have this size; see `State`."""
        shapes = [(1, self.width(b), size[0] // (self.stem_stride << b), size[1] // (self.stem_stride << b))
                  for b in range(self.blocks) for _ in range(self.layers)]
        return {f"{kind}{i}": shape for i, shape in enumerate(shapes) for kind in "hc"}


class Cell(nn.Module):
    """ConvLSTM cell (arXiv 1506.04214) without peepholes: x [B, C, H, W], h and c [B, W, H, W] -> the next h and c."""

    def __init__(self, c_in: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(c_in + width, 4 * width, 3, padding=1)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        i, f, o, g = self.gates(torch.cat([x, h], dim=1)).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class ConvLSTM(nn.Module):
    """Clips float32 [B, T, C, H, W] (H and W multiples of `spec.stride`) -> logits [B, T, K, H, W], the background's 0.

    In training mode a list, highest resolution first, of one for each block (four at most), the first at H x W, the
    others from heads that only train. Single frames [B, C, H, W] are clips of one frame each, whose logits have no T.
    """

    def __init__(self, spec: ConvLSTMSpec) -> None:
        super().__init__()
        self.spec = spec
        s, widths = spec.stem_stride, [spec.width(b) for b in range(spec.blocks)]
        self.stem = nn.Sequential() if s == 1 else nn.Sequential(
            nn.Conv2d(spec.in_channels, widths[0], s + 1, s, s // 2, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        before = [spec.in_channels if s == 1 else widths[0], *widths]
        self.cells = nn.ModuleList(Cell(before[b] if k == 0 else w, w)
                                   for b, w in enumerate(widths) for k in range(spec.layers))
        self.norms = nn.ModuleList(nn.BatchNorm2d(w) for w in widths for _ in range(spec.layers))
        self.decoder = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2.0, mode="nearest"), nn.Conv2d(2 * w, w, 3, padding=1),
                          nn.BatchNorm2d(w)) for w in widths[:-1])
        values = (spec.num_classes - 1) * s * s
        self.head = nn.Conv2d(widths[0], values, 1)
        self.training_heads = nn.ModuleList(nn.Conv2d(w, values, 1) for w in widths[1:N_OUTPUTS])

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        b, t = x.shape[:2] if x.ndim == 5 else (len(x), 1)
        levels, _ = self.features(x.transpose(0, 1).flatten(0, 1) if x.ndim == 5 else x, t)
        outputs = [self.logits(k, levels[k]) for k in range(1 + len(self.training_heads) if self.training else 1)]
        if x.ndim == 5:
            outputs = [o.unflatten(0, (t, b)).transpose(0, 1) for o in outputs]
        return outputs if self.training else outputs[0]

    def step(self, x: torch.Tensor, state: State | None = None) -> tuple[torch.Tensor, State]:
        """One frame [B, C, H, W] and the states after the one before it (None: it is the first) -> logits
        [B, K, H, W] and the next states."""
        levels, state = self.features(x, 1, state)
        return self.logits(0, levels[0]), state

    def features(self, x: torch.Tensor, t: int, state: State | None = None) -> tuple[dict[int, torch.Tensor], State]:
        """[T * B, C, H, W], `t` frames -> of each level what its head reads, [T * B, width, h, w], and the states after
        the last frame."""
        blocks: list[torch.Tensor] = []
        after: list[torch.Tensor] = []
        x = self.stem(x)
        for i, (cell, norm) in enumerate(zip(self.cells, self.norms, strict=True)):
            block, layer = divmod(i, self.spec.layers)
            if block and not layer:
                x = F.max_pool2d(x, 2)
            clean = x.new_zeros(len(x) // t, self.spec.width(block), *x.shape[-2:])
            h, c = (clean, clean) if state is None else state[2 * i : 2 * i + 2]
            hidden = []
            for frame in x.chunk(t) if t > 1 else (x,):
                h, c = cell(frame, h, c)
                hidden.append(h)
            x = norm(torch.cat(hidden) if t > 1 else h)
            after += [h, c]
            if layer == self.spec.layers - 1:
                blocks.append(x)
        levels = {len(blocks) - 1: x}
        for k in reversed(range(len(self.decoder))):
            x = self.decoder[k](x)
            x = levels[k] = x + blocks[k] if self.spec.skips else x
        return levels, tuple(after)

    def logits(self, level: int, features: torch.Tensor) -> torch.Tensor:
        """Of level 0 at the size of the input, of level k at 1 / 2^k of it."""
        excess = (self.training_heads[level - 1] if level else self.head)(features)
        if self.spec.stem_stride > 1:
            excess = F.pixel_shuffle(excess, self.spec.stem_stride)
        return F.pad(excess, (0, 0, 0, 0, 1, 0))
