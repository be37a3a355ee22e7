"""EchoNet-Dynamic's tracings: segments across the ventricle -> polygon -> mask, for one or several annotators.

A tracing is float64 [21, 4]: x1, y1, x2, y2 of the long axis (row 0), then of 20 chords across it, apex to base.
D. Ouyang et al., Nature 580, 2020.
"""

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError

ROWS = 21
"""Segments of one tracing."""
FAR = 1e6
"""Pixels from which a coordinate is damage, no place."""
COLUMNS = ("X1", "Y1", "X2", "Y2")


def fill_polygon(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Polygon with whole-numbered vertices -> bool [H, W]: the pixels inside, on an edge or a vertex, clipped.

    The rule, pixel by pixel, is that of scikit-image's draw.polygon (J. O'Rourke, Computational Geometry in C, 2nd
    ed., section 7.4): a ray to either side of the pixel crosses the outline an odd number of times, or the two rays
    disagree, which happens on an edge. Here in whole numbers, so exact.
    """
    mask = np.zeros(shape, bool)
    top, left = max(int(rows.min()), 0), max(int(columns.min()), 0)
    bottom, right = min(int(rows.max()), shape[0] - 1), min(int(columns.max()), shape[1] - 1)
    if top > bottom or left > right:
        return mask
    r, c = np.arange(top, bottom + 1)[:, None], np.arange(left, right + 1)[None]
    odd = np.zeros((2, r.size, c.size), bool)  # crossings to the right, to the left
    vertex = np.zeros((r.size, c.size), bool)
    for r0, c0, r1, c1 in zip(rows, columns, np.roll(rows, -1), np.roll(columns, -1), strict=True):
        vertex |= (r == r0) & (c == c0)
        # where the edge meets the pixel's row, minus the pixel's column, times |r1 - r0|
        meets = ((c0 - c) * (r1 - r) - (c1 - c) * (r0 - r)) * np.sign(r1 - r0)
        odd[0] ^= ((r0 > r) != (r1 > r)) & (meets > 0)
        odd[1] ^= ((r0 < r) != (r1 < r)) & (meets < 0)
    mask[top : bottom + 1, left : right + 1] = odd[0] | odd[1] | vertex
    return mask


def mask_of(tracing: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A tracing [21, 4] -> bool [H, W]: down the first ends of the chords, up their second ends, the axis left out."""
    x1, y1, x2, y2 = np.rint(tracing[1:]).astype(np.int64).T  # rint: half to even, as the published masks
    return fill_polygon(np.concatenate([y1, y2[::-1]]), np.concatenate([x1, x2[::-1]]), shape)


def majority(masks: Sequence[np.ndarray]) -> np.ndarray:
    """Where more than half of the annotators see the structure; of two annotators that is where both do."""
    return 2 * np.sum(masks, axis=0) > len(masks)


def inter_annotator_dice(masks: Sequence[np.ndarray]) -> float:
    """Mean over the annotators of the Dice of one against the majority of the others; 1 where both are empty.

    Raises:
        ValueError: a single annotator.
    """
    if len(masks) < 2:
        raise ValueError("agreement needs at least two annotators")
    scores = []
    for k, own in enumerate(masks):
        rest = majority([m for j, m in enumerate(masks) if j != k])
        size = own.sum() + rest.sum()
        scores.append(2 * (own & rest).sum() / size if size else 1.0)
    return float(np.mean(scores))


def read_rows(file: Path) -> tuple[dict[str, dict[int, np.ndarray]], list[str]]:
    """VolumeTracings.csv -> video (without ending) -> frame -> its rows [n, 4], both in order of appearance; notes.

    A coordinate that is no number is NaN; a row without a whole frame number is left out and noted.

    Raises:
        EdgesegError: missing, no text, or without one of its columns.
    """
    rows: dict[str, dict[int, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    lost = 0
    for row in read_table(file, ("FileName", "Frame", *COLUMNS)):
        frame = number(row["Frame"])
        if frame != round(frame) if np.isfinite(frame) else True:
            lost += 1
            continue
        rows[row["FileName"].removesuffix(".avi")][int(frame)].append([number(row[k]) for k in COLUMNS])
    notes = [f"{file}: {lost} rows have no whole frame number and are left out"] if lost else []
    return {video: {f: np.array(r) for f, r in frames.items()} for video, frames in rows.items()}, notes


def read_table(file: Path, needed: Sequence[str]) -> Iterator[dict[str, str]]:
    """The rows of a CSV file, by column, stripped; EdgesegError when it is missing, damaged or lacks a column."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            table = csv.DictReader(text)
            columns = [name.strip() for name in table.fieldnames or []]
            if missing := [name for name in needed if name not in columns]:
                raise EdgesegError(f"{file}: has no column {missing[0]}: its first line must name {', '.join(needed)}")
            table.fieldnames = columns
            for row in table:
                yield {k: (row[k] or "").strip() for k in columns}
    except FileNotFoundError:
        raise EdgesegError(f"{file}: is missing: check the path, or download it again") from None
    except (UnicodeDecodeError, csv.Error):
        raise EdgesegError(f"{file}: is no CSV text: download it again") from None


def number(text: str) -> float:
    """NaN for what is no number."""
    try:
        return float(text)
    except ValueError:
        return float("nan")


def tracings_of(rows: np.ndarray) -> list[np.ndarray]:
    """Rows of one frame [n, 4] -> one tracing [21, 4] an annotator, in their order.

    Raises:
        ValueError: why the rows make no tracing, for a note.
    """
    if len(rows) == 0 or len(rows) % ROWS:
        raise ValueError(f"has {len(rows)} rows, a tracing has {ROWS}")
    if not (np.abs(rows) < FAR).all():  # NaN is not
        raise ValueError("has a coordinate that is no number")
    return np.split(rows, len(rows) // ROWS)


def read_repaired(folders: Sequence[Path]) -> dict[str, dict[str, list[np.ndarray]]]:
    """Video -> "diastol" or "systol" -> the tracings of VIDEO.diastol.label0.npy and so on in these folders.

    EchoDFKD's repaired labels: tracings of several annotators that VolumeTracings.csv runs together, told apart.
    """
    found: dict[str, dict[str, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(f for folder in folders if folder.is_dir() for f in folder.glob("*.label*.npy")):
        match = re.fullmatch(r"(.+)\.(diastol|systol)\.label\d+\.npy", path.name)
        if match:
            try:
                rows = np.load(path, allow_pickle=False)
            except (OSError, ValueError, EOFError):
                raise EdgesegError(f"{path}: is no array of tracings: download it again or remove it") from None
            if rows.ndim != 2 or rows.shape[1] != 4 or rows.dtype.kind not in "iuf":
                raise EdgesegError(f"{path}: holds no rows of x1, y1, x2, y2: download it again or remove it")
            found[match[1]][match[2]].append(rows.astype(np.float64))
    return found


def frame_of(tracings: Sequence[np.ndarray], frames: dict[int, np.ndarray], phase: str) -> int:
    """The frame that repaired tracings belong to: the one whose rows in VolumeTracings.csv hold most of theirs.

    The names "diastol" and "systol" follow the order of the rows, not anatomy; they decide only where no row is found.
    """
    rows = np.concatenate(tracings)
    hits = {f: int((np.abs(known[:, None] - rows).max(axis=2) < 1e-3).any(axis=0).sum()) for f, known in frames.items()}
    best = max(hits, key=lambda f: hits[f])
    return best if hits[best] else list(frames)[0 if phase == "diastol" else -1]
