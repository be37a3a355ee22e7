"""What another scanner, another protocol or another storage could do to a Case: named, seeded, and the truth with it.

Every function takes a Case and returns one with the same patient, in the grid in which a user would get that image:
frames and labels are changed together, and what a prediction is compared with is the labels of the changed case.
`perturbations` is the fixed table of benchmarks/robustness.py.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.geometry import canvas_shape, take_window
from edgeseg.labels import IGNORE
from edgeseg.phantoms.texture import smooth_noise, stream

OFF_CENTRE_MM = 60.0
MARGIN_MM = 5.0
"""What stays between a labelled pixel and the edge of the image when the heart is moved; else the image grows."""
FADE_MM = 12.0
"""Beyond the old edge of a moved image its mirror image fades into the background within about twice this."""
DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1), "up left": (-1, -1),
              "up right": (-1, 1), "down left": (1, -1), "down right": (1, 1)}
TURNS = {"turned 90 degrees": (1, False), "turned 180 degrees": (2, False), "turned 270 degrees": (3, False),
         "flipped left to right": (0, True), "flipped upside down": (2, True), "transposed": (1, True),
         "transposed along the other diagonal": (3, True)}
"""All flips and right-angle turns but the identity: name -> (quarter turns, mirrored first), as `turn` takes them."""


@dataclass(frozen=True)
class Perturbation:
    """One row of the table.

    Attributes:
        change: the perturbed case. slices: of N slices, the ones that are left (None: all); the unperturbed masks are
            then scored on these slices too, as basal and apical slices are harder than those between.
    """

    name: str
    group: str
    change: Callable[[Case], Case]
    slices: Callable[[int], slice] | None = None


def perturbations(seed: int = 0) -> tuple[Perturbation, ...]:
    """The table; `seed` is that of the noise and of the bias field, which also depend on the case's id."""
    rows = [(name, "orientation", partial(turn, quarters=q, mirrored=m)) for name, (q, m) in TURNS.items()]
    rows += [(f"{mm:g} mm pixels", "spacing", partial(resample, spacing=mm)) for mm in (0.7, 1.0, 1.25, 1.5, 2.0, 2.5)]
    rows += [(f"heart {OFF_CENTRE_MM:g} mm off centre, {name}", "position", partial(off_centre, direction=d))
             for name, d in DIRECTIONS.items()]
    rows += [(f"values x {f:g}", "intensity", partial(scale, factor=f)) for f in (0.1, 10.0, 100.0)]
    rows += [(f"values + {s:.0%} of the largest", "intensity", partial(offset, share=s)) for s in (0.1, 1.0)]
    rows += [(f"gamma {g:g}", "intensity", partial(gamma, exponent=g)) for g in (0.5, 0.7, 1.5, 2.0)]
    rows += [(f"stored in {b} bit", "bit depth", partial(store, bits=b)) for b in (8, 12, 16)]
    rows += [(f"noise, SNR {r:g}", "noise", partial(rician, snr=r, seed=seed)) for r in (50.0, 20.0, 10.0)]
    rows += [(f"bias field 1 : {r:g}", "bias field", partial(bias, ratio=r, seed=seed)) for r in (2.0, 3.0)]
    found = [Perturbation(*row) for row in rows]
    return (*found, *(Perturbation(name, "slices", partial(fewer, kept=kept), kept) for name, kept in
                      (("every second slice", every_second), ("the middle three slices", middle_three))))


def turn(case: Case, quarters: int, mirrored: bool) -> Case:
    """Mirrored left to right where asked, then turned counterclockwise by `quarters` x 90 degrees. (0..3, False) is
    undone by (-quarters, False); a mirrored one by itself."""
    def move(x: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(x[..., ::-1] if mirrored else x, quarters, axes=(-2, -1)))

    spacing = case.spacing[::-1] if quarters % 2 else case.spacing
    return replace(case, frames=move(case.frames), spacing=(spacing[0], spacing[1]),
                   labels=None if case.labels is None else move(case.labels))


def resample(case: Case, spacing: float) -> Case:
    """The same field of view in pixels of about `spacing` mm (a whole number of them fills it).

    Images: linear, widened to the new pixel where that is larger, so that nothing aliases. Labels: each value's mask in
    the same way, then the largest share. Detail that the image does not have does not come with smaller pixels.
    """
    native = (case.frames.shape[-2], case.frames.shape[-1])
    shape = canvas_shape(native, case.spacing, (spacing, spacing))
    rows, cols = (triangle_weights(n, m) for n, m in zip(native, shape, strict=True))
    exact = [n * s / m for n, s, m in zip(native, case.spacing, shape, strict=True)]
    labels = case.labels
    if labels is not None:
        values = np.unique(labels)
        labels = values[np.stack([rows @ (labels == v) @ cols.T for v in values]).argmax(axis=0)]
    return replace(case, frames=rows @ case.frames @ cols.T, spacing=(exact[0], exact[1]), labels=labels)


