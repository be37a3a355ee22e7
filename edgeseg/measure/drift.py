"""Drift of a recurrent network in INT8: does its error grow with the length of the stream?

Of each clip, (Dice INT8 - Dice FP32) over frames 181-200 minus the same over frames 1-20; then the mean over clips. An
error that is there from the first frame on is for the other gates: this one sees what builds up in the states.
"""

from collections.abc import Sequence

import numpy as np

from edgeseg.labels import IGNORE
from edgeseg.measure.overlap import dice_per_class
from edgeseg.measure.statistics import Interval, bootstrap_interval

FRAMES = 200
EARLY, LATE = slice(0, 20), slice(180, 200)
LIMIT = -0.005
"""Least drift with which INT8 is admitted: over 200 frames (4 s of echo) it may lose half of what the gate on the mean
Dice allows it at all."""


def there_and_back(frames: int, length: int = FRAMES) -> np.ndarray:
    """Indices int64 [length] into a clip of `frames` frames, played forwards and backwards until it is long enough: no
    jump, which would be a test of something else."""
    turns = np.abs((np.arange(length) + frames - 1) % max(2 * frames - 2, 1) - (frames - 1))
    return turns


def frame_dice(predicted: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Mean Dice over the foreground classes of each frame: class indices [T, H, W] -> float64 [T]. NaN where `truth` is
    IGNORE in every pixel: nobody labelled that frame."""
    return np.array([dice_per_class(p, t, num_classes).mean() if (t != IGNORE).any() else np.nan
                     for p, t in zip(predicted, truth, strict=True)])


def drift(int8: Sequence[np.ndarray], fp32: Sequence[np.ndarray]) -> Interval:
    """Mean over clips with its bootstrap interval; at or above LIMIT is good.

    Args:
        int8, fp32: for each clip the Dice of each of its first 200 frames (`frame_dice`), NaN where there is none.
            Clips without a labelled frame among the first or the last 20 are left out.

    Raises:
        ValueError: fewer than 200 frames, or another number of clips.
    """
    changes = []
    for mine, theirs in zip(int8, fp32, strict=True):
        if min(len(mine), len(theirs)) < FRAMES:
            raise ValueError(f"drift is measured over {FRAMES} frames, not {min(len(mine), len(theirs))}")
        lost = np.asarray(mine[:FRAMES], float) - np.asarray(theirs[:FRAMES], float)
        early, late = (part[~np.isnan(part)] for part in (lost[EARLY], lost[LATE]))
        changes.append(late.mean() - early.mean() if early.size and late.size else np.nan)
    return bootstrap_interval(changes)
