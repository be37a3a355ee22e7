"""Write clips in EchoNet-Dynamic's layout (FileList.csv, VolumeTracings.csv, Videos/*.avi), so that its reader can be
run on real files."""

import csv
from pathlib import Path

import cv2
import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.phantoms.write import prepare
from edgeseg.readers.dataset import Dataset

SETS = {"train": "TRAIN", "dev": "VAL", "val": "TEST"}
LISTED = ("FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "FPS", "NumberOfFrames", "Split")
TRACED = ("FileName", "X1", "Y1", "X2", "Y2", "Frame")
CHORDS = 20


def write_echonet(data: Dataset, out: Path) -> Path:
    """`out`/FileList.csv, VolumeTracings.csv and Videos/*.avi (MJPG); returns `out`.

    Traced are the first end-diastole of `provenance["echo"]` and the end-systole after it, in every second clip the
    latter first: as in the published files, the order of the rows says nothing.

    Raises:
        EdgesegError: `out` is not empty; a case that is no clip of one channel, or without labels, EF, ED or ES.
    """
    prepare(out)
    (out / "Videos").mkdir()
    listed, traced = [], []
    for number, ref in enumerate(data.refs):
        case = ref.load()
        ed, es = one_beat(case)
        echo = case.provenance["echo"]
        count, _, height, width = case.frames.shape
        write_avi(out / "Videos" / f"{case.id}.avi", case.frames[:, 0], echo["fps"])
        listed.append((case.id, *(round(echo[k], 6) for k in ("ef", "esv", "edv")), height, width, echo["fps"], count,
                       SETS.get(ref.split or "", "")))
        for frame in (es, ed) if number % 2 else (ed, es):
            segments = trace(case.labels[frame] == 1)  # type: ignore[index]
            traced += [(f"{case.id}.avi", *(f"{x:.4f}" for x in row), frame) for row in segments]
    for name, head, rows in (("FileList.csv", LISTED, listed), ("VolumeTracings.csv", TRACED, traced)):
        with (out / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *rows])
    return out


def one_beat(case: Case) -> tuple[int, int]:
    """The first end-diastole and the first end-systole after it."""
    echo = case.provenance.get("echo", {})
    missing = [k for k in ("ef", "edv", "esv", "ed", "es", "fps") if not echo.get(k)]
    if case.axis != "time" or case.frames.shape[1] != 1 or case.labels is None or missing:
        raise EdgesegError(f"{case.source or case.id}: is no labelled clip of one channel with known EF, volumes, "
                           "ED, ES and fps: it cannot be written as EchoNet's")
    pairs = [(d, s) for d in echo["ed"] for s in echo["es"] if s > d]
    if not pairs:
        raise EdgesegError(f"{case.source or case.id}: has no end-systole after an end-diastole")
    return min(pairs)


def write_avi(path: Path, frames: np.ndarray, fps: float) -> None:
    """Grey frames [T, H, W] (0..255) as motion JPEG, the grey in all three channels."""
    height, width = frames.shape[1:]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (width, height))
    if not writer.isOpened():
        raise EdgesegError(f"{path}: cannot be written: check the folder")
    for frame in frames:
        writer.write(cv2.cvtColor(np.clip(np.rint(frame), 0, 255).astype(np.uint8), cv2.COLOR_GRAY2BGR))
    writer.release()


def trace(mask: np.ndarray) -> np.ndarray:
    """[21, 4]: x1, y1, x2, y2 of the long axis of a mask [H, W], then of 20 chords across it, from top to bottom.

    The axis is the direction in which the mask spreads most; the chords reach from its first to its last pixel.

    Raises:
        EdgesegError: an empty mask.
    """
    y, x = np.nonzero(mask)
    if len(x) < 2:
        raise EdgesegError("a mask to trace is empty")
    middle = np.array([x.mean(), y.mean()])
    axis = np.linalg.eigh(np.cov(np.stack([x, y])))[1][:, 1]
    axis = axis * (np.sign(axis[1]) or 1.0)
    across = np.array([axis[1], -axis[0]])
    u, v = ((x - middle[0]) * way[0] + (y - middle[1]) * way[1] for way in (axis, across))
    rows = []
    for level in np.linspace(u.min(), u.max(), CHORDS):
        near = v[np.abs(u - level) <= max(0.75, np.abs(u - level).min())]
        rows.append(np.concatenate([middle + level * axis + near.min() * across,
                                    middle + level * axis + near.max() * across]))
    ends = np.concatenate([middle + u.min() * axis, middle + u.max() * axis])
    return np.stack([ends, *rows])
