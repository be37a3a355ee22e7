"""slices: axial CT slices kept as .npz after a display window: `image` uint8 [N, H, W] and one mask a structure.

They lie as in the Decathlon's files: the first axis of a slice runs from the patient's left to the right, the second
from back to front, so that on a screen the body lies on its side. Here they are turned to the DICOM view (front up,
the patient's left on the right): liver on the image's left, spleen on its right.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.splits import split_of_patients

WINDOW = (0.0, 255.0)
"""HU of grey 0 and 255. What lay outside is lost: a student that reads these needs a window within this one."""
SPACING, SLICE_SPACING = 1.75, 5.0
"""mm, assumed where a file does not say (`spacing`, three numbers: row, column, slice): vertebral bodies of 25 pixels
are then 44 mm wide."""
LICENCE = "CC BY-SA 4.0 (Medical Segmentation Decathlon, Antonelli et al., Nature Communications 13, 4128, 2022)"


def open_slices(root: Path, *, spec: str, split_file: Path | None = None) -> Dataset:
    """`slices:PATH`: every .npz file of the folder is a case and a patient; all hold masks of the same structures."""
    files = sorted(f for f in root.glob("*.npz") if not f.name.startswith("."))
    if not files:
        raise EdgesegError(f"{root}: holds no .npz file")
    named = {f: structures(f) for f in files}
    first = named[files[0]]
    for file, names in named.items():
        if names != first:
            raise EdgesegError(f"{file}: has masks of {', '.join(names) or 'nothing'}, {files[0].name} of "
                               f"{', '.join(first) or 'nothing'}: keep them in folders of their own")
    if not first:
        raise EdgesegError(f"{files[0]}: has no mask beside `image`: add one, named as the structure")
    scheme = LabelScheme(("background", *first))
    split = split_of_patients([f.stem for f in files], root, split_file)
    refs = tuple(CaseRef(f.stem, f.stem, split.get(f.stem), None, None, None, partial(read_slices, f, scheme))
                 for f in files)
    return Dataset(root.resolve().name, spec, refs, scheme, LICENCE)


@contextmanager
def arrays_of(file: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz file, each read when it is taken; EdgesegError when it is damaged or holds objects."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        if isinstance(error, PermissionError):
            raise
        raise EdgesegError(f"{file}: is not a readable .npz file of plain arrays: copy it again") from None


def structures(file: Path) -> tuple[str, ...]:
    """Names of the masks in a file, sorted; no pixels are read."""
    with arrays_of(file) as arrays:
        names = set(arrays)
    if "image" not in names:
        raise EdgesegError(f"{file}: has no array `image` [N, H, W]")
    return tuple(sorted(names - {"image", "spacing"}))


def read_slices(file: Path, scheme: LabelScheme) -> Case:
    """One file, in HU clipped to WINDOW, in the DICOM view."""
    with arrays_of(file) as opened:
        arrays = {name: opened[name] for name in opened}
    image = arrays["image"]
    if image.ndim != 3 or image.dtype != np.uint8:
        raise EdgesegError(f"{file}: `image` is {image.dtype} {image.shape}, expected uint8 [N, H, W]")
    labels = np.zeros(image.shape, np.uint8)
    for name, value in zip(scheme.names[1:], scheme.values[1:], strict=True):
        mask = arrays[name]
        if mask.shape != image.shape or not np.isin(mask, (0, 1)).all():
            raise EdgesegError(f"{file}: `{name}` must hold 0 and 1 and have the shape of `image` {image.shape}")
        labels[mask > 0] = value
    spacing = arrays.get("spacing", np.array([SPACING, SPACING, SLICE_SPACING]))
    if spacing.shape != (3,):
        raise EdgesegError(f"{file}: `spacing` must hold three numbers, mm between rows, columns and slices")
    row, column, between = map(float, spacing)
    low, high = WINDOW
    hu = low + image.astype(np.float32) * ((high - low) / 255)
    return Case(id=file.stem, patient=file.stem, frames=upright(hu)[:, None], spacing=(row, column),
                slice_spacing=between, labels=upright(labels), scheme=scheme, source=str(file),
                provenance={"hu_window": WINDOW})


def upright(stored: np.ndarray) -> np.ndarray:
    """[N, left to right, back to front] -> [N, front to back, right to left of the patient]."""
    return np.ascontiguousarray(stored.transpose(0, 2, 1)[:, ::-1, ::-1])
