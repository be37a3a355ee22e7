"""A student that begins with the weights of a finished run instead of random ones, to go on with other data."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.labels import LabelScheme
from edgeseg.readers import Dataset
from edgeseg.teachers.checkpoint import sha256

if TYPE_CHECKING:
    from torch import nn

RECORD = "pretrained.json"
"""In the new run's folder: what `begin_with` returned, for when the old run is not there any more."""


def begin_with(recipe: Recipe, out: Path, student: "nn.Module", scheme: LabelScheme, dataset: Dataset
               ) -> dict[str, Any]:
    """Give `student` the weights of the run `recipe.pretrained`, unless the run in `out` has got beyond them.

    Patients are told by the names of data set and patient: a copy under other names does not show.

    Returns:
        What the new run keeps of the old one: name, sha256 of the weights, data, licence, names of teachers, and the
        patients that it learned from and that its epoch was chosen on. All but the first two also of the run that the
        old one had begun with.

    Raises:
        EdgesegError: not a finished run, another network or other structures; or it learned from patients that choose
            (dev) or report (val) here, or was chosen on patients that report.
    """
    record = out / RECORD
    if record.exists() and (out / "last.ckpt").exists():
        return json.loads(record.read_text())
    folder = Path(recipe.pretrained)
    run, spec = Run.open(folder), student.spec.to_dict()  # type: ignore[operator, union-attr]
    if other := next((k for k in spec if run.spec.get(k) != spec[k]), None):
        raise EdgesegError(f"pretrained {folder}: its student has {other} = {run.spec.get(other)}, this one "
                           f"{spec[other]}: both need the same network")
    if run.scheme.names != scheme.names:
        raise EdgesegError(f"pretrained {folder}: segments {', '.join(run.scheme.foreground)}, not "
                           f"{', '.join(scheme.foreground)}, in this order")
    before = run.data.get("pretrained", {})
    learned, chosen = run.trained_on(), run.plain_names("dev") | set(before.get("chosen", ()))
    if run.data_names() & set(dataset.name.split("+")):
        refuse(folder, dataset, "val", learned | chosen)
        if not recipe.final:
            refuse(folder, dataset, "dev", learned)
    student.load_state_dict(run.student().state_dict())
    teacher = run.teacher.get("dataset") or run.teacher.get("folder") or ("unnamed" if run.teacher else None)
    kept = {"name": run.folder.resolve().name, "sha256": sha256(run.folder / "student.safetensors"),
            "data": sorted(run.data_names()), "licence": run.data["licence"],
            "teachers": [*([str(teacher)] if teacher else []), *before.get("teachers", ())],
            "patients": sorted(learned), "chosen": sorted(chosen)}
    write_text(record, json.dumps(kept, indent=1) + "\n")
    return kept


def refuse(folder: Path, dataset: Dataset, split: str, seen: set[str]) -> None:
    """Raise EdgesegError when one of `seen` is in `split`, by whichever of its names."""
    parts = dataset.name.split("+")
    if both := sorted(p for p in dataset.select(split).patients()
                      if seen & {p, *(p.removeprefix(f"{name}_") for name in parts)}):
        raise EdgesegError(f"pretrained {folder}: was made with {len(both)} patient(s) of {split}, {both[0]} one "
                           "of them: restore the split that it was trained with")
