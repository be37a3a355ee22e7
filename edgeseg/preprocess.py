"""Preprocessing: from raw intensities to the student's input and from its logits to a label map in the native grid.

Torch-free, and the only place where it is written: training, export checks, the runtime and the benches call it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeseg import geometry
from edgeseg.errors import EdgesegError
from edgeseg.geometry import Shape

Net = Callable[[np.ndarray], np.ndarray]
"""float32 [n, C, gh, gw] -> logits float32 [n, K, gh, gw]. One with a method `reset` may be recurrent: it gets the
frames of a clip in turn, and `reset` is called before the first."""


@dataclass(frozen=True)
class Normalisation:
    """How one channel is normalised; kinds and formulas are nnU-Net's (its intensity normalisation schemes).

    zscore: (x - mean) / max(std, 1e-8), statistics of this volume inside the bounding box of non-zero pixels, or, with
    `masked`, of its non-zero pixels (holes filled), the others set to 0. ct: clip to [low, high] then (x - mean) / std
    with the data set's numbers. rescale: to 0..1 by minimum and maximum inside that box. rgb: x / 255. none: unchanged.
    """

    kind: Literal["zscore", "ct", "rescale", "rgb", "none"] = "zscore"
    masked: bool = False
    mean: float = 0.0
    std: float = 1.0
    low: float = 0.0
    high: float = 0.0

    def apply(self, volume: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """float32 [N, H, W] -> float32 [N, H, W]; `mask` bool [N, H, W] is non-zero in any channel."""
        if self.kind == "ct":
            return (np.clip(volume, self.low, self.high) - self.mean) / max(self.std, 1e-8)
        if self.kind == "rescale":
            box = volume[bounding_box(mask)]
            low, high = (box.min(), box.max()) if box.size else (np.float32(0), np.float32(1))
            return (volume - low) / max(high - low, 1e-8)
        if self.kind == "rgb":
            return volume / np.float32(255)
        if self.kind == "none":
            return volume
        inside = volume[mask] if self.masked else volume[bounding_box(mask)]
        if not inside.size:  # an all-zero volume
            return np.zeros_like(volume)
        # float64: a float32 sum over a volume loses digits, and numpy, ONNX and C++ would then differ
        mean, std = np.float32(inside.mean(dtype=np.float64)), np.float32(max(inside.std(dtype=np.float64), 1e-8))
        normal = (volume - mean) / std
        return np.where(mask, normal, np.float32(0)) if self.masked else normal


def ct_window(low: float, high: float) -> Normalisation:
    """Normalisation of CT in Hounsfield units for a window: clipped to [low, high], then 0..4.

    0 is `low`: what a window finds outside an image, 0, then looks as air does. An organ's contrast against fat is
    about 1 or 2, as after a z-score.

    Raises:
        EdgesegError: not two finite numbers, the lower first.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise EdgesegError(f"a window of Hounsfield units is its lower and its upper end, not {low:g} and {high:g}")
    return Normalisation("ct", mean=float(low), std=(high - low) / 4, low=float(low), high=float(high))


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box around the True elements (empty slices when there are none)."""
    box = []
    for axis in range(mask.ndim):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        box.append(slice(hit[0], hit[-1] + 1) if hit.size else slice(0, 0))
    return tuple(box)


@dataclass(frozen=True)
class Preprocessing:
    """What stands between raw frames and the network.

    Attributes:
        size: fixed grid (rows, columns) in pixels.
        spacing: pixel size of that grid (row, column) in mm.
        channels: one Normalisation a channel.
        overlap: least share of a tile that neighbours have in common when an image is larger than the grid.
        window: what an image larger than the grid gets. "centre": one window around its centre, background outside
            (one pass of the network: for data whose structures lie there, as in cardiac MR). "tiles": all of it.
    """

    size: Shape
    spacing: tuple[float, float]
    channels: tuple[Normalisation, ...] = (Normalisation(),)
    overlap: float = 0.25
    window: Literal["centre", "tiles"] = "tiles"

    @property
    def extent_mm(self) -> tuple[float, float]:
        return self.size[0] * self.spacing[0], self.size[1] * self.spacing[1]

    def normalise(self, frames: np.ndarray) -> np.ndarray:
        """Raw float32 [N, C, H, W] of one volume or clip -> normalised float32 of the same shape."""
        mask = (frames != 0).any(axis=1)
        if any(n.masked for n in self.channels):
            from scipy.ndimage import binary_fill_holes

            mask = binary_fill_holes(mask)
        return np.stack([n.apply(frames[:, c], mask) for c, n in enumerate(self.channels)], axis=1)

    def to_canvas(self, frames: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
        """Raw float32 [N, C, H, W] of `spacing` mm -> normalised float32 [N, C, h, w] at the grid's spacing."""
        shape = geometry.canvas_shape(frames.shape[-2:], spacing, self.spacing)
        return geometry.resize_linear(self.normalise(frames), shape)

    def segment(self, frames: np.ndarray, spacing: tuple[float, float], net: Net, batch: int = 1,
                back: Literal["logits", "labels"] = "logits") -> np.ndarray:
        """Raw float32 [N, C, H, W] of `spacing` mm -> class indices uint8 [N, H, W] in the same grid.

        Intensity statistics are those of all frames given: a whole volume's, or with N = 1 a stream's.
        An image larger than the grid gets one centred window or overlapping tiles whose logits are blended (`window`);
        logits go back to the native grid linearly and the arg-max is taken there. With `back` "labels" it is taken on
        the canvas, and each native pixel gets the label that holds its centre, as in frame graphs made so.
        """
        logits = self.canvas_logits(self.to_canvas(frames, spacing), net, batch)
        if back == "labels":
            return geometry.resize_labels(logits.argmax(axis=1).astype(np.uint8), frames.shape[-2:])
        return to_native(logits, frames.shape[-2:])

    def canvas_logits(self, canvas: np.ndarray, net: Net, batch: int = 1) -> np.ndarray:
        """Normalised canvas [N, C, h, w] -> logits float32 [N, K, h, w].

        Outside a centred window all logits are 0, of which the arg-max is the first class, background.
        """
        shape = canvas.shape[-2], canvas.shape[-1]
        starts = self.starts(shape)
        if len(starts) == 1:
            (y, x), = starts
            begin_clip(net)
            windows = geometry.take_window(canvas, (y, x), self.size)
            logits = np.concatenate([net(windows[i : i + batch]) for i in range(0, len(windows), batch)])
            return geometry.take_window(logits, (-y, -x), shape)
        weight = geometry.blend_weight(self.size)
        total, norm = None, np.zeros(canvas.shape[-2:], np.float32)
        for start in starts:
            begin_clip(net)
            windows = geometry.take_window(canvas, start, self.size)
            logits = np.concatenate([net(windows[i : i + batch]) for i in range(0, len(windows), batch)])
            if total is None:
                total = np.zeros((len(canvas), logits.shape[1], *canvas.shape[-2:]), np.float32)
            geometry.add_window(total, logits * weight, start)
            geometry.add_window(norm, weight, start)
        assert total is not None  # tile_starts never returns an empty list
        return total / np.where(norm > 0, norm, np.float32(1))

    def starts(self, shape: Shape) -> list[Shape]:
        """First pixel (row, column) of each window on a canvas of `shape`; below 0 where the canvas is padded."""
        if self.window == "centre":
            return [geometry.centre_start(shape, self.size)]
        return [(y, x) for y in geometry.tile_starts(shape[0], self.size[0], self.overlap)
                for x in geometry.tile_starts(shape[1], self.size[1], self.overlap)]


def begin_clip(net: Net) -> None:
    """What a recurrent network remembers is of another clip, or of another window."""
    if reset := getattr(net, "reset", None):
        reset()


def to_native(logits: np.ndarray, shape: Shape) -> np.ndarray:
    """Logits [N, K, h, w] -> class indices uint8 [N, *shape], one frame at a time to keep memory small."""
    return np.stack([first_of_largest(geometry.resize_linear(frame, shape)) for frame in logits])


def first_of_largest(logits: np.ndarray) -> np.ndarray:
    """[K, H, W] -> argmax over K, uint8 [H, W], by whole planes: numpy's argmax along a first axis takes ten times as
    long."""
    best, classes = logits[0].copy(), np.zeros(logits.shape[1:], np.uint8)
    for k in range(1, len(logits)):
        classes[logits[k] > best] = k
        np.maximum(best, logits[k], out=best)
    return classes
