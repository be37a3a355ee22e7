"""Distillation of features: what two named modules, one of the teacher and one of the student, give for the same image.

Modules are named by their path ("encoder.stages.2") and read by forward hooks during the one forward pass that each
network makes anyway; no model knows of it. Maps of different sizes are averaged to the smaller of the two in each
direction. Each pair has 1x1 projection heads that live as long as the training: they are in its checkpoint and in its
optimiser, and not in the student.

Which side learns. The teacher's network never does. Under InfoNCE both heads do, as in contrastive representation
distillation (Tian, Krishnan and Isola 2020): a fixed random projection of the teacher would be a target without
meaning, and a head that collapsed to a constant would lose against every negative (where there are none, the term is
zero). Under MSE there are no negatives, and two heads would agree on zero: the student's alone learns, to the teacher's
own channels.

Memory that a term keeps for its gradient, beyond the maps themselves, whatever the size of the image. supervised: 256
pixels are gathered before they are projected: 1 KiB a channel of both sides, and at most 2 MiB of embeddings (64 KiB)
and similarities (256 x 256, 256 KiB each). instance: maps are averaged to at most 8 x 8 first: 256 B a channel of both
sides and 96 KiB of embeddings, an image. mse: averaged to at most 64 x 64: 16 KiB a channel of the student and 32 KiB
of the teacher, an image.
"""

import copy
import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from edgeseg.distill.recipe import FeaturePair
from edgeseg.errors import EdgesegError
from edgeseg.losses.contrastive import (
    classes_at,
    draw_pixels,
    feature_mse,
    instance_infonce,
    supervised_infonce,
)

WIDTH = 64
"""Channels of an embedding: the published width of the student's bottleneck and of its lifted decoder features."""
INSTANCE_SIDE = 8
"""Side to which a map is averaged before it becomes one vector: 8 x 8 x 64 = 4096 numbers, not the 4.2 million of a
flattened 256 x 256 map."""
MSE_SIDE = 64
MOST_APART = 4
"""Times by which the two maps of a pair may differ in size; the published bottlenecks do by 4."""

Maps = dict[str, torch.Tensor]
"""Module path -> what it gave, [B, C, h, w]."""


class FeatureLosses(nn.Module):
    """The weighted sum of the pairs' terms; its parameters are their heads.

    Args:
        logits: image [B, C, H, W] -> anything, by running `teacher` (perhaps on a resampled and padded image).
        image: float32 [2 or more, C, H, W], any values of the right shape: both networks are tried on it.
        covered: share of the teacher's input (rows, columns) that is the image and not padding.
        seed: of the heads' first weights; the global random state is left as it was.

    Raises:
        EdgesegError: a path that does not exist (near ones are named), a module that does not run, gives no map or one
            that the next module overwrites, maps of scales that do not match.
    """

    def __init__(self, pairs: Sequence[FeaturePair], student: nn.Module, teacher: nn.Module,
                 logits: Callable[[torch.Tensor], Any], image: torch.Tensor, covered: tuple[float, float] = (1.0, 1.0),
                 seed: int = 0) -> None:
        super().__init__()
        self.pairs, self.covered = tuple(pairs), covered
        paths = [p.student for p in pairs], [p.teacher for p in pairs]

        @contextmanager
        def watch(student: nn.Module = student) -> Iterator[tuple[Maps, Maps]]:
            with watching(student, paths[0], "student") as one, watching(teacher, paths[1], "teacher") as other:
                yield one, other

        self.watch = watch
        """`with watch() as maps:` fills `maps` while the networks run. A closure: as attributes the networks would be
        parts of this module, and of its checkpoint."""
        trial = copy.deepcopy(student).train()  # what runs in training; statistics of the student stay as they are
        with torch.no_grad(), watch(trial) as maps:
            trial(image)
            logits(image)
        found = [self.maps_of(pair, maps) for pair in pairs]
        for pair, (a, b) in zip(pairs, found, strict=True):
            check_scales(pair, a, b)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(heads_of(pair.kind, a.shape[1], b.shape[1])
                                       for pair, (a, b) in zip(pairs, found, strict=True))
        self.description = "\n".join(described(pair, a, b) for pair, (a, b) in zip(pairs, found, strict=True))
        """A line a pair, for a person."""

    def maps_of(self, pair: FeaturePair, maps: tuple[Maps, Maps]) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's and the teacher's map, of the same part of the image."""
        teacher = as_map(maps[1], pair.teacher, "teacher").detach()
        return as_map(maps[0], pair.student, "student"), without_padding(teacher, self.covered)

    def forward(self, maps: tuple[Maps, Maps], labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Scalar of what `watch` saw of a batch; labels [B, H, W] class indices, `generator` draws the anchors."""
        total = labels.new_zeros((), dtype=torch.float32)
        for pair, heads in zip(self.pairs, self.heads, strict=True):
            student, teacher = self.maps_of(pair, maps)
            size = common_size(pair.kind, student, teacher)
            student, teacher = pooled(student, size), pooled(teacher.to(student.device), size)
            total = total + pair.weight * term(pair, heads, student, teacher, labels, generator)
        return total


def heads_of(kind: str, student: int, teacher: int) -> nn.ModuleDict:
    """1x1 convolutions. Their bias keeps the embedding of a dead pixel away from zero, where a cosine has no slope."""
    if kind == "mse":
        return nn.ModuleDict({"student": nn.Conv2d(student, teacher, 1)})
    return nn.ModuleDict({"student": nn.Conv2d(student, WIDTH, 1), "teacher": nn.Conv2d(teacher, WIDTH, 1)})


