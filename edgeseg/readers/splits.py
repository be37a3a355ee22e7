"""Patient-level splits: from a split.json, or seeded. No case ever goes to another set than its patient."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgeseg.errors import EdgesegError

if TYPE_CHECKING:
    from edgeseg.readers.dataset import Dataset

SPLITS = ("train", "dev", "val")
DEV_SHARE, VAL_SHARE = 0.1, 0.2
"""Shares of the patients in the seeded split; the rest trains."""


def split_of_patients(patients: Iterable[str], root: Path, split_file: Path | None = None) -> dict[str, str]:
    """Patient -> "train", "dev" or "val".

    From `split_file`, else from split.json in `root` or beside it, else `seeded_split`. Patients that a split file
    does not name are in no set and missing from the result.

    Raises:
        EdgesegError: the file is malformed, names a patient twice, or none of these patients.
    """
    patients = sorted(set(patients))
    found = [f for f in (root / "split.json", root.parent / "split.json") if f.is_file()]
    file = split_file or (found[0] if found else None)
    if file is None:
        return seeded_split(patients)
    split = read_split(file)
    known = {p: split[p] for p in patients if p in split}
    if not known:
        raise EdgesegError(f"{file}: names none of the {len(patients)} patients of {root} (such as {patients[0]}): "
                           "name them, or pass another --split-file")
    return known


def read_split(file: Path) -> dict[str, str]:
    """split.json ({"train": [patients], "dev": [...], "val": [...]}) -> patient -> set.

    Raises:
        EdgesegError: unreadable, another structure, or a patient in two sets.
    """
    try:
        content = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise EdgesegError(f"{file}: no such split file") from None
    except (ValueError, IsADirectoryError):
        raise EdgesegError(f"{file}: is not JSON: repair the split file") from None
    if not isinstance(content, dict) or not content or not set(content) <= set(SPLITS):
        raise EdgesegError(f'{file}: expected {{"train": [...], "dev": [...], "val": [...]}}')
    split: dict[str, str] = {}
    for name, patients in content.items():
        if not isinstance(patients, list) or not all(isinstance(p, str) for p in patients):
            raise EdgesegError(f"{file}: {name} must be a list of patient names")
        for patient in patients:
            if split.setdefault(patient, name) != name:
                raise EdgesegError(f"{file}: patient {patient} is in two splits ({split[patient]} and {name}): "
                                   "keep it in one")
    return split


def seeded_split(patients: Iterable[str], seed: int = 0) -> dict[str, str]:
    """70 % train, 10 % dev, 20 % val of the patients, at least one each from three patients on.

    The order is that of a hash of seed and name: the same on every machine and library version.
    """
    order = sorted(set(patients), key=lambda p: hashlib.sha256(f"{seed}:{p}".encode()).digest())
    n = len(order)
    val = max(1, round(VAL_SHARE * n)) if n >= 2 else 0
    dev = max(1, round(DEV_SHARE * n)) if n >= 3 else 0
    return {p: "val" if i < val else "dev" if i < val + dev else "train" for i, p in enumerate(order)}


def take_fraction(dataset: "Dataset", fraction: float, seed: int) -> "Dataset":
    """`dataset` with only `fraction` (0..1) of its patients of split train, all cases of each; dev, val and what is in
    no split stay whole.

    round(fraction * patients), a half upwards, are kept: the first ones in the order of a hash of seed and name. So a
    smaller fraction of one seed lies within a larger one, on every machine.

    Raises:
        EdgesegError: a fraction that is not above 0 and at most 1, or that leaves no patient.
    """
    if not 0 < fraction <= 1:
        raise EdgesegError(f"fraction is the share of the training patients, above 0 and at most 1, not {fraction}")
    patients = dataset.select("train").patients()
    count = math.floor(fraction * len(patients) + 0.5)
    if not count:
        raise EdgesegError(f"{dataset.spec}: fraction {fraction:g} of {len(patients)} training patient(s) leaves none: "
                           "raise it, or bring more patients")
    order = sorted(patients, key=lambda p: hashlib.sha256(f"fraction:{seed}:{p}".encode()).digest())
    kept = set(order[:count])
    return replace(dataset, refs=tuple(r for r in dataset.refs if r.split != "train" or r.patient in kept))
