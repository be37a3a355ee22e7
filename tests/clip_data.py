"""Clips of a bright disc that beats on a dark background: known masks, no anatomy. Synthetic."""

from functools import partial

import numpy as np

from edgeseg.case import Case
from edgeseg.labels import LabelScheme
from edgeseg.readers import CaseRef, Dataset

SCHEME = LabelScheme(("background", "LV"))
SIZE = 32


def clip(name: str, seed: int, frames: int = 12, labelled: bool = True) -> Case:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    centre, period = rng.uniform(12, 20, 2), rng.uniform(8, 12)
    radius = 7 + 2 * np.cos(2 * np.pi * np.arange(frames) / period)
    masks = np.stack([np.hypot(y - centre[0], x - centre[1]) < r for r in radius])
    grey = np.where(masks, 40.0, 140.0) + rng.normal(0, 15, masks.shape)
    return Case(name, name, np.clip(grey, 0, 255)[:, None].astype(np.float32), (1.0, 1.0), "time", frame_time=0.02,
                labels=masks.astype(np.uint8) if labelled else None, scheme=SCHEME if labelled else None)


def clips(count: int = 6, labelled: bool = True, frames: int = 12) -> Dataset:
    """The first are for training, one is for dev, one for val."""
    splits = ["train"] * (count - 2) + ["dev", "val"]
    refs = tuple(CaseRef(id=f"clip{i}", patient=f"clip{i}", split=s, phase=None, group=None, vendor=None,
                         load=partial(clip, f"clip{i}", i, frames, labelled)) for i, s in enumerate(splits))
    return Dataset("discs", "discs:", refs, SCHEME if labelled else None, "CC0")
