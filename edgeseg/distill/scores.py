"""What the student of a run scores on labelled cases, FP32 in PyTorch: weights are judged, not a runtime."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.case import Case
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import write_json
from edgeseg.measure.evaluate import manual_classes
from edgeseg.measure.overlap import counts_per_class, scores
from edgeseg.readers import Dataset

SCHEMA = "edgeseg.scores/1"


@dataclass(frozen=True)
class Scores:
    """Pixels of every case and structure.

    Attributes:
        cases: ids. of_patient: the patient of each case. structures: names, as in `LabelScheme.foreground`.
        counts: `overlap.Counts`, int64 [cases, structures, 3].
    """

    cases: tuple[str, ...]
    of_patient: tuple[str, ...]
    structures: tuple[str, ...]
    counts: np.ndarray

    @property
    def patients(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.of_patient)))

    @cached_property
    def patient_dice(self) -> np.ndarray:
        """Dice float64 [patients, structures], averaged over the cases of each patient."""
        dice, names = scores(self.counts)["dice"], np.array(self.of_patient)
        return np.stack([dice[names == p].mean(axis=0) for p in self.patients])


def score(run: Run, cases: Dataset, progress: Callable[[Case], None] = lambda case: None) -> Scores:
    """Segment `cases` with the run's student and count.

    Raises:
        EdgesegError: no case, a case without labels, labels that do not fit the run's, or other channels.
    """
    import torch

    from edgeseg.students import frame_by_frame, is_recurrent

    if not len(cases):
        raise EdgesegError(f"{cases.spec}: no case to compare on: choose another --split or --data")
    student = run.student()

    def network(x: Any) -> Any:
        return frame_by_frame(student, torch.from_numpy(x)).numpy()

    found = []
    with torch.inference_mode():
        for case in cases:
            where = case.source or case.id
            if case.frames.shape[1] != len(run.channels):
                raise EdgesegError(f"{where}: {case.frames.shape[1]} channels, run {run.name} reads "
                                   f"{len(run.channels)}")
            batch = len(case.frames) if is_recurrent(student) else 8  # a clip is one sequence
            predicted = run.preprocessing.segment(case.frames, case.spacing, network, batch)
            manual = manual_classes(case, predicted, run.scheme, cases.ignore)
            found.append(counts_per_class(predicted, manual, len(run.scheme.names)))
            progress(case)
    return Scores(tuple(r.id for r in cases.refs), tuple(r.patient for r in cases.refs), run.scheme.foreground,
                  np.array(found))


def kept_scores(run: Run, cases: Dataset, folder: Path | None,
                progress: Callable[[Case], None] = lambda case: None) -> Scores:
    """`score`, from a file in `folder` where one was written for these weights and these cases before."""
    if folder is None:
        return score(run, cases, progress)
    key = key_of(run, cases)
    file = folder / f"{run.name}-{key[:12]}.json"
    if file.exists():
        try:
            values = json.loads(file.read_text("utf-8"))
            return Scores(tuple(values["cases"]), tuple(values["patients"]), tuple(values["structures"]),
                          np.array(values["counts"], np.int64))
        except (ValueError, KeyError, TypeError):
            raise EdgesegError(f"{file}: damaged: delete it, and the run is scored again") from None
    found = score(run, cases, progress)
    write_json(file, {"schema": SCHEMA, "key": key, "run": run.name, "data": cases.spec, "cases": found.cases,
                      "patients": found.of_patient, "structures": found.structures, "counts": found.counts})
    return found


def key_of(run: Run, cases: Dataset) -> str:
    """SHA-256 of the weights and of what they are scored on."""
    with (run.folder / "student.safetensors").open("rb") as file:
        weights = hashlib.file_digest(file, "sha256").hexdigest()
    about = [weights, cases.spec, [(r.id, r.patient) for r in cases.refs], run.scheme.names]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
