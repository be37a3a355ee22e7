"""End-diastole (ED) and end-systole (ES) from the area curve of the left ventricle: EchoDFKD's rule and a better one.

Frames are counted from 0. Two rules:

- `published_estimate` (EchoDFKD, evaluate_aFD): given a reference frame, the extreme of the run of frames beyond the
  clip's median whose nearer end point is closest to the reference. The reference selects the beat, so what it measures
  is conditioned on the truth. `published_phases` is the same rule without a reference: every run is an event.
- `find_phases`: all beats of a clip, without any reference, from the smoothed curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import gaussian_filter1d, median_filter
from scipy.signal import find_peaks

from edgeseg.case import Case
from edgeseg.measure.overlap import above

Phase = Literal["ED", "ES"]
PHASES: tuple[Phase, Phase] = ("ED", "ES")

PUBLISHED_AREA_THRESHOLD = 25 / 255
"""EchoDFKD counts a pixel of its area curve from this probability on (and from 80/255 in its Dice)."""

SMOOTHING_S = 0.06
"""Gaussian sigma in seconds: three frames at 50 fps, short beside the 0.2 to 0.4 s of a systole."""
SPIKE_S = 0.04
"""A median filter first takes out disturbances of at most this many seconds (two frames at 50 fps)."""
PROMINENCE = 0.35
"""Least swing of a beat, as a share of the clip's swing (5th to 95th percentile): the wave of the early filling and the
dip before the atrial kick stay below it, a premature beat mostly above."""
TURN = 0.03
"""An extreme near an end of the clip must have been seen to turn by this share of the clip's swing on that side."""
TILT_PER_S = 0.4
"""Slope added to the curve, in swings of the clip a second: of a flat diastasis the last frame before the fall becomes
ED, of a flat end of systole the first ES, whatever the noise. An atrial kick is five times as steep and stays put."""
VALVE_LAG_S = 0.03
"""ED and ES are the closures of the mitral and the aortic valve, which begin an isovolumic plateau of 30 to 90 ms; the
extreme of the curve lies inside it. Seconds by which the event comes before that extreme."""
FALL, ONSET = 0.2, 0.6
"""The top of the curve is flat, and noise alone says where its largest area lies; the fall of systole is steep. From
where the curve has gone the share FALL of its way to the lowest, ED lies back by ONSET times the rest of the way's
time (median of the clip's beats: the faster the heart, the shorter).

Lag and onset: set on train clips of both phantom domains (other hearts than those of any table), with true masks."""
NETWORK_DELAY_S = 0.01
"""Masks of a network follow the heart: seconds by which a ConvLSTM student's valves closed late, ED and ES alike (42
clips of the shifted phantom domain, other hearts than those of any table)."""
LEAST_SWING = 0.05
"""A clip whose area swings by less than this share of its median has no beats (or nobody can see them)."""


@dataclass(frozen=True)
class Phases:
    """Frame indices of a clip's events, ascending."""

    ed: tuple[int, ...] = ()
    es: tuple[int, ...] = ()

    def of(self, phase: Phase) -> tuple[int, ...]:
        return self.ed if phase == "ED" else self.es


def true_phases(case: Case) -> Phases:
    """The events that a reader or a phantom knows of a clip (`provenance["echo"]`), empty where it knows none."""
    known = case.provenance.get("echo", {})
    return Phases(tuple(sorted(known.get("ed") or ())), tuple(sorted(known.get("es") or ())))


def area_curve(masks: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Pixels of each frame beyond `threshold`: float64 [T] of masks [T, H, W].

    Args:
        masks: bool, probabilities (floats 0..1), or uint8 = 255 x probability (as stored targets).

    Returns:
        Areas in pixels; NaN for a frame that holds a NaN.
    """
    areas = np.count_nonzero(above(masks, threshold), axis=(1, 2)).astype(float)
    areas[np.isnan(masks).any(axis=(1, 2))] = np.nan
    return areas


def published_estimate(curve: np.ndarray, reference: float, phase: Phase) -> int | None:
    """EchoDFKD's estimate of the event that `reference` is about; None when no frame lies beyond the median.

    A run that holds the reference always wins (its neighbours end beyond its own ends). Where none does, the nearer end
    decides, however far the run's extreme lies from it; where drift joins beats to one run, the extreme may be that of
    another beat. (The published z-score of the curve changes nothing here and is left out.)
    """
    signal = downwards(curve, phase)
    found = runs_below_median(signal)
    if not found:
        return None
    start, stop = min(found, key=lambda run: min(abs(run[0] - reference), abs(run[1] - 1 - reference)))
    return lowest(signal, start, stop)


def published_phases(curve: np.ndarray) -> Phases:
    """EchoDFKD's rule without a reference: the extreme of every run beyond the median."""
    def events(phase: Phase) -> tuple[int, ...]:
        signal = downwards(curve, phase)
        return tuple(lowest(signal, start, stop) for start, stop in runs_below_median(signal))

    return Phases(events("ED"), events("ES"))


def downwards(curve: np.ndarray, phase: Phase) -> np.ndarray:
    """The curve with the events of `phase` at its minima."""
    return np.asarray(curve, float) * (-1 if phase == "ED" else 1)


def runs_below_median(signal: np.ndarray) -> list[tuple[int, int]]:
    """Maximal runs [start, stop) of frames strictly below the median of `signal`; a NaN frame is in none."""
    if np.isnan(signal).all():
        return []
    inside = np.concatenate(([False], signal < np.nanmedian(signal), [False]))
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]


