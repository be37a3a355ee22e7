"""Labelled cases of bright disks, one a class, in any scheme and with any number of channels."""

from functools import partial

import numpy as np

from edgeseg.case import Case
from edgeseg.labels import LabelScheme
from edgeseg.readers import CaseRef, Dataset


def disks(patient: int, phase: str, scheme: LabelScheme, channels: int = 1) -> Case:
    """Two slices with one bright disk a class (truth known: it is drawn), 48 x 56 pixels."""
    rng = np.random.default_rng([patient, phase == "ES"])
    y, x = np.mgrid[:48, :56]
    labels = np.zeros((2, 48, 56), np.uint8)
    for k in range(1, len(scheme.names)):
        row, column = 10 + 7 * k + rng.integers(-2, 3), 12 * (k % 4) + 10
        labels[:, np.hypot(y - row, x - column) < 6] = scheme.values[k]
    frames = (labels[:, None] * 60 + rng.normal(100, 8, (2, channels, 48, 56))).clip(1).round().astype(np.float32)
    name = f"p{patient:02d}"
    return Case(f"{name}_{phase}", name, frames, (1.5, 1.25), slice_spacing=8.0, labels=labels, scheme=scheme,
                phase=phase)


def dataset(scheme: LabelScheme, channels: int = 1, patients: int = 6) -> Dataset:
    splits = ["train"] * (patients - 2) + ["dev", "val"]
    refs = tuple(
        CaseRef(f"p{i:02d}_{ph}", f"p{i:02d}", splits[i], ph, None, None, partial(disks, i, ph, scheme, channels))
        for i in range(patients) for ph in ("ED", "ES"))
    return Dataset("disks", "disks", refs, scheme, "synthetic")
