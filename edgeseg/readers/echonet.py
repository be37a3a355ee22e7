"""EchoNet-Dynamic: apical four chamber clips, and two traced frames (end-diastole, end-systole) of each.

    FileList.csv        FileName, EF, ESV, EDV, FrameHeight, FrameWidth, FPS, NumberOfFrames, Split
    VolumeTracings.csv  FileName, X1, Y1, X2, Y2, Frame: 21 rows a tracing (`tracing`), several tracings a frame in some
    Videos/*.avi
    *.label<k>.npy      optional, here or in repaired_labels/: see `tracing.read_repaired`

Which of the traced frames is end-diastole is decided by the area of the masks: the order of the rows says one thing in
the published code, another in its comments, and neither always holds. D. Ouyang et al., Nature 580, 2020.
"""

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.readers.clip import decode, frame_rate, spacing_of
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.splits import split_of_patients
from edgeseg.readers.tracing import (
    frame_of,
    majority,
    mask_of,
    number,
    read_repaired,
    read_rows,
    read_table,
    tracings_of,
)

SCHEME = LabelScheme(("background", "LV"))
LICENCE = "Stanford research use agreement (EchoNet-Dynamic, D. Ouyang et al., Nature 2020)"
NUMBERS = ("EF", "ESV", "EDV", "FPS", "NumberOfFrames", "FrameHeight", "FrameWidth")
SPLIT = {"TRAIN": "train", "VAL": "dev", "TEST": "val"}
SHOWN = 3
"""Names that a note lists before it only counts."""


@dataclass(frozen=True)
class Listed:
    """A row of FileList.csv: numbers are NaN where it has none; `split` None where it names none of SPLIT."""

    name: str
    ef: float
    esv: float
    edv: float
    fps: float
    frames: float
    shape: tuple[float, float]
    split: str | None


@dataclass(frozen=True)
class Tracings:
    """Of one video: frame -> its tracings [21, 4], one an annotator, frames in the order of VolumeTracings.csv; and
    frame -> why rows of it make no tracing."""

    frames: dict[int, list[np.ndarray]] = field(default_factory=dict)
    unusable: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RowOrder:
    """Videos by the order of their traced frames: EchoNet-Dynamic's code takes the first one for end-systole."""

    systole_first: tuple[str, ...]
    conflicts: tuple[str, ...]
    undecided: tuple[str, ...]


def open_echonet(root: Path, *, spec: str, split_file: Path | None = None) -> Dataset:
    """`echonet:PATH`: one case a listed video that has a file. What is missing or unusable is logged, and in
    `provenance["notes"]` of the case that it concerns. Nothing is decoded here.

    Raises:
        EdgesegError: a missing or unusable CSV file, no video at all, a damaged .npy file.
    """
    listed, files, notes = read_list(root)
    tracings, more = read_tracings(root, {v.name for v in listed})
    for note in [*notes, *more]:
        logging.getLogger(__name__).warning(note)
    split = split_of(listed, root, split_file)
    refs = [CaseRef(v.name, v.name, split.get(v.name), None, None, None,
                    partial(read_case, files[v.name], v, tracings.get(v.name, Tracings())))
            for v in listed if v.name in files]
    return Dataset("echonet", spec, tuple(refs), SCHEME, LICENCE, IGNORE)


def row_order(root: Path) -> RowOrder:
    """Count what the order of rows says against the areas of the masks; reads no video."""
    listed, _, _ = read_list(root)
    tracings, _ = read_tracings(root, {v.name for v in listed})
    kinds: dict[bool | None, list[str]] = {True: [], False: [], None: []}
    for video in listed:
        own = tracings.get(video.name, Tracings()).frames
        height, width = (int(n) if 0 < n < 1e4 else 112 for n in video.shape)
        masks = {f: majority([mask_of(t, (height, width)) for t in found]) for f, found in own.items()}
        kinds[phases(masks)[2]].append(video.name)
    return RowOrder(tuple(kinds[False]), tuple(kinds[True]), tuple(kinds[None]))


def read_list(root: Path) -> tuple[list[Listed], dict[str, Path], list[str]]:
    """FileList.csv and Videos/ -> rows, files by name (without ending), notes on what only one of them has."""
    file = root / "FileList.csv"
    listed = []
    for row in read_table(file, ("FileName",)):
        ef, esv, edv, fps, frames, height, width = (number(row.get(k, "")) for k in NUMBERS)
        listed.append(Listed(row["FileName"].removesuffix(".avi"), ef, esv, edv, fps, frames, (height, width),
                             SPLIT.get(row.get("Split", "").upper())))
    folder = root / "Videos"
    files = {f.stem: f for f in sorted(folder.iterdir()) if f.suffix.lower() == ".avi" and not f.name.startswith(".")
             } if folder.is_dir() else {}
    names = [v.name for v in listed]
    if not set(names) & set(files):
        raise EdgesegError(f"{folder}: holds no video that {file.name} lists: check that Videos/*.avi is complete")
    notes = [*tell(f"{file}: videos without a file in Videos/, left out", [n for n in names if n not in files]),
             *tell(f"{folder}: videos that {file.name} does not list, left out", sorted(set(files) - set(names)))]
    return listed, files, notes