def term(pair: FeaturePair, heads: Any, student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor,
         generator: torch.Generator) -> torch.Tensor:
    """One pair's loss (without its weight) of maps [B, C, h, w] of one size."""
    if pair.kind == "mse":
        return feature_mse(heads["student"](student.float()), teacher.float())
    if pair.kind == "instance":
        anchors, keys = (heads[side](x.float()).flatten(1) for side, x in (("student", student), ("teacher", teacher)))
        return instance_infonce(anchors, keys, pair.tau)
    classes = classes_at(labels, (student.shape[-2], student.shape[-1]))
    pixel = draw_pixels(classes, generator)
    anchors, keys = (of_pixels(heads[side], at_pixels(x, pixel).float())
                     for side, x in (("student", student), ("teacher", teacher)))
    return supervised_infonce(anchors, keys, classes.flatten()[pixel], pair.tau)


def of_pixels(head: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """The 1x1 convolution `head` of pixels [n, C] -> [n, WIDTH]. (As images of one pixel they would take four times as
    long.)"""
    return F.linear(x, head.weight.flatten(1), head.bias)


def at_pixels(x: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] -> [n, C] at flat places of B x h x w. (Of a map whose channels lie together nothing is copied, and
    its gradient has that layout too: to add a planar one to it is slow.)"""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).index_select(0, pixel)


# ---- maps

def check_scales(pair: FeaturePair, student: torch.Tensor, teacher: torch.Tensor) -> None:
    mine, theirs = (tuple(x.shape[-2:]) for x in (student, teacher))
    if any(max(a, b) > MOST_APART * min(a, b) for a, b in zip(mine, theirs, strict=True)):
        raise EdgesegError(f"features {pair.scale}: the student's {pair.student!r} gives {mine[0]} x {mine[1]}, the "
                           f"teacher's {pair.teacher!r} {theirs[0]} x {theirs[1]}: name modules at most {MOST_APART} "
                           "times apart")


@contextmanager
def watching(network: nn.Module, paths: Sequence[str], whose: str) -> Iterator[Maps]:
    """Collects what the modules at `paths` give while the context lasts; no hook is left behind.

    Raises:
        EdgesegError: at its end, when a module that follows has changed such a map in place.
    """
    seen: Maps = {}
    state: dict[str, int] = {}

    def keep(path: str, output: Any) -> None:
        seen[path] = output
        if isinstance(output, torch.Tensor) and not output.is_inference():
            state[path] = output._version

    handles = [find_module(network, path, whose).register_forward_hook(
        lambda _module, _input, output, path=path: keep(path, output)) for path in dict.fromkeys(paths)]
    try:
        yield seen
        for path, before in state.items():
            if seen[path]._version != before:
                raise EdgesegError(f"the {whose}'s module {path!r} gives a map that what follows changes in place: "
                                   "name the module that follows")
    finally:
        for handle in handles:
            handle.remove()


def find_module(network: nn.Module, path: str, whose: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError:
        names = [name for name, _ in network.named_modules() if name]
        near = difflib.get_close_matches(path, names, 5, 0.4) or [name for name in names if "." not in name]
        raise EdgesegError(f"the {whose} has no module {path!r}: did you mean {', '.join(near)}?") from None


def as_map(seen: dict[str, Any], path: str, whose: str) -> torch.Tensor:
    """What the module gave, [B, C, h, w]; of a list its first."""
    if path not in seen:
        raise EdgesegError(f"the {whose}'s module {path!r} does not run in training: name another")
    output = seen[path]
    if isinstance(output, list | tuple) and output:
        output = output[0]
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        what = f"a tensor {list(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
        raise EdgesegError(f"the {whose}'s module {path!r} gives {what}, not a map [B, C, h, w]: name another")
    return output


def without_padding(x: torch.Tensor, covered: tuple[float, float]) -> torch.Tensor:
    """The upper left part of a map that shows the image: `covered` of it in each direction, linearly resampled where
    that is not a whole number of cells (in 32 bit: a teacher may run in 16, too few for places)."""
    if covered == (1.0, 1.0):
        return x
    size = [max(1, round(n * share)) for n, share in zip(x.shape[-2:], covered, strict=True)]
    rows, columns = covered
    corner = torch.tensor([[columns, 0, columns - 1], [0, rows, rows - 1]], device=x.device).expand(len(x), 2, 3)
    grid = F.affine_grid(corner, [len(x), 1, *size], align_corners=False)
    return F.grid_sample(x.float(), grid, padding_mode="border", align_corners=False)


def common_size(kind: str, student: torch.Tensor, teacher: torch.Tensor) -> tuple[int, int]:
    most = {"instance": INSTANCE_SIDE, "mse": MSE_SIDE}.get(kind, max(student.shape[-2:]))
    rows, columns = (min(a, b, most) for a, b in zip(student.shape[-2:], teacher.shape[-2:], strict=True))
    return rows, columns


def pooled(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return x if tuple(x.shape[-2:]) == size else F.adaptive_avg_pool2d(x, size)


def described(pair: FeaturePair, student: torch.Tensor, teacher: torch.Tensor) -> str:
    shapes = [" x ".join(map(str, x.shape[1:])) for x in (teacher, student)]
    return (f"features {pair.scale}: {pair.kind} x {pair.weight:g}, teacher {pair.teacher} ({shapes[0]}), student "
            f"{pair.student} ({shapes[1]}), at {' x '.join(map(str, common_size(pair.kind, student, teacher)))}")
