"""NIfTI: images, label maps, and `nifti:` (a file or a folder of unlabelled images).

Read with nibabel, which takes the non-orthonormal direction cosines that SimpleITK refuses. Spacing is the header's
pixdim: ACDC's affine has unit scale. An array [x, y, z] becomes [z, y, x], so a row of a frame runs along x. Slices lie
along the third axis, or along another one whose spacing is clearly the largest and which has the fewest pixels: files
stored slice-first exist.
"""

import logging
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from edgeseg.case import Case, check_spacing
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers.dataset import CaseRef, Dataset

ENDINGS = (".nii.gz", ".nii")
MM_PER_UNIT = {1: 1000.0, 3: 0.001}
"""NIfTI's codes of the spatial unit (lowest three bits of xyzt_units): metre and micrometre; all else is mm."""
SPACING_TOLERANCE = 1e-3
"""Relative difference of spacings that still are the same: headers hold float32, sometimes rounded."""

SLICE_STEP = 1.5
"""An axis with the fewest pixels whose spacing is this many times each of the others' is the one between slices."""

Opened = tuple[Any, tuple[int, ...], tuple[float, ...]]
"""What `open_image` returns."""

# nibabel tells of odd headers on stderr and repairs them; what matters here is checked below and is one line.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Volume:
    """One 3D image: float32 [N, H, W], (row, column) and slice spacing in mm, and what writes a mask of its shape."""

    pixels: np.ndarray
    spacing: tuple[float, float]
    slice_spacing: float | None
    provenance: dict[str, Any]


def open_nifti(root: Path, *, spec: str, split_file: Path | None = None, frames: str | None = None) -> Dataset:
    """`nifti:PATH`: each image, or each time point of 4D images with frames="all", is an unlabelled case.

    nnU-Net's names (case_0000.nii.gz, case_0001.nii.gz) are joined into one case of several channels when every file
    of the folder has such a name. Time points are counted from 1, as in ACDC: case_frame01.
    """
    paths = [root] if root.is_file() else find_files(root)
    refs = []
    for case, channels in read_channels(paths).items():
        times = time_points(channels[0])
        if times > 1 and frames is None:
            raise EdgesegError(four_dimensional(channels[0], times))
        for t in range(times):
            name = f"{case}_frame{t + 1:02d}" if times > 1 else case
            load = partial(read_case, channels, id=name, patient=case, frame=t if times > 1 else None)
            refs.append(CaseRef(name, case, None, None, None, None, load))
    return Dataset("nifti", spec, tuple(refs), None, "unknown")


def find_files(folder: Path) -> list[Path]:
    """The .nii and .nii.gz files of a folder, sorted; EdgesegError when there is none."""
    files = sorted(f for f in folder.iterdir() if stem(f) is not None and not f.name.startswith("."))
    if not files:
        raise EdgesegError(f"{folder}: holds no .nii or .nii.gz file")
    return files


def stem(path: Path) -> str | None:
    """File name without .nii or .nii.gz, None for another file."""
    return next((path.name.removesuffix(e) for e in ENDINGS if path.name.endswith(e)), None)


def read_channels(paths: Sequence[Path]) -> dict[str, tuple[Path, ...]]:
    """Case name -> its files, one a channel.

    nnU-Net's naming holds when every name ends in _NNNN and every case starts at _0000; otherwise each file is a case.

    Raises:
        EdgesegError: a file that is no NIfTI by name, a missing channel, or two files of one name.
    """
    numbered: dict[str, dict[int, Path]] = {}
    single: dict[str, tuple[Path, ...]] = {}
    for path in paths:
        name = stem(path)
        if name is None:
            raise EdgesegError(f"{path}: is not a NIfTI file (.nii or .nii.gz): convert it")
        if name in single:
            raise EdgesegError(f"{path}: there is another file of the same name: remove one of them")
        single[name] = (path,)
        if match := re.fullmatch(r"(.+)_(\d{4})", name):
            numbered.setdefault(match[1], {})[int(match[2])] = path
    if sum(map(len, numbered.values())) < len(paths) or any(0 not in files for files in numbered.values()):
        return single
    count = max(map(len, numbered.values()))
    for case, files in numbered.items():
        if sorted(files) != list(range(count)):
            missing = min(set(range(count)) - set(files))
            raise EdgesegError(f"{files[0].with_name(f'{case}_{missing:04d}')}: this channel is missing, other cases "
                               f"have {count}: add it or leave the case out")
    return {case: tuple(files[c] for c in range(count)) for case, files in numbered.items()}


