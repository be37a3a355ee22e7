"""Clinical read-outs of masks: volume, ejection fraction, mass."""

from collections.abc import Sequence

import numpy as np

MYOCARDIUM_G_PER_ML = 1.05
"""Density of myocardium in g/ml, as cardiac MR practice takes it (SCMR's guidelines on post-processing)."""


def volume_ml(mask: np.ndarray, spacing: Sequence[float]) -> float:
    """Volume in ml of a bool array [z, y, x] with `spacing` (z, y, x) in mm: voxels x voxel volume.

    The distance between slices counts as slice thickness (Simpson's rule over the stack).
    """
    return float(np.count_nonzero(mask) * np.prod(np.asarray(spacing, float)) / 1000)


def ejection_fraction(end_diastolic_ml: float, end_systolic_ml: float) -> float:
    """(EDV - ESV) / EDV in percent; NaN when the end-diastolic volume is 0. Negative when ESV > EDV."""
    if not end_diastolic_ml > 0:
        return float("nan")
    return 100 * (end_diastolic_ml - end_systolic_ml) / end_diastolic_ml


def mass_g(myocardium_ml: float) -> float:
    """Mass in g of `myocardium_ml` of muscle."""
    return MYOCARDIUM_G_PER_ML * myocardium_ml
