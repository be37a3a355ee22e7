"""Every exported file against torch, on real frames: what was measured, and whether it may be written."""

from pathlib import Path

import numpy as np

from edgeseg.errors import GateFailed
from edgeseg.manifest import FileCheck
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, load_backend, model_file
from edgeseg.runtime.golden import label_agreement

FP32_DIFFERENCE = 1e-3
"""Largest |logit difference| to torch of an FP32 file, as a share of the logits' range. Summation order gives 1e-6;
a wrong padding, resize mode or FP16 weights give more than 1e-3."""
FP32_AGREEMENT = 0.999


def check_file(path: Path, backend: str, precision: str, inputs: np.ndarray, reference: np.ndarray) -> FileCheck:
    """Run a model file on `inputs` [n, C, gh, gw] and compare with torch's logits `reference` [n, K, gh, gw]."""
    network = load_backend(backend, path)
    logits = np.concatenate([network(x[None]) for x in inputs])
    difference = logits - reference
    size = path.stat().st_size + (path.with_suffix(".bin").stat().st_size if path.suffix == ".xml" else 0)
    return FileCheck.model_validate({
        "file": path.name, "backend": backend, "precision": precision, "bytes": size,
        "max_logit_difference": float(np.abs(difference).max()),
        "logit_range": float(reference.max() - reference.min()),
        "relative_error": float(np.sqrt(np.mean(difference**2, dtype=np.float64)) / max(reference.std(), 1e-12)),
        "label_agreement": label_agreement(logits.argmax(axis=1), reference.argmax(axis=1)),
    })


def check_files(folder: Path, inputs: np.ndarray, reference: np.ndarray) -> list[FileCheck]:
    """`check_file` for every model file in `folder`, FP32 first."""
    found = [(p, b, folder / model_file(b, p)) for p in PRECISIONS for b in BACKENDS]
    return [check_file(path, b, p, inputs, reference) for p, b, path in found if path.is_file()]


def refuse_bad(checks: list[FileCheck]) -> None:
    """Raise GateFailed when an FP32 file is not what was trained. (Whether INT8 is good enough is for admission.)"""
    for c in checks:
        if c.precision != "fp32":
            continue
        if not (c.max_logit_difference <= FP32_DIFFERENCE * c.logit_range and c.label_agreement >= FP32_AGREEMENT):
            raise GateFailed(
                f"{c.file}: differs from the trained student: max |logit difference| {c.max_logit_difference:.3g} of a "
                f"range of {c.logit_range:.3g}, label agreement {c.label_agreement:.4f} (limits {FP32_DIFFERENCE:g} of "
                f"the range and {FP32_AGREEMENT:g}): nothing was written")