def read_case(images: Sequence[Path], labels: Path | None = None, *, id: str, patient: str,
              scheme: LabelScheme | None = None, values: dict[int, int] | None = None, frame: int | None = None,
              phase: str | None = None, group: str | None = None, vendor: str | None = None,
              opened: Sequence[Opened] | None = None) -> Case:
    """Read one case; `images` are its channels, `frame` the time point (from 0) of 4D files.

    `values` maps what the label file holds to values of `scheme` (or 255, ignore); by default they are the same.
    `opened` are the images where they are open already.

    Raises:
        EdgesegError: an unreadable file, image, channels or labels of other geometry, a label outside `values`.
    """
    files = opened or [open_image(path) for path in images]
    volumes = [read_volume(path, frame, file) for path, file in zip(images, files, strict=True)]
    for path, volume in zip(images, volumes, strict=True):
        check_geometry(path, volume, images[0], volumes[0])
    classes = None
    if labels is not None and scheme is not None:
        found = read_volume(labels, frame, slice_axis=volumes[0].provenance["slice_axis"])
        check_geometry(labels, found, images[0], volumes[0])
        classes = to_labels(labels, found.pixels, values or {v: v for v in scheme.values})
    first = volumes[0]
    return Case(
        id=id, patient=patient, frames=np.stack([v.pixels for v in volumes], axis=1), spacing=first.spacing,
        slice_spacing=first.slice_spacing, labels=classes, scheme=scheme if classes is not None else None, phase=phase,
        group=group, vendor=vendor, source=str(images[0]), provenance=first.provenance,
    )


def read_times(images: Sequence[Path], *, id: str, patient: str) -> Iterator[Case]:
    """Every time point of a 4D image, or the volume of a 3D one, in order; `images` are its channels.

    Each file is read once from its start to its end: a .nii.gz opened anew for each of its time points would be
    unpacked from the start each time, and one is in memory at a time. Raises as `read_case`.
    """
    opened = [open_image(path, keep_open=True) for path in images]
    times = time_points(images[0])
    for t in range(times):
        yield read_case(images, id=id, patient=patient, frame=t if times > 1 else None, opened=opened)


def read_volume(path: Path, frame: int | None = None, opened: Opened | None = None,
                slice_axis: int | None = None) -> Volume:
    """Read a 2D or 3D image, or time point `frame` (from 0) of a 4D one; only that time point is held in memory.

    `slice_axis`: of the file, where it is known (a label map's is its image's).

    Raises:
        EdgesegError: missing, truncated, not NIfTI, colour or complex, another number of dimensions, bad spacing.
    """
    image, shape, zooms = opened or open_image(path)
    times = shape[3] if len(shape) == 4 else 1
    if frame is None and times > 1:
        raise EdgesegError(four_dimensional(path, times))
    if frame is not None and not 0 <= frame < times:
        raise EdgesegError(f"{path}: has {times} time points, number {frame} (counted from 0) is not among them")
    take = (slice(None), slice(None), slice(None), frame) if times > 1 else ...
    try:
        array = np.asarray(image.dataobj[take], np.float32)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise unreadable(path, error) from None
    except MemoryError:
        raise EdgesegError(f"{path}: an image of shape {shape} does not fit into memory: if it is not that large, the "
                           "header is damaged") from None
    array = array.reshape(shape[:3] if len(shape) > 2 else (*shape, 1))
    if len(shape) < 3:
        zooms = (*zooms, np.inf)
    axis = slice_axis_of(array.shape, zooms) if slice_axis is None else slice_axis
    array, zooms = np.moveaxis(array, axis, 2), (*zooms[:axis], *zooms[axis + 1 :], zooms[axis])
    provenance = {"affine": image.affine, "header": image.header.copy(), "shape": array.shape[: len(shape)],
                  "slice_axis": axis}
    return Volume(array.transpose(2, 1, 0), (zooms[1], zooms[0]), zooms[2] if len(shape) > 2 else None, provenance)


