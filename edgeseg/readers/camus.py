"""CAMUS: apical two and four chamber views, from end-diastole to end-systole, with manual labels.

    patient0001/Info_4CH.cfg                        ED, ES (frames, from 1), NbFrame, EF or LVef, FrameRate
    patient0001/patient0001_4CH_half_sequence.*     the clip (_sequence in the first release), labels in ..._gt
    patient0001/patient0001_4CH_ED.*, _ES.*         two frames of it, labels in ..._gt

Files are NIfTI, or MetaImage as in the first release.
S. Leclerc et al., IEEE Transactions on Medical Imaging 38(9), 2019.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.readers.acdc import read_info
from edgeseg.readers.clip import frame_rate
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.mhd import read_mhd
from edgeseg.readers.nifti import Volume, check_geometry, read_volume, to_labels
from edgeseg.readers.splits import split_of_patients
from edgeseg.readers.tracing import number

ALL = LabelScheme(("background", "LV", "MYO", "LA"))
LV = LabelScheme(("background", "LV"))
LICENCE = "CC BY-NC-SA 4.0 (CAMUS, S. Leclerc et al., IEEE TMI 2019)"
VENDOR = "GE"
"""All of CAMUS was acquired on GE Vivid E95."""
VIEWS = {"2CH": "A2C", "4CH": "A4C"}
ENDINGS = (".nii.gz", ".nii", ".mhd", ".mha")
SUBGROUPS = {"training": "train", "validation": "dev", "testing": "val"}
"""database_split/subgroup_NAME.txt of the public release -> set."""


def open_camus(root: Path, *, spec: str, split_file: Path | None = None, view: str | None = None,
               labels: str | None = None) -> Dataset:
    """`camus:PATH`: one case a patient and view: the half sequence, or without one its ED and ES frames as a clip of
    two. Labels are background and LV, with labels="all" also MYO and LA.

    Raises:
        EdgesegError: no patient, a patient without Info_xCH.cfg of a view that it has.
    """
    folders = sorted(p for p in root.glob("**/patient*") if p.is_dir())
    patients = [p.name for p in folders]
    if not folders:
        raise EdgesegError(f"{root}: holds no patientNNNN folder: point camus: at the folder of CAMUS's patients")
    split = official_split(root) if split_file is None else {}
    split = {p: split[p] for p in patients if p in split} or split_of_patients(patients, root, split_file)
    scheme, refs = ALL if labels == "all" else LV, []
    for folder in folders:
        for name in [view] if view else VIEWS:
            if images(folder, name):
                load = partial(read_case, folder, name, scheme)
                refs.append(CaseRef(f"{folder.name}_{name}", folder.name, split.get(folder.name), None, None, VENDOR,
                                    load))
    if not refs:
        raise EdgesegError(f"{root}: no patient has a clip, or ED and ES images, of {view or 'a view'}")
    return Dataset("camus", spec, tuple(refs), scheme, LICENCE, IGNORE)


def official_split(root: Path) -> dict[str, str]:
    """Patient -> set, from the subgroup lists in `root` or beside it; empty without them."""
    return {patient: name for place in (root, root / "database_split", root.parent / "database_split")
            for group, name in SUBGROUPS.items() if (file := place / f"subgroup_{group}.txt").is_file()
            for patient in file.read_text("utf-8").split()}


def find(folder: Path, name: str) -> Path | None:
    """folder/patientNNNN_NAME of any of the endings."""
    return next((f for e in ENDINGS if (f := folder / f"{folder.name}_{name}{e}").is_file()), None)


def images(folder: Path, view: str) -> dict[str, Path]:
    """"clip" -> the sequence, else "ED" and "ES" -> theirs; empty when the patient has neither."""
    clip = find(folder, f"{view}_half_sequence") or find(folder, f"{view}_sequence")
    if clip:
        return {"clip": clip}
    stills = {phase: f for phase in ("ED", "ES") if (f := find(folder, f"{view}_{phase}"))}
    return stills if len(stills) == 2 else {}


def read_case(folder: Path, view: str, scheme: LabelScheme) -> Case:
    """One view of one patient.

    Raises:
        EdgesegError: a missing or unusable Info_xCH.cfg, an unreadable image, labels of other geometry or values.
    """
    info, files = read_info(folder / f"Info_{view}.cfg"), images(folder, view)
    path = next(iter(files.values()))
    first, *others = [read(f) for f in files.values()]
    for other in others:
        check_geometry(files["ES"], other, path, first)
    frames = np.concatenate([first.pixels, *(v.pixels for v in others)])
    count, whole = len(frames), "clip" in files
    ed, es = (int(info["ED"]) - 1, int(info["ES"]) - 1) if whole else (0, 1)
    notes = []
    if count < 2 or not (0 <= ed < count and 0 <= es < count):
        raise EdgesegError(f"{path}: has {count} frames, but Info_{view}.cfg names ED {ed + 1} and ES {es + 1}")
    if whole and number(info.get("NbFrame", "")) != count:
        notes.append(f"Info_{view}.cfg says {info.get('NbFrame', 'nothing')} frames, the clip has {count}")
    labels = read_labels(folder, view, first, path, frames.shape, {"ED": ed, "ES": es}, scheme)
    areas = [int((labels[t] == 1).sum()) for t in (ed, es)]
    if areas[0] < areas[1]:
        notes.append(f"the LV is larger in the frame that Info_{view}.cfg names ES")
    echo: dict[str, Any] = {"view": VIEWS[view], "ed": [ed], "es": [es]}
    for key, names in {"ef": ("EF", "LVef"), "edv": ("LVedv",), "esv": ("LVesv",)}.items():
        if found := [value for n in names if (value := number(info.get(n, ""))) > 0]:
            echo[key] = found[0]
    rate = None
    if whole:
        rate, known, more = frame_rate({f"Info_{view}.cfg": number(info.get("FrameRate", ""))})
        notes += more
        echo |= {"fps": rate} if known else {}
    provenance = first.provenance | {"echo": echo, "notes": tuple(notes)}
    return Case(id=f"{folder.name}_{view}", patient=folder.name, frames=frames[:, None], spacing=first.spacing,
                axis="time", frame_time=1 / rate if rate else None, labels=labels, scheme=scheme, vendor=VENDOR,
                source=str(path), provenance=provenance)


def read(path: Path) -> Volume:
    """An image of either format; [T, H, W], T = 1 for a single frame."""
    return read_mhd(path) if path.suffix in (".mhd", ".mha") else read_volume(path, slice_axis=2)


def read_labels(folder: Path, view: str, image: Volume, path: Path, shape: tuple[int, ...], frame: dict[str, int],
                scheme: LabelScheme) -> np.ndarray:
    """uint8 [T, H, W] from the labels of the whole clip, else from those of ED and ES; IGNORE where there are none."""
    values = {v: v if v in scheme.values else 0 for v in ALL.values}
    whole = find(folder, f"{view}_half_sequence_gt") if len(image.pixels) > 1 else None
    if whole:
        found = read(whole)
        check_geometry(whole, found, path, image)
        return to_labels(whole, found.pixels, values)
    labels = np.full(shape, IGNORE, np.uint8)
    for phase, t in frame.items():
        if still := find(folder, f"{view}_{phase}_gt"):
            found = read(still)
            if found.pixels.shape != (1, *shape[1:]):
                raise EdgesegError(f"{still}: has shape {found.pixels.shape}, expected one frame of {path.name}, "
                                   f"{shape[1:]}")
            labels[t] = to_labels(still, found.pixels[0], values)
    return labels
