"""aFD against the sampling rate: fewer frames a second go in, the area curve is brought back to the native frames.

EchoDFKD shows this for EchoNet-Dynamic without code; this is our reading. Frames are kept or left out, never blended: a
scanner at a lower rate shows no mixtures. A recurrent network runs over the kept frames alone.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.measure.afd import (
    ClipCurve,
    Detector,
    EventScore,
    FrameDifference,
    conditioned,
    conditioned_delays,
    frame_difference,
    free_running,
)
from edgeseg.measure.phases import PHASES, Phase, find_phases, true_phases

AreaCurve = Callable[[Case], np.ndarray]
"""A clip of T frames -> the area of the left ventricle in each [T]: a network with `phases.area_curve`, usually."""


@dataclass(frozen=True)
class SamplingRow:
    """One sampling rate. All differences are in native frames and ms.

    Attributes:
        name: "every 2" or "25 fps".
        fps: mean over clips of the frames a second that were kept.
        published: conditioned on the beat by EchoDFKD's rule. free: all events by the detector.
        mean: ED and ES of `published` together: the mean within a clip over its events of both.
    """

    name: str
    fps: float
    published: dict[Phase, FrameDifference]
    free: dict[Phase, EventScore]
    mean: FrameDifference


def sampling_rates(cases: Iterable[Case], area_curve: AreaCurve, every: Sequence[int] = (1, 2, 3, 4),
                   fps: Sequence[float] = (), detect: Detector = find_phases) -> list[SamplingRow]:
    """One row for each stride of `every` (keep each k-th frame) and for each target rate of `fps`.

    Args:
        cases: clips with `frame_time` and known events (`provenance["echo"]`); others are left out.

    Raises:
        EdgesegError: no clip has a known event; `area_curve` gave another number of areas than it got frames.
    """
    names = [f"every {k}" for k in every] + [f"{rate:g} fps" for rate in fps]
    curves: list[list[ClipCurve]] = [[] for _ in names]
    rates: list[list[float]] = [[] for _ in names]
    for case in cases:
        truth = true_phases(case)
        if not (truth.ed or truth.es) or case.frame_time is None:
            continue
        frames, native = len(case.frames), case.frame_time
        kept = [np.arange(0, frames, k) for k in every] + [positions_at(frames, 1 / native, rate) for rate in fps]
        times = [native * k for k in every] + [1 / rate for rate in fps]
        for row, (positions, frame_time) in enumerate(zip(kept, times, strict=True)):
            curve = native_curve(areas(case, positions, frame_time, area_curve), positions, frames)
            curves[row].append(ClipCurve(case.id, curve, truth, native))
            rates[row].append(1 / frame_time)
    if not curves or not curves[0]:
        raise EdgesegError("no clip here has known ED or ES frames: use a data set with phases, or phantom:echo")
    return [sampling_row(*parts, detect) for parts in zip(names, rates, curves, strict=True)]


def positions_at(frames: int, native_fps: float, fps: float) -> np.ndarray:
    """Native frame nearest to each time n / `fps` of a clip: int [..]. Above the native rate frames repeat."""
    count = int((frames - 1) * fps / native_fps + 1e-9) + 1
    return np.minimum(np.rint(np.arange(count) * native_fps / fps).astype(int), frames - 1)


def at_positions(case: Case, positions: np.ndarray, frame_time: float) -> Case:
    """The clip with these frames alone; what its provenance said of frame numbers no longer holds and is dropped."""
    provenance = {key: value for key, value in case.provenance.items() if key not in ("echo", "annotators")}
    labels = None if case.labels is None else case.labels[positions]
    return replace(case, frames=case.frames[positions], labels=labels, frame_time=frame_time, provenance=provenance)


def areas(case: Case, positions: np.ndarray, frame_time: float, area_curve: AreaCurve) -> np.ndarray:
    curve = np.asarray(area_curve(at_positions(case, positions, frame_time)), float)
    if curve.shape != positions.shape:
        raise EdgesegError(f"{case.source or case.id}: {len(positions)} frames gave areas of shape {curve.shape}")
    return curve


def native_curve(curve: np.ndarray, positions: np.ndarray, frames: int) -> np.ndarray:
    """Areas at native `positions` (ascending) -> one for each of `frames` native frames, linear in between.

    Repeated positions are averaged, the ends are held. A NaN leaves NaN up to its kept neighbours.
    """
    at, which = np.unique(positions, return_inverse=True)
    mean = np.bincount(which, curve) / np.bincount(which)
    return np.interp(np.arange(frames), at, mean)


def sampling_row(name: str, rates: Sequence[float], clips: Sequence[ClipCurve], detect: Detector) -> SamplingRow:
    both = [[d for phase in PHASES for d in conditioned_delays(clip, phase)] for clip in clips]
    mean = frame_difference(both, [clip.frame_time for clip in clips])
    return SamplingRow(name, float(np.mean(rates)), conditioned(clips), free_running(clips, detect), mean)