def slice_axis_of(shape: tuple[int, ...], zooms: tuple[float, ...]) -> int:
    """The axis (0..2) along which the slices of a volume of this shape and spacing lie."""
    largest = int(np.argmax(zooms))
    clear = zooms[largest] >= SLICE_STEP * sorted(zooms)[-2] and shape[largest] == min(shape)
    return largest if clear else 2


def open_image(path: Path, keep_open: bool = False) -> Opened:
    """Read a header: the nibabel image (pixels still on disk), its shape (2 to 4 axes), its spacing in mm (x, y, z).

    With `keep_open` the file stays open while the image lives, and goes on where it was last read.
    """
    try:
        image: Any = nib.load(path, mmap=False, keep_file_open=keep_open)
        with nib.openers.ImageOpener(str(path)) as file:
            # unchecked: nibabel turns a negative pixdim positive on loading
            raw = image.header_class.from_fileobj(file, check=False)
    except (OSError, EOFError, ValueError, zlib.error, nib.filebasedimages.ImageFileError,
            nib.spatialimages.HeaderDataError) as error:
        raise unreadable(path, error) from None
    shape = tuple(image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise EdgesegError(f"{path}: has shape {shape}, expected a 2D, 3D or 4D image")
    if image.get_data_dtype().kind not in "iuf":
        raise EdgesegError(f"{path}: holds {image.get_data_dtype()} values, expected a grey-scale image")
    unit = MM_PER_UNIT.get(int(raw["xyzt_units"]) & 7, 1.0)
    zooms = tuple(round(float(z) * unit, 6) for z in raw["pixdim"][1 : 1 + min(len(shape), 3)])
    check_spacing(zooms, str(path))
    return image, shape, zooms


def time_points(path: Path) -> int:
    """Number of time points of a file (1 for 2D and 3D), from its header."""
    shape = open_image(path)[1]
    return shape[3] if len(shape) == 4 else 1


def four_dimensional(path: Path, times: int) -> str:
    return (f"{path}: is 4D ({times} time points) where one volume is expected: split it into one file per time "
            "point, or read it as nifti:PATH?frames=all")


def unreadable(path: Path, error: Exception) -> Exception:
    """What to raise when nibabel gives up on `path`."""
    if isinstance(error, PermissionError):
        return error
    if isinstance(error, FileNotFoundError):
        return EdgesegError(f"{path}: no such file")
    return EdgesegError(f"{path}: is not a readable NIfTI file (truncated or damaged): copy or convert it again")


def check_geometry(path: Path, volume: Volume, reference_path: Path, reference: Volume) -> None:
    """Raise EdgesegError unless `volume` has the shape and spacing of `reference`."""
    if volume.pixels.shape != reference.pixels.shape:
        raise EdgesegError(f"{path}: shape {volume.pixels.shape} differs from {reference.pixels.shape} of "
                           f"{reference_path.name}: export both on one grid")
    ours, theirs = ((*v.spacing, v.slice_spacing or 1.0) for v in (volume, reference))
    if not np.allclose(ours, theirs, rtol=SPACING_TOLERANCE, atol=0):
        raise EdgesegError(f"{path}: spacing {ours} mm differs from {theirs} mm of {reference_path.name}: repair the "
                           "header (pixdim)")


def to_labels(path: Path, pixels: np.ndarray, values: dict[int, int]) -> np.ndarray:
    """Pixels of a label file, any shape -> uint8, each value replaced by `values` of it; EdgesegError for another."""
    whole = np.isfinite(pixels) & (pixels == np.rint(pixels)) & (pixels >= 0) & (pixels <= 255)
    table, known = np.zeros(256, np.uint8), np.zeros(256, bool)
    for value, meaning in values.items():
        table[value], known[value] = meaning, True
    classes = np.where(whole, pixels, 0).astype(np.uint8)
    wrong = ~whole | ~known[classes]
    if wrong.any():
        raise EdgesegError(f"{path}: label value {pixels[wrong][0]:g} is outside the scheme (allowed: "
                           f"{sorted(values)}): correct the labels")
    return table[classes]
