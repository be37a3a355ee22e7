"""Write labelled cases in the layouts of ACDC, M&Ms and nnU-Net, so that every reader can be run on real files.

Each takes a Dataset, reads its cases one at a time and writes split.json with the same sets. Structures are matched by
name, so that M&Ms' numbers (1 LV, 3 RV) come out of any scheme.
"""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.readers import acdc, mnms
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.nifti_write import write_volume
from edgeseg.readers.splits import SPLITS

SHEARED = np.array([[0.9987, 0.0300, 0.0400], [-0.0350, 0.9990, -0.0300], [-0.0380, 0.0320, 0.9988]])
"""Direction cosines (columns x, y, z): unit length to 1e-3, not orthogonal (x.y = -0.006), like some of M&Ms."""


def write_acdc(data: Dataset, out: Path) -> Path:
    """out/training/patientNNN/{Info.cfg, patientNNN_frameXX.nii.gz, ..._gt.nii.gz}; returns `out`.

    Patients are numbered from 001 in order of appearance. The frame number is the one that the case id ends in
    (`_frame09`), otherwise 1 for ED and 2 for ES.

    Raises:
        EdgesegError: `out` is not empty, a case without labels, a patient without ED or ES.
    """
    prepare(out)
    names = {}
    for number, (patient, refs) in enumerate(by_patient(data).items(), 1):
        names[patient] = name = f"patient{number:03d}"
        folder, frames = out / "training" / name, {}
        for ref in refs:
            case = ref.load()
            frame = frames[case.phase] = frame_number(case)
            path = folder / f"{name}_frame{frame:02d}.nii.gz"
            if path.exists():
                raise EdgesegError(f"{path}: two cases of {patient} have frame {frame}: end their ids in _frameNN")
            write_frames(path, case.frames[:, 0], case)
            write_frames(folder / f"{name}_frame{frame:02d}_gt.nii.gz", labels_in(acdc.SCHEME, case), case)
        if not {"ED", "ES"} <= set(frames):
            raise EdgesegError(f"{data.spec}: patient {patient} needs one case of phase ED and one of ES")
        info = {"ED": frames["ED"], "ES": frames["ES"], "Group": refs[0].group or "NOR",
                "NbFrame": max(frames.values())}
        (folder / "Info.cfg").write_text("".join(f"{k}: {v}\n" for k, v in info.items()), "utf-8")
    write_split(data, out, names)
    return out


def write_mnms(data: Dataset, out: Path, direction: np.ndarray = SHEARED) -> Path:
    """out/{CODE}/{CODE}_sa.nii.gz and _sa_gt.nii.gz (4D) and out/mnms.csv; returns `out`.

    The time points of a subject (CODE = patient) are its cases in their order; those that are neither ED nor ES have
    no labels. `direction` [3, 3] holds the direction cosines, not orthogonal by default.

    Raises:
        EdgesegError: `out` is not empty, ED or ES without labels or missing, cases of one patient of two shapes.
    """
    prepare(out)
    rows = []
    for code, refs in by_patient(data).items():
        cases = [ref.load() for ref in refs]
        first, phases = cases[0], [case.phase for case in cases]
        if not {"ED", "ES"} <= set(phases):
            raise EdgesegError(f"{data.spec}: patient {code} needs one case of phase ED and one of ES")
        if any(case.frames.shape != first.frames.shape or case.spacing != first.spacing for case in cases):
            raise EdgesegError(f"{data.spec}: the cases of patient {code} differ in shape or spacing: no 4D file")
        labels = [labels_in(mnms.SCHEME, c) if c.phase else np.zeros_like(c.frames[:, 0], np.uint8) for c in cases]
        for end, pixels in (("sa", [c.frames[:, 0] for c in cases]), ("sa_gt", labels)):
            write_frames(out / code / f"{code}_{end}.nii.gz", np.stack(pixels), first, direction)
        rows.append((code, refs[0].vendor or "A", 1, refs[0].group or "NOR", phases.index("ED"), phases.index("ES")))
    with (out / "mnms.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("External code", "Vendor", "Centre", "Pathology", "ED", "ES"), *rows])
    write_split(data, out, {})
    return out


def write_nnunet(data: Dataset, out: Path, channels: Sequence[str] = ("cineMRI",)) -> Path:
    """nnU-Net v2 raw data set folder `out` (its name should be DatasetNNN_NAME); returns `out`.

    Label values are the class indices 0..K-1 of the data set's scheme, and K is `ignore` if it has such pixels. Cases
    without labels go to imagesTs. patients.json keeps the cases of one patient together.

    Raises:
        EdgesegError: `out` is not empty, no scheme, or a case whose channels are not as many as `channels`.
    """
    prepare(out)
    if data.scheme is None:
        raise EdgesegError(f"{data.spec}: has no labels, so there is no nnU-Net training data to write")
    scheme, patients, count = LabelScheme(data.scheme.names), {}, 0
    ignore = len(scheme.names)
    for case in data:
        if case.frames.shape[1] != len(channels):
            raise EdgesegError(f"{case.id}: has {case.frames.shape[1]} channels, {len(channels)} are named")
        images = out / ("imagesTr" if case.labels is not None else "imagesTs")
        for c in range(len(channels)):
            write_frames(images / f"{case.id}_{c:04d}.nii.gz", case.frames[:, c], case)
        if case.labels is not None:
            count, labels = count + 1, labels_in(scheme, case)
            write_frames(out / "labelsTr" / f"{case.id}.nii.gz", np.where(labels == IGNORE, ignore, labels), case)
        patients[case.id] = case.patient
    names = dict(zip(scheme.names, scheme.values, strict=True)) | ({} if data.ignore is None else {"ignore": ignore})
    write_json(out / "dataset.json", {
        "channel_names": {str(c): name for c, name in enumerate(channels)}, "labels": names, "numTraining": count,
        "file_ending": ".nii.gz", "name": out.name, "licence": data.licence})
    write_json(out / "patients.json", patients)
    write_split(data, out, {})
    return out


def prepare(out: Path) -> None:
    """Make the folder; EdgesegError when there is something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EdgesegError(f"{out}: is not an empty folder: choose another one")
    out.mkdir(parents=True, exist_ok=True)


def by_patient(data: Dataset) -> dict[str, list[CaseRef]]:
    groups: dict[str, list[CaseRef]] = {}
    for ref in data.refs:
        groups.setdefault(ref.patient, []).append(ref)
    return groups


def frame_number(case: Case) -> int:
    """The number that the case id ends in, or 1 for ED and 2 for another phase."""
    match = re.search(r"_frame(\d+)$", case.id)
    return int(match[1]) if match else 1 if case.phase == "ED" else 2


def labels_in(scheme: LabelScheme, case: Case) -> np.ndarray:
    """The labels of a case in another scheme (255 stays); EdgesegError when it has none."""
    if case.labels is None or case.scheme is None:
        raise EdgesegError(f"{case.source or case.id}: has no labels to write")
    value_of = np.full(256, IGNORE, np.uint8)
    value_of[: len(scheme.values)] = scheme.values
    return value_of[scheme.encode(case.labels, case.scheme)]


def write_frames(path: Path, pixels: np.ndarray, case: Case, direction: np.ndarray | None = None) -> None:
    """[N, H, W] or [T, N, H, W] on the grid of `case`."""
    write_volume(path, pixels, case.spacing, case.slice_spacing, direction)


def write_split(data: Dataset, out: Path, names: dict[str, str]) -> None:
    """split.json of `out`, patients renamed by `names`."""
    write_json(out / "split.json", {s: [names.get(p, p) for p in data.select(s).patients()] for s in SPLITS})


def write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
