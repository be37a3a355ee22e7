"""NIfTI out: the mask of an image, in its geometry, and volumes of known geometry. What `nifti.py` reads back."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.files import new_file
from edgeseg.readers.nifti import stem


def write_labels(path: Path, labels: np.ndarray, provenance: dict[str, Any]) -> None:
    """Write uint8 [N, H, W] as NIfTI with the affine and header of the image it was made from.

    `provenance` is that of the Case. The file appears at `path` only when complete.

    Raises:
        EdgesegError: the case came from no NIfTI file, or `path` has another ending. OSError: a full disk.
    """
    if "header" not in provenance:
        raise EdgesegError(f"{path}: the case was not read from a NIfTI file, so its geometry is not known")
    if labels.dtype != np.uint8:
        raise TypeError(f"labels must be uint8, got {labels.dtype}")
    header = provenance["header"].copy()
    header.set_data_dtype(np.uint8)
    header.set_slope_inter(1, 0)
    header.set_intent("none")
    header["cal_min"] = header["cal_max"] = 0  # the image's display window
    header.extensions.clear()  # may hold what the scanner wrote of the patient
    labels = np.flip(labels, provenance.get("flipped", ()))
    array = labels.transpose(2, 1, 0).reshape(provenance["shape"])
    if array.ndim > 2:
        array = np.moveaxis(array, 2, provenance.get("slice_axis", 2))
    kind = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    save(kind(array, provenance["affine"], header), path)


def write_volume(path: Path, pixels: np.ndarray, spacing: tuple[float, float], slice_spacing: float | None,
                 direction: np.ndarray | None = None) -> None:
    """Write [N, H, W] or, with time first, [T, N, H, W] as NIfTI: uint8 as it is, all else as int16.

    Whole numbers are kept exactly; others are scaled (header slope and intercept) to about 1/65000 of their range.
    `direction` [3, 3] holds the direction cosines of x, y, z (identity by default), spacing is in mm.
    """
    zooms = np.array([spacing[1], spacing[0], slice_spacing or 1.0])
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if direction is None else direction) * zooms
    array = pixels.T  # [x, y, z] or [x, y, z, t]
    if array.dtype != np.uint8:
        whole = np.array_equal(array, np.rint(array)) and np.abs(array).max() < 2**15
        array = array.astype(np.int16) if whole else array
    image = nib.Nifti1Image(array, affine)
    image.header.set_data_dtype(np.uint8 if array.dtype == np.uint8 else np.int16)
    image.header.set_zooms((*zooms, *([1.0] * (array.ndim - 3))))
    image.header.set_xyzt_units("mm", "sec")
    save(image, path)


def save(image: Any, path: Path) -> None:
    """Write beside, then rename: a failure leaves what was at `path` before."""
    if stem(path) is None:
        raise EdgesegError(f"{path}: give the file the ending .nii.gz or .nii")
    with new_file(path) as part:
        nib.save(image, part)
