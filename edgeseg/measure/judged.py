"""A judge at work: bundles on clips, and whether a judge can be believed at all (on masks whose Dice is known)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE
from edgeseg.measure import afd
from edgeseg.measure.judge_score import Similarities, rank_agreement, score_masks, valve_phases, valve_signal
from edgeseg.measure.overlap import dice
from edgeseg.measure.phases import area_curve, network_phases
from edgeseg.measure.statistics import Interval, bootstrap_interval
from edgeseg.readers import CaseRef

SCHEMA = "edgeseg.judge/1"
STRUCTURE = "LV"


@dataclass
class Member:
    """One bundle, a value a clip: the judge's `score` with its parts `hidden` and `wall`, `dice` (NaN without labels);
    `curves`: its area curve beside the judge's phases."""

    name: str
    score: list[float] = field(default_factory=list)
    hidden: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    dice: list[float] = field(default_factory=list)
    curves: list[afd.ClipCurve] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Means over clips, and how its ED and ES agree with those that the judge sees in the mitral valve."""
        means = {k: bootstrap_interval(getattr(self, k)) for k in ("score", "hidden", "wall", "dice")}
        return {"name": self.name, **means, "phases": afd.free_running(self.curves, network_phases)}


@dataclass
class Judged:
    """What a judge says of some bundles; `agreement` with Dice over them, of at least three on labelled clips."""

    members: list[Member]
    clips: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def agreement(self) -> Interval | None:
        scores, values = (np.array([getattr(m, k) for m in self.members]) for k in ("score", "dice"))
        if len(self.members) < 3 or np.isnan(values).any(axis=0).all():
            return None
        return rank_agreement(scores, values)

    def document(self) -> dict[str, Any]:
        rows = [{"clip": clip, "member": m.name, "score": m.score[i], "hidden": m.hidden[i], "wall": m.wall[i],
                 "dice": m.dice[i]} for m in self.members for i, clip in enumerate(self.clips)]
        return {"schema": SCHEMA, **self.about, "notes": self.notes, "members": [m.summary() for m in self.members],
                "spearman": self.agreement, "rows": rows}


def judge_bundles(paths: Sequence[Path], refs: Iterable[CaseRef], of_masks: Similarities, of_valve: Similarities,
                  every: int = 1, precision: str = "auto", progress: Callable[[str], None] = lambda name: None
                  ) -> Judged:
    """Let a judge score the left ventricle of bundles on clips, one clip in memory at a time. A clip that cannot be
    read is left out, with a note.

    Args:
        of_masks, of_valve: the judge (`Similarities`).
        every: masks are judged in every so many frames (all frames count for the phases).

    Raises:
        EdgesegError: no clip that can be read, a bundle without LV.
    """
    from edgeseg.runtime.segmenter import Segmenter

    segmenters = [Segmenter(path, precision=precision) for path in paths]
    for s in segmenters:
        if STRUCTURE not in s.scheme.names:
            raise EdgesegError(f"{s.bundle.path}: segments {', '.join(s.scheme.foreground)}, not {STRUCTURE}")
    result = Judged([Member(s.bundle.path.name) for s in segmenters])
    for ref in refs:
        try:
            case = ref.load()
            frames = grey_frames(case)
        except EdgesegError as error:
            result.notes.append(f"left out: {error}")
            progress(ref.id)
            continue
        assert case.frame_time is not None
        truth = valve_phases(valve_signal(of_valve(frames)), case.frame_time)
        manual = manual_masks(case)
        for segmenter, member in zip(segmenters, result.members, strict=True):
            found = segmenter.segment_volume(case.frames, case.spacing)
            if not found.ok:
                result.notes.append(f"{member.name}: {case.id}: {found.status}")
            masks = found.labels == segmenter.scheme.values[segmenter.scheme.names.index(STRUCTURE)]
            score = score_masks(of_masks, frames[::every], masks[::every])
            member.score.append(score.score)
            member.hidden.append(score.hidden)
            member.wall.append(score.wall)
            member.dice.append(clip_dice(masks, manual))
            member.curves.append(afd.ClipCurve(case.id, area_curve(masks), truth, case.frame_time))
        result.clips.append(case.id)
        progress(ref.id)
    if not result.clips:
        raise EdgesegError(result.notes[0].removeprefix("left out: ") if result.notes else
                           "no clip to judge: choose another --data or --split")
    return result


def grey_frames(case: Case) -> np.ndarray:
    """[T, H, W] of a clip with one channel."""
    if case.axis != "time" or case.frame_time is None or case.frames.shape[1] != 1:
        raise EdgesegError(f"{case.source or case.id}: a judge of echo looks at grey clips, not at this image")
    return case.frames[:, 0]


def manual_masks(case: Case) -> dict[int, np.ndarray]:
    """The labelled frames of a case with their left ventricle, bool [H, W]; empty without labels."""
    if case.labels is None or case.scheme is None or STRUCTURE not in case.scheme.names:
        return {}
    value = case.scheme.values[case.scheme.names.index(STRUCTURE)]
    return {t: frame == value for t, frame in enumerate(case.labels) if (frame != IGNORE).all()}


def clip_dice(masks: np.ndarray, manual: dict[int, np.ndarray]) -> float:
    """Mean Dice over the labelled frames; NaN without any."""
    return float(np.mean([dice(masks[t], m) for t, m in manual.items()])) if manual else float("nan")


def spoiled(masks: np.ndarray) -> dict[str, np.ndarray]:
    """True masks bool [T, H, W] and what becomes of them when they are spoiled in known ways, from little to all."""
    def morphed(operation: int, pixels: int) -> np.ndarray:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * pixels + 1, 2 * pixels + 1))
        return np.stack([cv2.morphologyEx(m.astype(np.uint8), operation, kernel) for m in masks]).astype(bool)

    def shifted(pixels: int) -> np.ndarray:
        moved = np.zeros_like(masks)
        moved[:, :, pixels:] = masks[:, :, :-pixels]
        return moved

    return ({"true": masks}
            | {f"shifted by {p}": shifted(p) for p in (3, 6, 10, 16)}
            | {f"eroded by {p}": morphed(cv2.MORPH_ERODE, p) for p in (3, 5, 8)}
            | {f"grown by {p}": morphed(cv2.MORPH_DILATE, p) for p in (3, 6, 10)}
            | {"empty": np.zeros_like(masks), "everything": np.ones_like(masks)})


def known_ranking(of_masks: Similarities, cases: Iterable[Case], every: int = 8) -> tuple[Interval, dict]:
    """Can a judge be believed? Rank agreement on spoiled true masks of labelled clips, whose Dice is known.

    Returns:
        Spearman's correlation with its interval over clips, and of each spoiled mask (mean score, mean Dice).

    Raises:
        EdgesegError: no labelled clip.
    """
    scores: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    for case in cases:
        manual = manual_masks(case)
        at = sorted(manual)[::every]
        if not at:
            continue
        truth, frames = np.stack([manual[t] for t in at]), grey_frames(case)[at]
        for name, masks in spoiled(truth).items():
            scores.setdefault(name, []).append(score_masks(of_masks, frames, masks).score)
            values.setdefault(name, []).append(clip_dice(masks, dict(enumerate(truth))))
    if not scores:
        raise EdgesegError("no labelled clip: a judge is tried on clips whose left ventricle is labelled")
    table = {name: (float(np.mean(scores[name])), float(np.mean(values[name]))) for name in scores}
    return rank_agreement(np.array(list(scores.values())), np.array(list(values.values()))), table
