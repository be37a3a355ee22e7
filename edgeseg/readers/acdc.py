"""ACDC: one folder per patient with Info.cfg, the ED and ES volumes and their manual labels.

O. Bernard et al., IEEE Transactions on Medical Imaging 37(11), 2018.
"""

import re
from functools import partial
from pathlib import Path

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.nifti import read_case, stem, time_points
from edgeseg.readers.splits import split_of_patients

SCHEME = LabelScheme(("background", "RV", "MYO", "LV"))
LICENCE = "CC BY-NC-SA 4.0 (ACDC, O. Bernard et al., IEEE TMI 2018)"
VENDOR = "Siemens"
"""Both scanners of ACDC (Aera, Trio Tim)."""


def open_acdc(root: Path, *, spec: str, split_file: Path | None = None, frames: str | None = None) -> Dataset:
    """`acdc:PATH`, PATH = the folder that holds training/, or training/, or any folder of patientNNN.

    With frames="4d" the cases are the time points of the unlabelled patientNNN_4d files (phase None), of the patients
    that have one; without, the labelled volumes, phase from Info.cfg.
    """
    folder = root / "training" if (root / "training").is_dir() else root
    patients = sorted(p for p in folder.iterdir()
                      if p.is_dir() and (re.fullmatch(r"patient\d+", p.name) or (p / "Info.cfg").is_file()))
    if not patients:
        raise EdgesegError(f"{folder}: holds no patientNNN folder: point acdc: at the folder of ACDC's training/")
    split = split_of_patients([p.name for p in patients], root, split_file)
    refs: list[CaseRef] = []
    for patient in patients:
        info = read_info(patient / "Info.cfg")
        find = cine_refs if frames == "4d" else labelled_refs
        refs += find(patient, info, split.get(patient.name))
    if not refs:
        raise EdgesegError(f"{folder}: no patient has a _4d.nii.gz file")
    return Dataset("acdc", spec, tuple(refs), None if frames == "4d" else SCHEME, LICENCE)


def read_info(file: Path) -> dict[str, str]:
    """Info.cfg ("ED: 1" a line) -> its entries; EdgesegError without whole numbers for ED and ES."""
    if not file.is_file():
        raise EdgesegError(f"{file}: is missing: every patient folder needs its Info.cfg")
    lines = (line.partition(":") for line in file.read_text("utf-8", errors="replace").splitlines())
    info = {key.strip(): value.strip() for key, _, value in lines}
    for phase in ("ED", "ES"):
        if not info.get(phase, "").isdecimal():
            raise EdgesegError(f"{file}: needs a line '{phase}: NUMBER'")
        if info.get("NbFrame", "").isdecimal() and not 1 <= int(info[phase]) <= int(info["NbFrame"]):
            raise EdgesegError(f"{file}: {phase} is frame {info[phase]} but there are {info['NbFrame']} frames")
    return info


def labelled_refs(folder: Path, info: dict[str, str], split: str | None) -> list[CaseRef]:
    """The volumes of one patient that have labels; half a case or a missing ED or ES volume is an EdgesegError."""
    images, labels = ({int(m[1]): f for f in sorted(folder.iterdir())
                       if (m := re.fullmatch(rf"{re.escape(folder.name)}_frame(\d+){end}", stem(f) or ""))}
                      for end in ("", "_gt"))
    for frame in sorted(images.keys() ^ labels.keys()):
        if frame in images:
            raise EdgesegError(f"{images[frame]}: has no labels (_gt file) beside it: add them or remove the image")
        raise EdgesegError(f"{labels[frame]}: has no image beside it: add it or remove the labels")
    phases = {int(info["ED"]): "ED", int(info["ES"]): "ES"}
    for frame, wanted in phases.items():
        if frame not in images:
            raise EdgesegError(f"{folder / f'{folder.name}_frame{frame:02d}.nii.gz'}: is missing, but Info.cfg names "
                               f"it as {wanted}")
    refs = []
    for frame, image in sorted(images.items()):
        name, phase, group = f"{folder.name}_frame{frame:02d}", phases.get(frame), info.get("Group")
        load = partial(read_case, (image,), labels[frame], id=name, patient=folder.name, scheme=SCHEME, phase=phase,
                       group=group, vendor=VENDOR)
        refs.append(CaseRef(name, folder.name, split, phase, group, VENDOR, load))
    return refs


def cine_refs(folder: Path, info: dict[str, str], split: str | None) -> list[CaseRef]:
    """The time points of the patient's _4d file, none when there is no such file."""
    files = [f for f in sorted(folder.iterdir()) if stem(f) == f"{folder.name}_4d"]
    refs = []
    for t in range(time_points(files[0]) if files else 0):
        name, group = f"{folder.name}_4d_frame{t + 1:02d}", info.get("Group")
        load = partial(read_case, (files[0],), id=name, patient=folder.name, frame=t, group=group, vendor=VENDOR)
        refs.append(CaseRef(name, folder.name, split, None, group, VENDOR, load))
    return refs
