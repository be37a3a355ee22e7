"""Beat by beat: the size of the left ventricle in every frame, in the form of EchoNet-Dynamic's size.csv.

Where EchoNet-Dynamic's script sets the least prominence of a systole to half the spread between two order statistics of
the n sizes, it takes those at n ** 0.05 and n ** 0.95; 0.05 n and 0.95 n are evidently meant, and taken here. For 175
frames these are the sizes at 9 and 166 in order instead of 1 and 135, so that its threshold is mostly the lower one of
the two and it finds shallow dips as beats that this rule does not. The columns are the same.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import find_peaks

from edgeseg.errors import EdgesegError
from edgeseg.measure.phases import Phases, bridge

COLUMNS = ("Filename", "Frame", "Size", "HumanLarge", "HumanSmall", "ComputerSmall")
DISTANCE = 20
"""Least frames between two systoles (EchoNet-Dynamic): 0.4 s at 50 fps, so up to 150 beats a minute."""


@dataclass(frozen=True)
class ClipSizes:
    """`sizes`: pixels of the left ventricle in each frame [T]; `truth`: the traced frames, the larger area = ED."""

    filename: str
    sizes: np.ndarray
    truth: Phases


def systoles(sizes: np.ndarray) -> list[int]:
    """Frames of the smallest ventricle, one a beat: at least DISTANCE apart and prominent by half of what lies between
    the 5 % and the 95 % order statistic. EchoNet-Dynamic's rule without its slip; frames without a ventricle (0, NaN)
    are bridged, where the original takes them for the deepest systoles. Nothing is smoothed."""
    known = bridge(sizes)
    if not known.size:
        return []
    ordered = np.sort(known)
    low, high = (ordered[min(round(len(ordered) * share), len(ordered) - 1)] for share in (0.05, 0.95))
    if high <= low:
        return []
    found, _ = find_peaks(-known, distance=DISTANCE, prominence=0.5 * (high - low))
    return [int(frame) for frame in found]


def size_rows(clip: ClipSizes) -> list[tuple[str, int, int, int, int, int]]:
    """One row for each frame, in the order of COLUMNS; the last three are 0 or 1. A NaN size is written as 0."""
    small = set(systoles(clip.sizes))
    return [(clip.filename, frame, int(np.nan_to_num(size)), int(frame in clip.truth.ed), int(frame in clip.truth.es),
             int(frame in small)) for frame, size in enumerate(clip.sizes)]


def read_size_csv(path: Path) -> list[ClipSizes]:
    """The clips of such a table, EchoNet-Dynamic's own or one written here, in its order: what DeepLabv3 measured there
    is a reference for ED and ES.

    Raises:
        EdgesegError: no such file, a column is missing, a value is no number, or a clip's frames do not count from 0.
    """
    rows: dict[str, list[tuple[int, float, bool, bool]]] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                large, small = (bool(int(row[k])) for k in ("HumanLarge", "HumanSmall"))
                rows.setdefault(row["Filename"], []).append((int(row["Frame"]), float(row["Size"]), large, small))
    except FileNotFoundError:
        raise EdgesegError(f"{path}: no such file") from None
    except KeyError as column:
        raise EdgesegError(f"{path}: no column {column}: is it EchoNet-Dynamic's size.csv?") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise EdgesegError(f"{path}: not a table of sizes ({error})") from None
    found = []
    for name, frames in rows.items():
        if [frame for frame, *_ in frames] != list(range(len(frames))):
            raise EdgesegError(f"{path}: the frames of {name} do not count from 0 without a gap")
        ed, es = (tuple(row[0] for row in frames if row[k]) for k in (2, 3))
        found.append(ClipSizes(name, np.array([size for _, size, *_ in frames]), Phases(ed, es)))
    return found
