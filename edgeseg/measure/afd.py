"""aFD, the average frame difference of detected ED and ES: in frames and ms, conditioned on the beat or free-running.

- `conditioned`: each true event has one estimate and |estimate - truth| is averaged over clips. By EchoDFKD's rule (the
  default) the truth picks the run of frames in which the estimate lies; by a detector it picks the nearest event.
  Nothing is said about events that are not there.
- `free_running`: a detector's events are paired one to one with the true ones; missed and false events are counted.

Published figures differ in their definition and data set (some are signed biases): see the tables that quote them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from edgeseg.measure.phases import PHASES, Phase, Phases, find_phases, nearest, published_estimate
from edgeseg.measure.statistics import Interval, bootstrap_interval

TOLERANCE = 2
"""Frames by which a detected event may be off and still count as found."""
REACH = 10
"""Frames within which a detected event belongs to a true one and its difference counts for the free-running aFD: 0.2 s
at 50 fps, less than half a beat."""
RESAMPLES = 2_000
"""Of clips, for the interval of F1."""

Detector = Callable[[np.ndarray, float], Phases]
"""(area curve [T], seconds between frames) -> events: `find_phases`, or anything like it."""


@dataclass(frozen=True)
class ClipCurve:
    """The area curve [T] of one clip with its true events. `frame_time`: seconds between frames."""

    clip: str
    curve: np.ndarray
    truth: Phases
    frame_time: float


@dataclass(frozen=True)
class FrameDifference:
    """Differences between estimated and true frames: a mean within each clip, then over the clips.

    Attributes:
        frames, ms: aFD, the mean of |estimate - truth|, with its bootstrap interval by clip; their n counts the clips
            with at least one difference.
        sd_frames, sd_ms: spread of the clips' values (n - 1).
        bias: mean of estimate - truth in frames: positive when late.
        missed: true events without an estimate, which no mean can hold.
    """

    frames: Interval
    sd_frames: float
    ms: Interval
    sd_ms: float
    bias: Interval
    missed: int


@dataclass(frozen=True)
class EventScore:
    """Detected against true events of one phase over all clips.

    Attributes:
        difference: aFD of the pairs within REACH frames (`missed` there: true events without such a partner).
        found: pairs within the tolerance. missed, false: true and detected events outside such a pair.
        border: events in no pair, of both kinds, within the tolerance of the first or the last frame, which are counted
            nowhere else: from the pixels of the clip nobody can tell them from their absence.
        f1: 2 found / (2 found + missed + false) with its bootstrap interval by clip. 1.0 where there was nothing to
            find and nothing was claimed, as precision and recall.
    """

    difference: FrameDifference
    found: int
    missed: int
    false: int
    border: int
    precision: float
    recall: float
    f1: Interval


def conditioned(clips: Sequence[ClipCurve], detect: Detector | None = None) -> dict[Phase, FrameDifference]:
    """aFD when the truth says which beat is meant: EchoDFKD's published rule, or the nearest event of `detect`.

    Where `detect` does not see an event, the nearest one is a beat away, and that is its difference.
    """
    return {phase: frame_difference([conditioned_delays(clip, phase, detect) for clip in clips],
                                    [clip.frame_time for clip in clips]) for phase in PHASES}


def conditioned_delays(clip: ClipCurve, phase: Phase, detect: Detector | None = None) -> list[float]:
    """estimate - truth in frames for each true event of one phase of one clip; NaN where there is no estimate."""
    truth = clip.truth.of(phase)
    if detect is None:
        return differences([published_estimate(clip.curve, r, phase) for r in truth], truth)
    events = detect(clip.curve, clip.frame_time).of(phase)
    return differences([nearest(events, r) for r in truth], truth)


def free_running(clips: Sequence[ClipCurve], detect: Detector = find_phases,
                 tolerance: int = TOLERANCE) -> dict[Phase, EventScore]:
    """Events found without any hint, against all true events of the clips.

    Only for clips whose every event is known: where two frames of many beats were traced (EchoNet-Dynamic), each of the
    other beats would be a false event.
    """
    events = [detect(clip.curve, clip.frame_time) for clip in clips]
    return {phase: event_score(clips, [e.of(phase) for e in events], phase, tolerance) for phase in PHASES}


def event_score(clips: Sequence[ClipCurve], events: Sequence[Sequence[int]], phase: Phase,
                tolerance: int = TOLERANCE) -> EventScore:
    """`free_running` for one phase, with `events` of each clip already detected."""
    counts, delays, border = [], [], 0
    for clip, found in zip(clips, events, strict=True):
        truth = clip.truth.of(phase)
        partner = pair(found, truth, REACH)
        delays.append(differences([partner.get(t) for t in truth], truth))
        hit = pair(found, truth, tolerance)
        lone_truth, lone_found = set(truth) - set(hit), set(found) - set(hit.values())
        hidden = {t for t in lone_truth | lone_found if min(t, len(clip.curve) - 1 - t) <= tolerance}
        border += len(lone_truth & hidden) + len(lone_found & hidden)
        counts.append((len(hit), len(lone_truth - hidden), len(lone_found - hidden)))
    table = np.array(counts, float).reshape(-1, 3)
    right, missed, false = (int(n) for n in table.sum(axis=0))
    f1 = bootstrap_interval(np.arange(len(table)), lambda index, axis: f1_of(table[index.astype(int)].sum(axis=-2)),
                            resamples=RESAMPLES)
    return EventScore(frame_difference(delays, [c.frame_time for c in clips]), right, missed, false, border,
                      share(right, false), share(right, missed), f1)


def pair(found: Sequence[int], truth: Sequence[int], reach: float) -> dict[int, int]:
    """{true event: detected event}, one to one: as many pairs within `reach` frames as there can be, of those the
    closest."""
    distance = np.abs(np.subtract.outer(np.asarray(truth, float), np.asarray(found, float)))
    never = 1 + distance.size * (reach + 1)  # dearer than all pairs within reach together
    rows, columns = linear_sum_assignment(np.where(distance <= reach, distance, never))
    return {truth[i]: found[j] for i, j in zip(rows, columns, strict=True) if distance[i, j] <= reach}


def f1_of(counts: np.ndarray) -> np.ndarray:
    """F1 of (found, missed, false) [..., 3]."""
    found, missed, false = np.moveaxis(counts, -1, 0)
    total = 2 * found + missed + false
    return np.where(total > 0, 2 * found / np.maximum(total, 1), 1.0)


def share(found: int, wrong: int) -> float:
    return found / (found + wrong) if found + wrong else 1.0


def differences(estimates: Sequence[float | None], truth: Sequence[float]) -> list[float]:
    """estimate - truth in frames, NaN where there is no estimate."""
    return [float("nan") if e is None else e - t for e, t in zip(estimates, truth, strict=True)]


def frame_difference(delays: Sequence[Sequence[float]], frame_times: Sequence[float]) -> FrameDifference:
    """Summary of the signed differences in frames of each clip (NaN: no estimate), `frame_times` in seconds."""
    known = [np.asarray(d, float)[~np.isnan(d)] if len(d) else np.empty(0) for d in delays]
    size = np.array([np.abs(d).mean() if d.size else np.nan for d in known])
    signed = [d.mean() if d.size else np.nan for d in known]
    ms = 1000 * size * np.asarray(frame_times, float)
    missed = sum(len(all_) - len(found) for all_, found in zip(delays, known, strict=True))
    return FrameDifference(bootstrap_interval(size), spread(size), bootstrap_interval(ms), spread(ms),
                           bootstrap_interval(signed), missed)


def spread(values: np.ndarray) -> float:
    """Standard deviation (n - 1) of the values that are not NaN; NaN for fewer than two."""
    values = values[~np.isnan(values)]
    return float(values.std(ddof=1)) if values.size > 1 else float("nan")
