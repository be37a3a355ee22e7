"""Area curves of a left ventricle with known events: sharp enough to say where ED and ES are, with plateaus."""

import numpy as np

from edgeseg.measure.phases import Phases

FPS = 50
FRAME_TIME = 1 / FPS
EDA, ESA = 1600.0, 900.0


def beat(length: int, systole: int = 15, plateau: int = 3, kick: float = 0.2) -> np.ndarray:
    """One beat [length] from ED on: upper plateau, emptying over `systole` frames in all, lower plateau (ES is its
    first frame), early filling, diastasis, atrial kick. 1 at ED, 0 at ES."""
    filling = length - systole - plateau
    early = min(9, filling // 2)
    emptying = np.interp(np.arange(systole), [0, plateau, systole], [1, 1, 0])
    filled = np.interp(np.arange(filling), [0, early, filling - 5, filling], [0, 1 - kick, 1 - kick, 1])
    return np.concatenate([emptying, np.zeros(plateau), filled])


def clip(lengths, first: int = 20, last: int = 12, **shape) -> tuple[np.ndarray, Phases]:
    """A clip of beats of these lengths with `first` frames of diastole before and `last` of systole behind them."""
    parts = [beat(60, **shape)[-first:], *(beat(n, **shape) for n in lengths), beat(60, **shape)[:last]]
    starts = first + np.concatenate([[0], np.cumsum(lengths)])
    es = [int(s) + shape.get("systole", 15) for s in starts[:-1]]
    return ESA + (EDA - ESA) * np.concatenate(parts), Phases(tuple(int(s) for s in starts), tuple(es))


def off(found, truth) -> int:
    """Largest difference in frames, when both have the same number of events."""
    assert len(found) == len(truth), (found, truth)
    return max((abs(a - b) for a, b in zip(found, truth, strict=True)), default=0)
