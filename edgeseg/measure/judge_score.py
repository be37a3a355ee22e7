"""What an image-text judge says of masks and phases, without a label: formulas on similarities, no network.

A mask is judged by the pictures in which it is blacked out: a good one hides the left ventricle and leaves its wall.

    score = mean_t [ sim(expanded, NOTHING) - sim(expanded, LEFT VENTRICLE) ] + mean_t sim(masked, WALL)

`masked`: the mask is black; `expanded`: so is what lies within DILATION pixels of it, since a rim of cavity beside a
mask that is a pixel too small would still be seen. The published script (EchoDFKD) computes the dilation and then
judges the undilated mask twice, in pixels that both pictures share; these are the terms that it describes.

The mitral valve tells the phases: what the ventricle holds grows while the valve is open and no longer. So the sum of
sim(OPEN) - sim(CLOSED) over the frames so far follows the volume, up to a line. (The published notebook sums CLOSED -
OPEN and names the maxima ED as well. For a judge that knows what the words mean these are the minima.)
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from edgeseg.measure.overlap import above
from edgeseg.measure.phases import Phases, find_phases
from edgeseg.measure.statistics import Interval, bootstrap_interval

THRESHOLD = 127 / 255
"""Of the published script: a stored target (uint8) is inside above 127."""
DILATION = 2
"""Pixels: one pass of a kernel of 5 x 5 ones."""
RELAXATION_S = 0.07
"""The mitral valve opens by so much later than the aortic one closes (ES): isovolumic relaxation takes 50 to 90 ms."""
RESAMPLES = 2_000
"""Of clips, for the interval of a rank correlation."""

Similarities = Callable[[np.ndarray], np.ndarray]
"""Grey frames [T, H, W] in 0..255 -> cosine of each frame with each prompt [T, P]: `Judge.of_masks`, `Judge.of_valve`.
"""


@dataclass(frozen=True)
class MaskScore:
    """Of one clip, means over its frames. `hidden`: NOTHING - LEFT VENTRICLE with the dilated mask black; `wall`: WALL
    with the mask itself black. Without `wall` the mask that covers everything would be the best one."""

    hidden: float
    wall: float

    @property
    def score(self) -> float:
        return self.hidden + self.wall


def dilated(masks: np.ndarray, pixels: int = DILATION) -> np.ndarray:
    """Bool masks [T, H, W], grown by `pixels` in each frame, diagonally too: a square kernel of 2 pixels + 1."""
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return np.stack([cv2.dilate(m.astype(np.uint8), kernel) for m in masks]).astype(bool)


def blacked_out(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames [T, H, W] with 0 inside bool masks [T, H, W]: new ones, the given ones stay as they are."""
    return np.where(masks, frames.dtype.type(0), frames)


def score_masks(similarities: Similarities, frames: np.ndarray, masks: np.ndarray) -> MaskScore:
    """Judge the masks of one clip.

    Args:
        similarities: with the prompts (WALL, LEFT VENTRICLE, NOTHING), in this order.
        frames: grey [T, H, W], 0..255. masks: [T, H, W] bool, probabilities, or uint8 = 255 x probability.

    Raises:
        ValueError: masks of another shape than the frames.
    """
    if masks.shape != frames.shape:
        raise ValueError(f"masks {masks.shape} do not fit the frames {frames.shape}")
    inside = above(masks, THRESHOLD)
    return mask_score(similarities(blacked_out(frames, inside)), similarities(blacked_out(frames, dilated(inside))))


def mask_score(masked: np.ndarray, expanded: np.ndarray) -> MaskScore:
    """Of similarities [T, 3] to (WALL, LEFT VENTRICLE, NOTHING): of frames with the mask, with the dilated mask black.
    """
    return MaskScore(float(np.mean(expanded[:, 2] - expanded[:, 1])), float(np.mean(masked[:, 0])))


def valve_signal(valve: np.ndarray) -> np.ndarray:
    """A curve [T] that rises and falls with the ventricle's volume, of similarities [T, 2] to (CLOSED, OPEN).

    The sum of OPEN - CLOSED up to each frame, its linear trend removed, z-scored; zeros where nothing changes.
    """
    total = np.cumsum(valve[:, 1] - valve[:, 0])
    x = np.arange(len(total)) - (len(total) - 1) / 2
    total = total - total.mean()
    total = total - x * (x @ total) / max(x @ x, 1)
    spread = total.std()
    return total / spread if spread > 1e-9 else np.zeros(len(total))


def valve_phases(signal: np.ndarray, frame_time: float) -> Phases:
    """ED, the maxima (the mitral valve closes), and ES, RELAXATION_S before the minima (it opens); `frame_time` s."""
    lifted = signal - signal.min() + 1  # a curve of areas: 0 would be a frame without a measurement
    found = find_phases(lifted, frame_time, valves=False)
    es = (round(m - RELAXATION_S / frame_time) for m in found.es)
    return Phases(found.ed, tuple(e for e in es if e >= 0))


def rank_agreement(scores: np.ndarray, dice: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Do the judge and the labels put members in the same order? Spearman's correlation of their means over clips.

    Args:
        scores, dice: [members, clips]. A clip with a NaN is left out for all members.

    Returns:
        With an interval from a bootstrap over the clips (n of them), which every member is judged by.

    Raises:
        ValueError: different shapes, or fewer than three members (two are in order by chance).
    """
    a, b = np.asarray(scores, float), np.asarray(dice, float)
    if a.shape != b.shape or a.ndim != 2 or len(a) < 3:
        raise ValueError(f"scores and Dice of at least 3 members over the same clips are needed: {a.shape}, {b.shape}")
    known = np.flatnonzero(~np.isnan(a + b).any(axis=0))

    def statistic(index: np.ndarray, axis: int) -> np.ndarray:
        clips = index.astype(int)
        return spearman(a[:, clips].mean(axis=-1), b[:, clips].mean(axis=-1))

    return bootstrap_interval(known, statistic, resamples=resamples, seed=seed)


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of values [M, ...] over the first axis; 0 where all members of one side tie."""
    x, y = ranks(a), ranks(b)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return (x * y).sum(axis=0) / np.where(size > 0, size, 1.0)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks over the first axis of [M, ...] from 0, ties share the mean of theirs."""
    above_, same = values[:, None] > values[None], values[:, None] == values[None]
    return above_.sum(axis=1) + (same.sum(axis=1) - 1) / 2
