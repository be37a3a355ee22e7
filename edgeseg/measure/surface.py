"""Hausdorff distance at 95 %, in mm.

Definition used here (that of medpy's `hd95`): the surface of a mask is its voxels with at least one face neighbour
outside the mask, where everything outside the image counts as outside; d(a -> b) are the distances from every surface
voxel of `a` to the nearest surface voxel of `b`; HD95 is the 95th percentile (linear interpolation) of both directed
sets pooled. MONAI and the Medical Segmentation Decathlon take the larger of the two directed 95th percentiles, which is
never the smaller number (interpolation aside): figures of the two kinds cannot be compared.
"""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt

from edgeseg.preprocess import bounding_box


def hd95(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> float:
    """95 % Hausdorff distance in mm of two bool arrays of one shape (2D or 3D).

    Args:
        spacing: mm for each axis of the arrays, so (z, y, x) for a volume.

    Returns:
        0.0 when both masks are empty (they agree); NaN when only one is: no distance exists, callers count these.
    """
    if not a.any() and not b.any():
        return 0.0
    if not (a.any() and b.any()):
        return float("nan")
    return float(np.percentile(np.concatenate(surface_distances(a, b, spacing)), 95))


def surface_distances(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from each surface voxel of `a` to the surface of `b`, and from `b` to `a` (neither is empty).

    By exact distance transforms of the box around both. (scipy's cKDTree recurses without end, and the process dies,
    when denormals are zero, which both CPU runtimes switch on in the thread that loads them.)
    """
    if a.shape != b.shape or a.ndim != len(spacing):
        raise ValueError(f"masks of shapes {a.shape} and {b.shape} with spacing {tuple(spacing)} cannot be compared")
    edge_a, edge_b = surface(a), surface(b)
    box = bounding_box(edge_a | edge_b)
    edge_a, edge_b = edge_a[box], edge_b[box]
    to_a, to_b = (distance_transform_edt(~edge, sampling=tuple(spacing)) for edge in (edge_a, edge_b))
    return to_b[edge_a], to_a[edge_b]


def surface(mask: np.ndarray) -> np.ndarray:
    """The surface voxels of a bool array, as a bool array."""
    mask = mask.astype(bool, copy=False)
    return mask & ~binary_erosion(mask)  # scipy's default structure has the face neighbours, its border is background
