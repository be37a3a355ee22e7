"""M&Ms: 4D short-axis cine per subject, labels at ED and ES, time points in a table.

V. M. Campello et al., IEEE Transactions on Medical Imaging 40(12), 2021. Labels are numbered the other way round than
ACDC's: 1 is the left ventricle.
"""

import csv
from functools import partial
from pathlib import Path

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.nifti import read_case, stem, time_points
from edgeseg.readers.splits import split_of_patients

SCHEME = LabelScheme(("background", "LV", "MYO", "RV"))
LICENCE = "M&Ms challenge terms, https://www.ub.edu/mnms (V. M. Campello et al., IEEE TMI 2021)"
COLUMNS = ("External code", "ED", "ES", "Vendor")
UNLABELLED = ("unlabeled", "unlabelled")
"""Folders of the release (Training/Unlabeled) whose images are not half a case."""


def open_mnms(root: Path, *, spec: str, split_file: Path | None = None) -> Dataset:
    """`mnms:PATH`: every CODE_sa.nii.gz with CODE_sa_gt.nii.gz anywhere below PATH, ED and ES as two cases.

    The table is a CSV file in PATH, beside it or below it. ED and ES count from 0; the case of time point 7 of
    subject A0S9V9 is A0S9V9_frame07, as in nnU-Net's conversion. `group` is the column Pathology.
    """
    images, labels = find_pairs(root)
    table_file, table = find_table(root)
    split = split_of_patients(images, root, split_file)
    refs = []
    for code, image in sorted(images.items()):
        if code not in table:
            raise EdgesegError(f"{table_file}: has no row for {code} ({image}): add it or remove the image")
        row, times = table[code], time_points(image)
        vendor, group = row["Vendor"] or None, row.get("Pathology") or None
        for phase in ("ED", "ES"):
            frame = frame_index(row[phase], times, f"{table_file}: {phase} of {code}")
            name = f"{code}_frame{frame:02d}"
            load = partial(read_case, (image,), labels[code], id=name, patient=code, scheme=SCHEME, frame=frame,
                           phase=phase, group=group, vendor=vendor)
            refs.append(CaseRef(name, code, split.get(code), phase, group, vendor, load))
    return Dataset("mnms", spec, tuple(refs), SCHEME, LICENCE)


def find_pairs(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and label files by subject code; half a case, or a subject twice, is an EdgesegError."""
    images: dict[str, Path] = {}
    labels: dict[str, Path] = {}
    for file in sorted(root.rglob("*_sa*.nii*")):
        name = stem(file) or ""
        if file.name.startswith(".") or any(p.lower() in UNLABELLED for p in file.relative_to(root).parts):
            continue
        for end, found in (("_sa", images), ("_sa_gt", labels)):
            if name.endswith(end):
                code = name.removesuffix(end)
                if code in found:
                    raise EdgesegError(f"{file}: subject {code} is also in {found[code].parent}: remove one of them")
                found[code] = file
    for code in sorted(images.keys() ^ labels.keys()):
        if code in images:
            raise EdgesegError(f"{images[code]}: has no labels ({code}_sa_gt) beside it: add them or remove the image")
        raise EdgesegError(f"{labels[code]}: has no image ({code}_sa) beside it: add it or remove the labels")
    if not images:
        raise EdgesegError(f"{root}: holds no CODE_sa.nii.gz below it: point mnms: at the folder of M&Ms")
    return images, labels


def find_table(root: Path) -> tuple[Path, dict[str, dict[str, str]]]:
    """The CSV file that has the needed columns, and its rows by subject code."""
    files = [*sorted(root.glob("*.csv")), *sorted(root.parent.glob("*.csv")), *sorted(root.rglob("*/*.csv"))]
    if not files:
        raise EdgesegError(f"{root}: no CSV file with ED and ES in it or beside it: put M&Ms' table there")
    missing: dict[Path, list[str]] = {}
    for file in files:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
            reader = csv.DictReader(lines)
            missing[file] = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if not missing[file]:
                return file, {row["External code"]: row for row in reader}
    file, columns = min(missing.items(), key=lambda item: len(item[1]))  # the likeliest to be meant
    raise EdgesegError(f"{file}: lacks the column{'s' * (len(columns) > 1)} {', '.join(columns)} of M&Ms' table")


def frame_index(text: str | None, times: int, where: str) -> int:
    """Time point of a table cell; EdgesegError unless it is a whole number in 0..times-1."""
    try:
        frame = float(text or "")
    except ValueError:
        frame = -1.0
    if not (frame.is_integer() and 0 <= frame < times):
        raise EdgesegError(f"{where} is {text!r}, but the image has the {times} time points 0..{times - 1}: correct it")
    return int(frame)
