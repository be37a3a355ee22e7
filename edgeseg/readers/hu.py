"""Hounsfield units: what a CT must hold before a window is laid on it."""

from typing import Any

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.readers.nifti import read_case

AIR = -500.0
"""HU. Air is near -1000 and lung below -600, and every CT of a trunk holds some; no other tissue is below -200."""


def check_hu(frames: np.ndarray, where: str) -> None:
    """Raise EdgesegError when `frames` hold no air: they were windowed, shifted or rescaled, or are a crop."""
    low, high = float(frames.min()), float(frames.max())
    if low > AIR:
        raise EdgesegError(f"{where}: values from {low:g} to {high:g} are no Hounsfield units of a whole CT, whose air "
                           "is near -1000 (windowed already?): take the original, or ?hu=any to read it as it is")


def read_hu(*args: Any, **kwargs: Any) -> Case:
    """`read_case` of a CT.

    Raises:
        EdgesegError: as `read_case`, and for values that are no Hounsfield units.
    """
    case = read_case(*args, **kwargs)
    check_hu(case.frames, case.source)
    return case
