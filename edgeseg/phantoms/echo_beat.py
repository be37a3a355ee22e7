"""Time course of the echo phantom: volumes, valve and events of beats of varying length.

A beat starts at end-diastole, when the mitral valve closes: isovolumic contraction (EDV stays), ejection, end-systole
when the aortic valve closes, isovolumic relaxation (ESV stays), the mitral valve opens, early filling, diastasis,
atrial filling up to the next beat. Ejection time follows Weissler, Harris and Schoenfeld (Circulation 37, 1968):
413 - 1.7 x heart rate, in ms.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Beats:
    """Beats one after another; arrays have one entry per beat, times in s.

    Attributes:
        start: end-diastole; entry 0 lies before the clip's first frame, the last one after its last.
        contraction, ejection, relaxation: how long these phases last. edv: ml at `start`. ef: share, of every beat.
        early, atrial: share of the filling in the E and in the A wave. rest: how far the valve is open in between.
        twist: share by which the ventricle shortens while contracting, and lengthens while relaxing, at one volume.
    """

    start: np.ndarray
    contraction: float
    ejection: np.ndarray
    relaxation: float
    edv: np.ndarray
    ef: float
    early: float
    atrial: float
    rest: float
    twist: float

    def end_systole(self) -> np.ndarray:
        """Time of aortic closure in every beat but the last."""
        return self.start[:-1] + self.contraction + self.ejection

    def opening(self) -> np.ndarray:
        """Time at which the mitral valve opens in every beat but the last."""
        return self.end_systole() + self.relaxation


def sample_beats(rng: np.random.Generator, seconds: float, rate: float, irregular: float, edv: float,
                 ef: float) -> Beats:
    """Beats that cover a clip of `seconds`; `rate` per minute, `irregular`: deviation of a beat's length as a share."""
    mean = 60 / rate
    count = int(np.ceil(seconds / mean * 1.3)) + 4
    length = mean * np.clip(1 + irregular * rng.standard_normal(count), 0.72, 1.4)
    start = np.concatenate([[0.0], np.cumsum(length)]) - length[0] * (1 + rng.random())
    before = np.concatenate([[mean], length]) / mean  # a long beat fills more
    filled = edv * (1 + 0.12 * (before - 1)) * (1 + 0.01 * rng.standard_normal(count + 1))
    ejection = (0.413 - 0.0017 * 60 / length) * rng.uniform(0.93, 1.05)
    atrial = float(rng.uniform(0.15, 0.4)) * (1 if rng.random() < 0.93 else 0.1)
    haste = min(1.0, mean / 0.6)  # a fast heart leaves no time for long pauses: some filling is always left
    return Beats(
        start=start, contraction=haste * float(rng.uniform(0.03, 0.06)),
        ejection=np.clip(ejection, 0.15, 0.45 * length), relaxation=haste * float(rng.uniform(0.05, 0.09)),
        edv=filled, ef=ef, atrial=atrial, early=(1 - atrial) * float(rng.uniform(0.75, 0.95)),
        rest=float(rng.uniform(0.2, 0.6)), twist=float(rng.uniform(0.015, 0.035)))


@dataclass(frozen=True, eq=False)
class Moments:
    """The course at the frames' times, [T] each.

    Attributes:
        volume: ml. full: 0 at end-systole .. 1 at end-diastole of the beat. mitral: 0 closed .. 1 open.
        twist: relative change of length that no volume goes with.
    """

    volume: np.ndarray
    full: np.ndarray
    mitral: np.ndarray
    twist: np.ndarray


def moments(beats: Beats, times: np.ndarray) -> Moments:
    """The course at `times` (s)."""
    b = np.clip(np.searchsorted(beats.start, times, side="right") - 1, 0, len(beats.start) - 2)
    since, length = times - beats.start[b], np.diff(beats.start)[b]
    ejected = eased((since - beats.contraction) / beats.ejection[b], 0.85)
    opened = beats.contraction + beats.ejection[b] + beats.relaxation
    filling = length - opened
    e, a = np.minimum(0.2, 0.6 * filling), np.minimum(0.14, 0.4 * filling)
    slow = 1 - beats.early - beats.atrial
    filled = (beats.early * eased((since - opened) / e, 1.0) + beats.atrial * eased((since - length + a) / a, 0.8)
              + slow * np.clip((since - opened) / filling, 0, 1))
    esv = beats.edv[b] * (1 - beats.ef)
    volume = np.where(since < opened, beats.edv[b] - beats.ef * beats.edv[b] * ejected,
                      esv + (beats.edv[b + 1] - esv) * filled)
    return Moments(volume=volume, full=np.where(since < opened, 1 - ejected, filled), mitral=valve(beats, times),
                   twist=twisting(beats, times))


def eased(x: np.ndarray, share: float) -> np.ndarray:
    """0 before x = 0, 1 after x = 1: the first `share` of half a cosine, which for share < 1 stops abruptly at 1."""
    return (1 - np.cos(np.pi * share * np.clip(x, 0, 1))) / (1 - np.cos(np.pi * share))


def valve(beats: Beats, times: np.ndarray) -> np.ndarray:
    """How far the mitral valve is open: wide in the E wave, `rest` in diastasis, wide again in the A wave."""
    opening, end = beats.opening(), beats.start[1:]
    filling = end - opening
    e, a = np.minimum(0.2, 0.6 * filling), np.minimum(0.14, 0.4 * filling)
    kick = max(beats.rest, min(0.9, 3 * beats.atrial))
    at = np.stack([beats.start[:-1], opening, opening + 0.35 * e, opening + 0.55 * e, opening + e, end - a,
                   end - 0.55 * a, end], axis=1)
    how = np.array([0, 0, 1, 1, beats.rest, beats.rest, kick, 0])
    return np.interp(times, at.ravel(), np.tile(how, len(at)))


def twisting(beats: Beats, times: np.ndarray) -> np.ndarray:
    """Relative change of length at one volume: shorter at the end of contraction, longer at that of relaxation."""
    at = np.stack([beats.start[:-1], beats.start[:-1] + beats.contraction, beats.end_systole(), beats.opening(),
                   beats.opening() + 0.1 * (beats.start[1:] - beats.opening())], axis=1)
    return np.interp(times, at.ravel(), np.tile(beats.twist * np.array([0, -1, 0, 1, 0]), len(at)))


def events(beats: Beats, fps: float, count: int) -> tuple[list[int], list[int]]:
    """Indices of the frames nearest to mitral closure (ED) and to aortic closure (ES), of those inside the clip."""
    ed, es = (np.rint(t * fps).astype(int) for t in (beats.start, beats.end_systole()))
    return [int(i) for i in ed if 0 <= i < count], [int(i) for i in es if 0 <= i < count]