def read_tracings(root: Path, known: set[str]) -> tuple[dict[str, Tracings], list[str]]:
    """The tracings of the `known` videos, repaired labels in the place of the rows that they repair; and notes."""
    file = root / "VolumeTracings.csv"
    rows, notes = read_rows(file)
    repaired = read_repaired((root, root / "repaired_labels"))
    notes += tell(f"{file}: traced videos that FileList.csv does not list", [n for n in rows if n not in known])
    result, unusable = {}, []
    for video, frames in rows.items():
        whole = dict.fromkeys(frames, None) | {frame_of(t, frames, phase): t
                                               for phase, t in repaired.get(video, {}).items()}
        own = Tracings()
        for frame, tracings in whole.items():
            for many in tracings or [frames[frame]]:
                try:
                    own.frames[frame] = own.frames.get(frame, []) + tracings_of(many)
                except ValueError as error:
                    own.unusable[frame] = str(error)
                    unusable.append(f"{video} frame {frame}")
        if video in known:
            result[video] = own
    return result, notes + tell(f"{file}: tracings that are unusable, left out", unusable)


def tell(what: str, names: list[str]) -> list[str]:
    """One line that counts `names` and shows the first; none without names."""
    more = ", ..." if len(names) > SHOWN else ""
    return [f"{what}: {len(names)} ({', '.join(names[:SHOWN])}{more})"] if names else []


def split_of(listed: list[Listed], root: Path, split_file: Path | None) -> dict[str, str]:
    """The sets of a split file if one is given, else those of the list's Split column, else as `split_of_patients`."""
    named = {v.name: v.split for v in listed if v.split}
    return named if named and split_file is None else split_of_patients([v.name for v in listed], root, split_file)


def read_case(path: Path, listed: Listed, tracings: Tracings | None) -> Case:
    """A clip with what its row states, and labels where `tracings` has some (None: a data set without any).

    Raises:
        EdgesegError: the file cannot be decoded.
    """
    clip = decode(path)
    rate, known, notes = frame_rate({"FileList.csv": listed.fps, "the file": clip.rate})
    count = len(clip.frames)
    if listed.frames > 0 and listed.frames != count:
        notes.append(f"FileList.csv says {listed.frames:g} frames, {count} were decoded")
    stated = {"ef": listed.ef, "edv": listed.edv, "esv": listed.esv}  # 0 is unknown: EchoNet-Synthetic
    echo: dict[str, Any] = {"view": "A4C"} | {k: v for k, v in stated.items() if v > 0}
    echo |= {"fps": rate} if known else {}
    provenance: dict[str, Any] = {"spacing": "unknown", "echo": echo}
    labels = None
    if tracings is not None:
        labels, several, found, more = label(tracings, clip.frames.shape)
        notes += more
        echo |= found
        provenance |= {"annotators": several} if several else {}
    provenance["notes"] = (*clip.notes, *notes)
    return Case(id=listed.name, patient=listed.name, frames=clip.frames[:, None], spacing=spacing_of(clip.frames),
                axis="time", frame_time=1 / rate, labels=labels, scheme=SCHEME if labels is not None else None,
                source=str(path), provenance=provenance)


def label(tracings: Tracings, shape: tuple[int, ...]) -> tuple[
        np.ndarray, dict[int, list[np.ndarray]], dict[str, list[int]], list[str]]:
    """Tracings of a clip [T, H, W] -> labels, masks of frames with several annotators, ED and ES, notes."""
    count, height, width = shape
    labels = np.full(shape, IGNORE, np.uint8)
    notes = [f"frame {f} {why}: this tracing is left out" for f, why in tracings.unusable.items()]
    masks: dict[int, np.ndarray] = {}
    several: dict[int, list[np.ndarray]] = {}
    for frame, found in tracings.frames.items():
        if not 0 <= frame < count:
            notes.append(f"frame {frame} is traced, but the clip has {count}: its tracing is left out")
            continue
        drawn = [mask_of(t, (height, width)) for t in found]
        if not all(m.any() for m in drawn):
            notes.append(f"frame {frame} is traced outside the image: left unlabelled")
            continue
        if any((t[1:] < -0.5).any() or (t[1:] > np.tile([width, height], 2) - 0.5).any() for t in found):
            notes.append(f"frame {frame} is traced beyond the image: clipped")
        masks[frame] = majority(drawn)
        labels[frame] = masks[frame]
        if len(drawn) > 1:
            several[frame] = drawn
    diastole, systole, conflict = phases(masks)
    if conflict:
        notes.append("the first traced frame is end-diastole by area: the order of the rows says end-systole")
    return labels, several, {"ed": [diastole], "es": [systole]} if conflict is not None else {}, notes


def phases(masks: dict[int, np.ndarray]) -> tuple[int, int, bool | None]:
    """Frame -> mask, in order of appearance, -> the frames of the largest (ED) and smallest (ES) area, and whether that
    contradicts "first is ES, last is ED"; (-1, -1, None) where fewer than two different areas are traced."""
    areas = {f: int(m.sum()) for f, m in masks.items()}
    if len(set(areas.values())) < 2:
        return -1, -1, None
    order = list(areas)
    return max(order, key=lambda f: areas[f]), min(order, key=lambda f: areas[f]), areas[order[0]] > areas[order[-1]]
