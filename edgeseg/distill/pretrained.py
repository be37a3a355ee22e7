"""A student that begins with the weights of a finished run instead of random ones, to go on with other data."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers import Dataset
from edgeseg.teachers.checkpoint import sha256

if TYPE_CHECKING:
    from torch import nn


def begin_with(folder: Path, student: "nn.Module", scheme: LabelScheme, dataset: Dataset) -> dict[str, Any]:
    """Give `student` the weights of the run in `folder`.

    Returns:
        What the new run keeps of the old one: name, sha256 of the weights, data, licence, and the patients that it
        learned from.

    Raises:
        EdgesegError: not a finished run, another network or other structures, or it learned from patients that choose
            (dev) or report (val) here.
    """
    run, spec = Run.open(folder), student.spec.to_dict()  # type: ignore[operator, union-attr]
    if other := next((k for k in spec if run.spec.get(k) != spec[k]), None):
        raise EdgesegError(f"pretrained {folder}: its student has {other} = {run.spec.get(other)}, this one "
                           f"{spec[other]}: both need the same network")
    if run.scheme.names != scheme.names:
        raise EdgesegError(f"pretrained {folder}: segments {', '.join(run.scheme.foreground)}, not "
                           f"{', '.join(scheme.foreground)}, in this order")
    if run.data_names() & set(dataset.name.split("+")):
        seen = run.trained_on()
        for split in ("dev", "val"):
            if both := sorted({p for p in dataset.select(split).patients() for name in dataset.name.split("+")
                               if seen & {p, p.removeprefix(f"{name}_")}}):
                raise EdgesegError(f"pretrained {folder}: learned from {len(both)} patient(s) of {split}, {both[0]} "
                                   "one of them: restore the split that it was trained with")
    student.load_state_dict(run.student().state_dict())
    return {"name": run.folder.resolve().name, "sha256": sha256(run.folder / "student.safetensors"),
            "data": sorted(run.data_names()), "licence": run.data["licence"], "patients": sorted(run.trained_on())}
