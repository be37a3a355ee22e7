"""nnU-Net v2 raw data set folder: dataset.json, imagesTr, labelsTr, imagesTs.

The format is that of nnU-Net's documentation/dataset_format.md and region_based_training.md.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.hu import read_hu
from edgeseg.readers.nifti import ENDINGS, read_case, read_channels, stem
from edgeseg.readers.splits import split_of_patients


def open_nnunet(root: Path, *, spec: str, split_file: Path | None = None, hu: str = "") -> Dataset:
    """`nnunet:PATH`: the cases of imagesTr with labels, and those of imagesTs without (split None).

    The patient of a case is the one that patients.json beside dataset.json ({"case": "patient"}) names, else the
    case's name without its frame or phase (`patient_of`), so that ED and ES of one heart stay in one split. Labels that
    are regions become exclusive classes, painted in regions_class_order. `ignore` becomes 255.

    Images of CT alone must hold Hounsfield units (hu.py) unless `hu` is "any"; with other modalities beside them they
    often are crops without air. Images stay as they lie in the file, which is how nnU-Net sees them.
    """
    file = root / "dataset.json"
    about = read_json(file, "nnU-Net's raw data set folder has one")
    ending, channels = about.get("file_ending"), about.get("channel_names")
    if ending not in ENDINGS:
        raise EdgesegError(f"{file}: file_ending {ending!r} cannot be read: convert the images to .nii.gz")
    if not isinstance(channels, dict) or not channels:
        raise EdgesegError(f"{file}: needs channel_names, one a channel")
    scheme, values = read_scheme(about, file)
    train = find_cases(root / "imagesTr", ending, len(channels))
    test = find_cases(root / "imagesTs", ending, len(channels))
    labels = {f.name.removesuffix(ending): f for f in list_files(root / "labelsTr", ending)}
    check_pairs(train, labels)
    if not train and not test:
        raise EdgesegError(f"{root}: holds no case in imagesTr or imagesTs")
    patients = {c: patient_of(c) for c in (*train, *test)} | read_patients(root / "patients.json")
    split = split_of_patients([patients[c] for c in train], root, split_file) if train else {}
    hounsfield = not hu and all(name.casefold() == "ct" for name in channels.values())  # as nnU-Net compares
    refs = []
    for case, images in [*train.items(), *test.items()]:
        patient = patients[case]
        read = read_hu if hounsfield else read_case
        load = partial(read, images, labels.get(case), id=case, patient=patient, scheme=scheme, values=values)
        refs.append(CaseRef(case, patient, split.get(patient) if case in train else None, None, None, None, load))
    return Dataset(str(about.get("name") or root.resolve().name), spec, tuple(refs), scheme,
                   str(about.get("licence") or about.get("license") or "unknown"),
                   IGNORE if IGNORE in values.values() else None)


def read_json(file: Path, why: str) -> dict[str, Any]:
    """A JSON object from `file`; EdgesegError when it is missing or something else."""
    if not file.is_file():
        raise EdgesegError(f"{file}: is missing: {why}")
    try:
        content = json.loads(file.read_text("utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise EdgesegError(f"{file}: is not a JSON object: repair it")
    return content


def read_scheme(about: dict[str, Any], file: Path) -> tuple[LabelScheme, dict[int, int]]:
    """dataset.json -> the exclusive classes, and what each value in a label file becomes (a value of them, or 255).

    With regions, class k is the k-th region and has the value regions_class_order[k]; a pixel belongs to the last
    region of that order that it lies in, as nnU-Net paints them.
    """
    labels = about.get("labels")
    if not isinstance(labels, dict) or not all(is_label(v) for v in labels.values()):
        raise EdgesegError(f'{file}: needs labels as {{"name": value}} of nnU-Net v2 (v1 had {{"value": "name"}})')
    ignore = labels.get("ignore")
    regions = {name: set(v if isinstance(v, list) else [v]) - {0} for name, v in labels.items() if name != "ignore"}
    regions = {name: members for name, members in regions.items() if members}
    if all(len(members) == 1 for members in regions.values()):
        regions = dict(sorted(regions.items(), key=lambda item: min(item[1])))
        order: Any = [min(members) for members in regions.values()]
    else:
        order = about.get("regions_class_order")
        if not isinstance(order, list) or len(order) != len(regions) or not is_label(order):
            raise EdgesegError(f"{file}: labels are regions, so regions_class_order must hold {len(regions)} values")
    try:
        scheme = LabelScheme(("background", *regions), (0, *order))
    except EdgesegError as error:
        raise EdgesegError(f"{file}: {error}") from None
    values = {0: 0}
    for painted, members in zip(order, regions.values(), strict=True):
        values |= dict.fromkeys(members, painted)
    return scheme, values | ({ignore: IGNORE} if isinstance(ignore, int) else {})


def is_label(value: Any) -> bool:
    """Whether a value of dataset.json's labels is a label value or a list of them."""
    entries = value if isinstance(value, list) and value else [value]
    return all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v < IGNORE for v in entries)


def list_files(folder: Path, ending: str) -> list[Path]:
    """The files of that ending, sorted; none when there is no such folder."""
    return sorted(f for f in folder.glob(f"*{ending}") if not f.name.startswith("."))


def find_cases(folder: Path, ending: str, channels: int) -> dict[str, tuple[Path, ...]]:
    """Case name -> its channel files, none when there is no such folder or it is empty."""
    files = list_files(folder, ending)
    cases = read_channels(files) if files else {}
    for case, found in cases.items():
        if len(found) != channels or stem(found[0]) != f"{case}_0000":
            raise EdgesegError(f"{found[0]}: nnU-Net names the images of a case {case}_0000{ending} and so on, and "
                               f"dataset.json has {channels} channel{'s' * (channels > 1)}, here "
                               f"{'is' if len(found) == 1 else 'are'} {len(found)}")
    return cases


def check_pairs(images: dict[str, tuple[Path, ...]], labels: dict[str, Path]) -> None:
    """Raise EdgesegError when a training case has no labels or labels have no image."""
    for case in sorted(images.keys() ^ labels.keys()):
        if case in images:
            raise EdgesegError(f"{images[case][0]}: has no labels in labelsTr: add them or move it to imagesTs")
        raise EdgesegError(f"{labels[case]}: has no image in imagesTr: add it or remove the labels")


def patient_of(case: str) -> str:
    """The name of a case without a trailing `_frameNN`, `_ED` or `_ES` of any letter case: patient001 of
    patient001_frame12. Any other name is a patient of its own."""
    return re.sub(r"(?<=.)_(frame\d+|ED|ES)$", "", case, flags=re.IGNORECASE)


def read_patients(file: Path) -> dict[str, str]:
    """patients.json ({"case": "patient"}), or nothing when there is none."""
    patients = read_json(file, "") if file.exists() else {}
    if not all(isinstance(p, str) for p in patients.values()):
        raise EdgesegError(f'{file}: expected {{"case": "patient"}}')
    return patients
