"""Case: what every reader yields. One volume, slice stack or clip of one patient, in its native grid."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme


@dataclass(frozen=True)
class Case:
    """One labelled or unlabelled image.

    Attributes:
        id: unique within a data set, for example `patient001_frame01`.
        patient: splits are made by this, never by case.
        frames: float32 [N, C, H, W]: N slices or time points, C channels (1 for cine MRI), raw intensities.
        spacing: in-plane pixel size (row, column) in mm.
        axis: what N counts: "slice" or "time".
        slice_spacing: distance between slices in mm (None for a clip or a single image).
        frame_time: seconds between frames when axis is "time", else None.
        labels: uint8 [N, H, W] with the values of `scheme` (255 = ignore), or None.
        scheme: the data set's own label scheme (None without labels).
        phase: "ED", "ES" or None. group: the data set's diagnosis. vendor: scanner vendor. None where unknown.
        source: the file that messages name. provenance: whatever a writer needs to give back the same geometry.
    """

    id: str
    patient: str
    frames: np.ndarray
    spacing: tuple[float, float]
    axis: Literal["slice", "time"] = "slice"
    slice_spacing: float | None = None
    frame_time: float | None = None
    labels: np.ndarray | None = None
    scheme: LabelScheme | None = None
    phase: str | None = None
    group: str | None = None
    vendor: str | None = None
    source: str = ""
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        where = self.source or self.id
        if self.frames.ndim != 4 or 0 in self.frames.shape:
            raise EdgesegError(f"{where}: expected frames [N, C, H, W], got shape {self.frames.shape}")
        object.__setattr__(self, "frames", np.ascontiguousarray(self.frames, np.float32))
        check_spacing((*self.spacing, self.slice_spacing if self.slice_spacing is not None else 1.0), where)
        check_intensities(self.frames, where)
        if self.labels is None:
            return
        if self.scheme is None:
            raise EdgesegError(f"{where}: labels without a label scheme")
        if self.labels.shape != self.frames.shape[:1] + self.frames.shape[2:]:
            raise EdgesegError(f"{where}: label shape {self.labels.shape} does not match image {self.frames.shape}")
        if self.labels.dtype != np.uint8:
            raise EdgesegError(f"{where}: labels must be uint8, got {self.labels.dtype}")


def check_spacing(spacing: tuple[float, ...], where: str) -> None:
    """Raise EdgesegError unless every spacing is a finite positive number of mm."""
    if not all(np.isfinite(s) and s > 0 for s in spacing):
        raise EdgesegError(f"{where}: spacing {spacing} must be positive: repair the header (pixdim) and try again")


def check_intensities(frames: np.ndarray, where: str) -> None:
    """Raise EdgesegError when `frames` holds NaN or infinity, or is one constant."""
    low, high = float(frames.min()), float(frames.max())  # NaN propagates through min
    if not (np.isfinite(low) and np.isfinite(high)):
        raise EdgesegError(f"{where}: the image holds NaN or infinite values: repair it or leave the case out")
    if low == high:
        raise EdgesegError(f"{where}: the image is constant ({low:g}): nothing to segment, leave the case out")
