"""Ejection fraction (EF) of a clip or a stack, and how measured EF agrees with the reference.

Three read-outs, named in every table because they are not comparable: `naive` (areas in place of volumes, as
EchoDFKD's evaluate_LVEF: an area shrinks less than its volume, so an EF of 60 % reads as 46 % where the shape is kept),
`area-length` (one apical view, a solid of revolution) and `disks` (short-axis stacks: `volumes.volume_ml` sums them).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edgeseg.measure.phases import Phases, bridge
from edgeseg.measure.statistics import Agreement, Interval, agreement, bootstrap_interval, checked_pair
from edgeseg.measure.volumes import ejection_fraction, volume_ml

RESAMPLES = 2_000
"""Of pairs, for the interval of Pearson's r."""


@dataclass(frozen=True)
class EfAgreement:
    """Measured against reference EF, in points of percent.

    Attributes:
        n: pairs in which both are known. left_out: the others.
        r: Pearson's correlation with its bootstrap interval (NaN where it is not defined: fewer than two different
            values on a side).
        agreement: mean absolute error, Bland-Altman bias (measured - reference) and limits.
    """

    n: int
    left_out: int
    r: Interval
    agreement: Agreement


def naive_ef(end_diastolic_area: float, end_systolic_area: float) -> float:
    """100 (A_ED - A_ES) / A_ED in percent; NaN when the ventricle is empty at ED (EchoDFKD says 0 there)."""
    return ejection_fraction(end_diastolic_area, end_systolic_area)


def area_length_ml(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """8 A^2 / (3 pi L) in ml of a bool mask [H, W] of an apical view: the single-plane area-length volume.

    Exact for an ellipsoid of revolution about the long axis. (Dodge and Sandler 1960; Folland 1979 for echo.)

    Args:
        spacing: mm (row, column). With unknown spacing the volume has no unit, but EF is the same.

    Returns:
        0.0 for an empty mask.
    """
    area = np.count_nonzero(mask) * spacing[0] * spacing[1]
    return 8 * area**2 / (3 * np.pi * long_axis_mm(mask, spacing)) / 1000 if area else 0.0


def long_axis_mm(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Length in mm of a mask [H, W] along the principal axis of its pixels, edge to edge; 0.0 for an empty mask.

    Not the largest distance in the mask: where the mitral plane cuts it off that runs from the apex to a corner.
    """
    points = np.argwhere(mask) * np.asarray(spacing, float)
    if not len(points):
        return 0.0
    centred = points - points.mean(axis=0)
    axis = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    pixel = float(np.abs(axis) @ np.asarray(spacing, float))  # centres are half a pixel inside at either end
    return float(np.ptp(centred @ axis)) + pixel


def volume_curve(masks: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Area-length volume in ml of each frame: float64 [T] of bool masks [T, H, W]."""
    return np.array([area_length_ml(mask, spacing) for mask in masks])


def stack_ef(end_diastole: np.ndarray, end_systole: np.ndarray, spacing: Sequence[float]) -> float:
    """EF in percent of two short-axis stacks, bool [z, y, x] with `spacing` (z, y, x) in mm, by disk summation."""
    return ejection_fraction(volume_ml(end_diastole, spacing), volume_ml(end_systole, spacing))


def clip_ef(curve: np.ndarray, phases: Phases) -> float:
    """EF in percent of a clip, the mean over its beats: of a curve [T] of volumes, or of areas for the naive figure.

    An event's value is the median of its frame and the two beside it, lost frames bridged: no beat hangs on one frame.
    (The curve smoothed as for `find_phases` would have its extremes cut off: 2 to 3 points of EF.)

    Args:
        phases: the true events, or the frames of largest and smallest area (`find_phases(..., valves=False)`): where
            valves close early, the area has not turned yet.

    Returns:
        NaN without a beat, or when fewer than half of the frames have a volume.
    """
    values = bridge(curve)
    if not values.size:
        return float("nan")
    found = [ejection_fraction(*(float(np.median(values[max(t - 1, 0) : t + 2])) for t in beat))
             for beat in beats(phases)]
    known = [ef for ef in found if np.isfinite(ef)]
    return float(np.mean(known)) if known else float("nan")


def beats(phases: Phases) -> list[tuple[int, int]]:
    """(ED, ES) of each systole: an ED directly followed by an ES. Without one, the first ES and the ED after it."""
    events = sorted([(t, "ED") for t in phases.ed] + [(t, "ES") for t in phases.es])
    following = list(pairwise(events))
    found = [(a, b) for (a, first), (b, second) in following if (first, second) == ("ED", "ES")]
    return found or [(b, a) for (a, first), (b, second) in following if (first, second) == ("ES", "ED")][:1]


def ef_agreement(measured: Sequence[float], reference: Sequence[float]) -> EfAgreement:
    """Pearson's r, mean absolute error and Bland-Altman of EF in percent, one pair a patient. NaN pairs are left out.

    Raises:
        ValueError: lengths differ.
    """
    pairs = np.array([np.asarray(x, float) for x in checked_pair(measured, reference)])
    kept = pairs[:, ~np.isnan(pairs).any(axis=0)]
    r = bootstrap_interval(np.arange(kept.shape[1]), lambda index, axis: pearson(*kept[:, index.astype(int)]),
                           resamples=RESAMPLES)
    return EfAgreement(kept.shape[1], pairs.shape[1] - kept.shape[1], r, agreement(*kept))


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's r along the last axis; NaN where a side does not vary."""
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a**2).sum(axis=-1) * (b**2).sum(axis=-1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(scale > 0, (a * b).sum(axis=-1) / scale, np.nan)
