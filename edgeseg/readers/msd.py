"""Medical Segmentation Decathlon: a task's folder with dataset.json, imagesTr, labelsTr, imagesTs (.nii.gz).

The format is that of the Decathlon's own archives (Antonelli et al., Nature Communications 13, 4128, 2022):
dataset.json lists {"image", "label"} pairs and names labels and modalities as {"value": "name"}.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.hu import check_hu
from edgeseg.readers.nifti import read_case, stem
from edgeseg.readers.nnunet import read_json
from edgeseg.readers.splits import split_of_patients


def open_msd(root: Path, *, spec: str, split_file: Path | None = None, hu: str = "") -> Dataset:
    """`msd:PATH`: the training cases with labels, and the test cases without (split None).

    Every case is a patient. Axial images are turned to the DICOM view (front up, the patient's left on the right),
    slices run to the head. A CT must hold Hounsfield units (hu.py) unless `hu` is "any".
    """
    file = root / "dataset.json"
    about = read_json(file, "a folder of the Medical Segmentation Decathlon has one")
    modality = about.get("modality")
    if not isinstance(modality, dict) or len(modality) != 1:
        raise EdgesegError(f"{file}: needs one modality ({modality!r}): convert images of several to nnU-Net's layout "
                           "and read them as nnunet:PATH")
    scheme = read_scheme(about.get("labels"), file)
    pairs = about.get("training") or []
    if not isinstance(pairs, list) or not all(isinstance(p, dict) and {"image", "label"} <= set(p) for p in pairs):
        raise EdgesegError(f'{file}: needs training as [{{"image": FILE, "label": FILE}}, ...]')
    files: list[tuple[Path, Path | None]] = [
        (inside(root, p["image"], file), inside(root, p["label"], file)) for p in pairs]
    files += [(inside(root, name, file), None) for name in about.get("test") or []]
    if not files:
        raise EdgesegError(f"{file}: lists no case in training or test")
    names = [str(stem(image)) for image, _ in files]
    split = split_of_patients(names[: len(pairs)], root, split_file) if pairs else {}
    hounsfield = not hu and str(next(iter(modality.values()))).upper() == "CT"
    refs = tuple(CaseRef(name, name, split.get(name) if label else None, None, None, None,
                         partial(read_msd, image, label, name, scheme, hounsfield))
                 for name, (image, label) in zip(names, files, strict=True))
    return Dataset(str(about.get("name") or root.resolve().name), spec, refs, scheme,
                   str(about.get("licence") or about.get("license") or "unknown"))


def read_scheme(labels: Any, file: Path) -> LabelScheme:
    """{"0": "background", "1": "spleen"} -> the scheme, by value."""
    try:
        named = sorted((int(value), str(name)) for value, name in labels.items())
        return LabelScheme(tuple(n for _, n in named), tuple(v for v, _ in named))
    except (AttributeError, ValueError):
        raise EdgesegError(f'{file}: needs labels as {{"0": "background", "1": NAME, ...}} (nnU-Net\'s layout is read '
                           "as nnunet:PATH)") from None
    except EdgesegError as error:
        raise EdgesegError(f"{file}: {error}") from None


def inside(root: Path, name: Any, file: Path) -> Path:
    """The file that dataset.json names, which must lie in the folder."""
    path = root / str(name)
    if not path.resolve().is_relative_to(root.resolve()) or stem(path) is None:
        raise EdgesegError(f"{file}: {name!r} is no .nii.gz or .nii file of this folder: correct the list")
    if not path.is_file():
        raise EdgesegError(f"{path}: is missing, but dataset.json lists it: add it or take it off the list")
    return path


def read_msd(image: Path, label: Path | None, name: str, scheme: LabelScheme, hounsfield: bool) -> Case:
    """One volume in the DICOM view; a mask of it is written back as its file lies (`write_labels`)."""
    case = read_case([image], label, id=name, patient=name, scheme=scheme)
    if hounsfield:
        check_hu(case.frames, case.source)
    flipped = axes_to_flip(case.provenance["affine"], case.source or name)
    labels = None if case.labels is None else np.ascontiguousarray(np.flip(case.labels, flipped))
    with_channel = tuple(axis + 1 if axis else 0 for axis in flipped)
    return replace(case, frames=np.flip(case.frames, with_channel), labels=labels,
                   provenance=case.provenance | {"flipped": flipped})


def axes_to_flip(affine: np.ndarray, source: str) -> tuple[int, ...]:
    """Of [N, H, W] as `read_case` gives it: those against which columns run to the patient's left, rows to the back,
    slices to the head.

    Raises:
        EdgesegError: the file's first two axes are not left-right and front-back, so its slices are not axial.
    """
    codes = nib.aff2axcodes(affine)
    if set(codes[0]) - set("LR") or set(codes[1]) - set("AP"):
        raise EdgesegError(f"{source}: its slices are not axial (axes {''.join(map(str, codes))}): store it as RAS, as "
                           "nibabel.as_closest_canonical does")
    return tuple(axis for axis, (code, wanted) in enumerate(zip(codes[::-1], "SPL", strict=True)) if code != wanted)