def triangle_weights(n_in: int, n_out: int) -> np.ndarray:
    """float32 [n_out, n_in]: linear resampling along one axis with half-pixel centres; a triangle of the new pixels'
    width where these are larger. Each row sums to 1."""
    at = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
    weights = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n_in)) / max(1.0, n_in / n_out))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def off_centre(case: Case, direction: tuple[int, int], mm: float = OFF_CENTRE_MM) -> Case:
    """The heart's centre (of all labelled pixels) `mm` from the image's centre, towards `direction` (row, column).

    The field of view moves by whole pixels, and grows evenly only where it would cut a label. What it did not show
    before is the image mirrored at its edge, fading into the background (1st percentile of the slice): a body that
    ends, then air. No pixel is resampled.

    Raises:
        EdgesegError: no labelled pixel.
    """
    if case.labels is None or not (at := np.argwhere((case.labels > 0) & (case.labels != IGNORE))[:, 1:]).size:
        raise EdgesegError(f"{case.source or case.id}: has no labelled pixel, so nobody knows where its heart is")
    length = np.hypot(*direction)
    centre = at.mean(axis=0) - [d / length * mm / s for d, s in zip(direction, case.spacing, strict=True)]
    reach = np.maximum(centre - at.min(axis=0), at.max(axis=0) - centre) + MARGIN_MM / np.array(case.spacing)
    size = [max(n, 2 * int(np.ceil(r)) + 1) for n, r in zip(case.frames.shape[-2:], reach, strict=True)]
    start = [round(c - (n - 1) / 2) for c, n in zip(centre, size, strict=True)]
    window = (start[0], start[1]), (size[0], size[1])
    return replace(case, frames=wider(case.frames, case.spacing, *window), labels=take_window(case.labels, *window))


def wider(frames: np.ndarray, spacing: tuple[float, float], start: tuple[int, int],
          size: tuple[int, int]) -> np.ndarray:
    """float32 [N, C, H, W] -> [N, C, *size] from `start`; outside the image its mirror, fading into the background."""
    mirrored, outside = [], []
    for first, count, n, s in zip(start, size, frames.shape[-2:], spacing, strict=True):
        at = np.arange(first, first + count)
        folded = at % (2 * n)
        mirrored.append(np.minimum(folded, 2 * n - 1 - folded))
        outside.append(np.maximum(0, np.maximum(-at, at - n + 1)) * s)
    share = np.exp(-0.5 * (np.hypot(outside[0][:, None], outside[1]) / FADE_MM) ** 2).astype(np.float32)
    background = np.percentile(frames, 1, axis=(-2, -1), keepdims=True).astype(np.float32)
    return background + share * (frames[..., mirrored[0][:, None], mirrored[1]] - background)


def scale(case: Case, factor: float) -> Case:
    """Every value times `factor`."""
    return replace(case, frames=case.frames * np.float32(factor))


def offset(case: Case, share: float) -> Case:
    """Every value plus `share` of the largest one."""
    return replace(case, frames=case.frames + np.float32(share * case.frames.max()))


def gamma(case: Case, exponent: float) -> Case:
    """largest (value / largest) ^ exponent; values below 0 become 0. 1 / exponent undoes it."""
    largest = top(case)
    return replace(case, frames=largest * np.maximum(case.frames / largest, 0) ** np.float32(exponent))


def store(case: Case, bits: int) -> Case:
    """Whole numbers from 0 to 2^bits - 1, which is the largest value (those below 0 become 0)."""
    return replace(case, frames=np.rint(np.maximum(case.frames / top(case), 0) * np.float32(2**bits - 1)))


def rician(case: Case, snr: float, seed: int = 0) -> Case:
    """Magnitude of the signal plus complex noise, its deviation the volume's 99th percentile / `snr` in both parts.

    That is added to the noise that the image already has. Another `snr` scales the same draw.
    """
    noise = stream(seed, zlib.crc32(case.id.encode()), 1).standard_normal((2, *case.frames.shape), np.float32)
    noise *= np.float32(np.percentile(case.frames, 99) / snr)
    return replace(case, frames=np.hypot(case.frames + noise[0], noise[1]))


def bias(case: Case, ratio: float, seed: int = 0) -> Case:
    """A smooth random gain, the same for all slices: where it is largest `ratio` times where it is smallest."""
    shape = (case.frames.shape[-2], case.frames.shape[-1])
    field = smooth_noise(stream(seed, zlib.crc32(case.id.encode()), 2), shape, 0.75 * max(shape))
    field = (field - field.min()) / np.ptp(field)
    return replace(case, frames=case.frames * np.float32(ratio) ** (field - np.float32(0.5)))


def fewer(case: Case, kept: Callable[[int], slice]) -> Case:
    """Only the slices that `kept` leaves of N."""
    chosen = kept(len(case.frames))
    gap = None if case.slice_spacing is None else case.slice_spacing * (chosen.step or 1)
    return replace(case, frames=case.frames[chosen], slice_spacing=gap,
                   labels=None if case.labels is None else case.labels[chosen])


def every_second(count: int) -> slice:
    return slice(0, count, 2)


def middle_three(count: int) -> slice:
    """Of fewer than three, all."""
    first = max(0, (count - 3) // 2)
    return slice(first, min(count, first + 3))


def top(case: Case) -> np.float32:
    """The largest value.

    Raises:
        EdgesegError: it is not above 0.
    """
    if (largest := case.frames.max()) <= 0:
        raise EdgesegError(f"{case.source or case.id}: no value is above 0: gamma and bit depth mean nothing here")
    return np.float32(largest)