def lowest(signal: np.ndarray, start: int, stop: int) -> int:
    return start + int(np.argmin(signal[start:stop]))


def find_phases(curve: np.ndarray, frame_time: float, valves: bool = True, delay: float = 0.0
                ) -> Phases:
    """All ED and ES frames of a clip, ED and ES in turn, without a reference.

    The smoothed and slightly tilted curve's extremes of enough prominence: two neighbouring maxima that both stand out
    by it have such a minimum between them, so the two kinds alternate by themselves. An extreme near an end of the
    clip is judged by its inner side and must have been seen to turn on its outer one.

    Args:
        curve: area of each frame [T], in any unit. NaN and 0 are frames without a measurement (a ventricle always has
            an area: an empty mask is a failure) and are bridged.
        frame_time: seconds between frames.
        valves: the frames in which the valves close; False: those of largest and smallest area.
        delay: seconds by which the masks are late; NETWORK_DELAY_S for those of a network. Of valves alone.

    Returns:
        No events when fewer than half of the frames were measured, or when nothing beats.
    """
    smoothed = smooth(curve, frame_time)
    if not smoothed.size:
        return Phases()
    swing = float(np.subtract(*np.percentile(smoothed, (95, 5))))
    if swing < LEAST_SWING * np.median(smoothed):
        return Phases()
    level = smoothed / swing
    tilted = level + TILT_PER_S * frame_time * np.arange(len(level))
    ed, es = peaks(tilted), peaks(-tilted)
    if valves:
        ed = ed_of_falls(level, ed, es, frame_time) - delay / frame_time
        es = es - (VALVE_LAG_S + delay) / frame_time
    ed, es = (np.rint(np.maximum(x, 0)).astype(int) for x in (ed, es))
    return Phases(tuple(ed.tolist()), tuple(es.tolist()))


def network_phases(curve: np.ndarray, frame_time: float) -> Phases:
    """`find_phases` of a network's masks, which are late by NETWORK_DELAY_S."""
    return find_phases(curve, frame_time, delay=NETWORK_DELAY_S)


def ed_of_falls(level: np.ndarray, tops: np.ndarray, lows: np.ndarray, frame_time: float) -> np.ndarray:
    """Where the mitral valve closes, from the falls of the curve.

    Args:
        level: the curve [T]. tops, lows: its extremes, between frames. A top whose low the clip does not show is taken
            itself, less VALVE_LAG_S.
    """
    found, falls = tops - VALVE_LAG_S / frame_time, []
    for k, top in enumerate(tops):
        start, low = round(top), lows[lows > top][:1]
        if low.size:
            mark = level[start] - FALL * (level[start] - level[round(low[0])])
            n = start + 1 + int(np.argmax(level[start + 1 :] <= mark))
            falls.append((k, n - (mark - level[n]) / (level[n - 1] - level[n]), low[0]))
    if falls:
        back = ONSET * np.median([low - crossing for _, crossing, low in falls])
        for k, crossing, _ in falls:
            found[k] = crossing - back
    return found


def smooth(curve: np.ndarray, frame_time: float) -> np.ndarray:
    """The curve [T] without gaps, spikes and noise; [0] when fewer than half of its frames, or 3, were measured."""
    bridged = bridge(curve)
    if not bridged.size:
        return bridged
    spikes = 2 * round(SPIKE_S / frame_time) + 1
    return gaussian_filter1d(median_filter(bridged, spikes, mode="nearest"), SMOOTHING_S / frame_time, mode="nearest")


def bridge(curve: np.ndarray) -> np.ndarray:
    """The curve with NaN, infinite and zero frames interpolated from their neighbours; [0] when too few are left."""
    values = np.asarray(curve, float)
    known = np.isfinite(values) & (values > 0)
    if np.count_nonzero(known) < max(3, len(values) / 2):
        return np.empty(0)
    return np.interp(np.arange(len(values)), np.flatnonzero(known), values[known])


def peaks(x: np.ndarray) -> np.ndarray:
    """Maxima of a curve (in swings of the clip) that stand out by PROMINENCE and turn by TURN on both sides.

    Places between frames, float64 [..]: the vertex of the parabola through each maximum and its neighbours.
    """
    walled = np.pad(x, 1, constant_values=x.min() - 1)  # what lies outside the clip limits no prominence
    found = find_peaks(walled, prominence=PROMINENCE)[0] - 1
    p = np.array([p for p in found if x[p] - max(x[: p + 1].min(), x[p:].min()) >= TURN], int)
    before, at, after = x[p - 1], x[p], x[p + 1]  # a maximum that turns on both sides has both neighbours
    return p + (after - before) / 2 / np.maximum(2 * at - before - after, 1e-12)


def nearest(events: Sequence[int], reference: float) -> int | None:
    """The event closest to `reference` (the earlier one of two), None without events."""
    return min(events, key=lambda event: abs(event - reference), default=None)
