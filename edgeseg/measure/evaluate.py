"""Evaluate: any segmenter against manual labels, case by case, then per patient with intervals."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.manifest import Data, split_sha256
from edgeseg.measure import overlap, statistics, surface, volumes
from edgeseg.measure.document import write_csv, write_json

Segment = Callable[[Case], np.ndarray]
"""Case -> class indices uint8 [N, H, W] in the case's own grid."""

METRICS = ("dice", "iou", "recall", "precision", "hd95_mm")
PHASES = ("ED", "ES")
SCHEMA = "edgeseg.evaluation/1"


@dataclass(frozen=True)
class Row:
    """One structure of one case. Volumes are NaN without a slice spacing; `hd95_mm` is NaN when one mask is empty."""

    case: str
    patient: str
    group: str | None
    vendor: str | None
    phase: str | None
    structure: str
    dice: float
    iou: float
    recall: float
    precision: float
    hd95_mm: float
    volume_ml: float
    manual_volume_ml: float
    difference_ml: float


@dataclass(frozen=True)
class ReadOut:
    """One clinical value of one patient (`name` carries the unit: `LV EF %`), measured and from the manual labels."""

    patient: str
    group: str | None
    name: str
    measured: float
    manual: float
    difference: float


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        about: whatever the caller wants to have in the document (model, data, seed, ...).
        notes: lines for a person, for example cases on which the segmenter reported a problem.
    """

    scheme: LabelScheme
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def read_outs(self) -> list[ReadOut]:
        """Volumes and EF of LV and RV, LV mass: of each patient for whom the phases that it needs are there."""
        return list(clinical_values(self.rows))

    def patient_dice(self, structure: str | None = None, phase: str | None = None) -> dict[str, float]:
        """Patient -> mean Dice over that patient's cases and structures (of those asked for), sorted by patient."""
        return self.patient_values("dice", structure, phase)

    def patient_values(self, metric: str, structure: str | None = None, phase: str | None = None) -> dict[str, float]:
        rows = [r for r in self.rows if structure in (None, r.structure) and phase in (None, r.phase)]
        return statistics.per_patient([getattr(r, metric) for r in rows], [r.patient for r in rows])

    def summary(self, seed: int = 0, resamples: int = statistics.RESAMPLES) -> dict[str, Any]:
        """Means over patients with 95 % bootstrap intervals, for every structure over all cases and in ED and ES.

        A patient's value is the mean over that patient's cases (and structures, in `mean`). `undefined` counts the
        cases without an HD95 because one of the two masks is empty: they are not in its mean.
        """
        phases = [None, *(p for p in PHASES if any(r.phase == p for r in self.rows))]
        structures: dict[str, dict[str, Any]] = {}
        for structure in (None, *self.scheme.foreground):
            table = structures[structure or "mean"] = {}
            for phase in phases:
                cell = table[phase or "all"] = {}
                for metric in METRICS:
                    values = list(self.patient_values(metric, structure, phase).values())
                    cell[metric] = statistics.bootstrap_interval(values, resamples=resamples, seed=seed)
                cell["undefined"] = sum(np.isnan(r.hd95_mm) for r in self.rows
                                        if structure in (None, r.structure) and phase in (None, r.phase))
        found = self.read_outs()
        clinical = {name: statistics.agreement([r.measured for r in found if r.name == name],
                                               [r.manual for r in found if r.name == name], seed=seed)
                    for name in dict.fromkeys(r.name for r in found)}
        return {"cases": len({r.case for r in self.rows}), "patients": len({r.patient for r in self.rows}),
                "seed": seed, "structures": structures, "clinical": clinical}

    def document(self, seed: int = 0) -> dict[str, Any]:
        return {"schema": SCHEMA, **self.about, "seconds": self.seconds, "notes": self.notes,
                "summary": self.summary(seed), "rows": [asdict(r) for r in self.rows],
                "read_outs": [asdict(r) for r in self.read_outs()]}

    def write(self, out: Path, seed: int = 0) -> list[Path]:
        """cases.csv (a line per case and structure), patients.csv (clinical values) and evaluation.json in `out`."""
        return [write_csv(out / "cases.csv", self.rows, [f.name for f in fields(Row)]),
                write_csv(out / "patients.csv", self.read_outs(), [f.name for f in fields(ReadOut)]),
                write_json(out / "evaluation.json", self.document(seed))]


def evaluate(segment: Segment, cases: Iterable[Case], scheme: LabelScheme, ignore: int | None = None,
             progress: Callable[[Case], None] | None = None) -> Evaluation:
    """Compare `segment` with the manual labels of `cases`, one case in memory at a time.

    Args:
        scheme: the task's classes; labels of every case are brought into it by name.
        ignore: label value of the data set's unlabelled pixels: they count for nobody.
        progress: called with each case once it is done.

    Raises:
        EdgesegError: no case, a case without labels, or labels that do not fit the scheme.
    """
    result, start = Evaluation(scheme), time.monotonic()
    for case in cases:
        result.rows.extend(compare(case, segment(case), scheme, ignore))
        if progress:
            progress(case)
    if not result.rows:
        raise EdgesegError("no case to evaluate: choose another --data or --split")
    result.seconds = time.monotonic() - start
    return result


def evaluate_bundle(path: Path, data: str, split: str = "val", split_file: Path | None = None,
                    precision: str = "auto", backend: str = "openvino", threads: int | None = None,
                    progress: Callable[[Case, int], None] | None = None) -> Evaluation:
    """Run the bundle at `path` over the cases of `split` ("all": every case) of the data set that `data` names.

    A case that the bundle refuses is scored as the background that it returns, with a note: leaving it out would
    flatter the bundle. Patients that are not the bundle's own `split` are noted too (`split_note`).

    Args:
        progress: called with each case once it is done, and the number of cases.

    Raises:
        EdgesegError: a bundle or data set that cannot be read, an empty split, cases without labels.
    """
    from edgeseg.readers import open_data
    from edgeseg.runtime.segmenter import Segmenter

    segmenter = Segmenter(path, backend, precision, threads)
    dataset = open_data(data, split_file)
    cases = dataset.select(None if split == "all" else split)
    if not len(cases):
        raise EdgesegError(f"{data}: no case in split {split!r}: choose another --split or --split-file")
    about_data = split_note(segmenter.bundle.manifest.data, dataset.name, split, cases.patients())
    notes = [about_data] if about_data else []

    def segment(case: Case) -> np.ndarray:
        found = segmenter.segment_volume(case.frames, case.spacing)
        if not found.ok:
            notes.append(f"{case.id}: {found.status}")
        return segmenter.scheme.encode(found.labels, segmenter.scheme)

    result = evaluate(segment, cases, segmenter.scheme, dataset.ignore,
                      (lambda case: progress(case, len(cases))) if progress else None)
    result.notes = notes
    result.about = {"bundle": segmenter.bundle.path.name, "backend": backend, "precision": segmenter.precision,
                    "data": {"name": dataset.name, "split": split, "licence": dataset.licence}}
    return result


def split_note(trained: Data, name: str, split: str, patients: Iterable[str]) -> str:
    """What to say when the scored `patients` of data set `name` are not `split` of what the bundle was trained on.

    Empty when they are. Names joined by "+" are those of merged data sets: a part of them is not external.
    """
    if not set(name.split("+")) & set(trained.name.split("+")):
        return f"external data: {name} is, by its name, not the data that the bundle was trained on ({trained.name})"
    if split == "all":
        return "CAUTION: all patients are scored, also those that the bundle was trained on"
    if trained.split_sha256.get(split) != split_sha256(patients):
        return f"CAUTION: these are not the {split} patients of the training split: some may have been trained on"
    return ""


def compare(case: Case, predicted: np.ndarray, scheme: LabelScheme, ignore: int | None = None) -> list[Row]:
    """One Row a foreground structure: class indices `predicted` [N, H, W] against the labels of `case`."""
    manual = manual_classes(case, predicted, scheme, ignore)
    counted = manual != IGNORE
    stack = case.axis == "slice" and case.slice_spacing is not None
    rows = []
    for k, name in enumerate(scheme.foreground, start=1):
        a, b = (predicted == k) & counted, manual == k
        ml = [volumes.volume_ml(m, (case.slice_spacing, *case.spacing)) if stack else float("nan")  # type: ignore[arg-type]
              for m in (a, b)]
        rows.append(Row(case.id, case.patient, case.group, case.vendor, case.phase, name, overlap.dice(a, b),
                        overlap.iou(a, b), overlap.recall(a, b), overlap.precision(a, b), distance(a, b, case),
                        ml[0], ml[1], ml[0] - ml[1]))
    return rows


def manual_classes(case: Case, predicted: np.ndarray, scheme: LabelScheme, ignore: int | None = None) -> np.ndarray:
    """Class indices of the labels of `case`, uint8 [N, H, W] as `predicted` is, IGNORE where its data set says so.

    Raises:
        EdgesegError: no labels, labels of another shape, or labels that do not fit the scheme.
    """
    where = case.source or case.id
    if case.labels is None or case.scheme is None:
        raise EdgesegError(f"{where}: has no labels to evaluate against: choose labelled data or leave the case out")
    if predicted.shape != case.labels.shape:
        raise EdgesegError(f"{where}: segmented as {predicted.shape}, labelled as {case.labels.shape}")
    try:
        return scheme.encode(case.labels, case.scheme, ignore)
    except EdgesegError as error:
        raise EdgesegError(f"{where}: {error}") from None


def distance(a: np.ndarray, b: np.ndarray, case: Case) -> float:
    """HD95 in mm: of the volume for a slice stack; of a clip, the mean over the frames in which both masks are."""
    if case.axis == "slice" and case.slice_spacing is not None:
        return surface.hd95(a, b, (case.slice_spacing, *case.spacing))
    found = [surface.hd95(x, y, case.spacing) for x, y in zip(a, b, strict=True) if x.any() and y.any()]
    if found:
        return float(np.mean(found))
    return float("nan") if a.any() or b.any() else 0.0


def clinical_values(rows: list[Row]) -> Iterator[ReadOut]:
    """Volumes at ED and ES, EF and LV mass (myocardium at ED), where the structures and phases are there."""
    groups = {r.patient: r.group for r in rows}
    ml = {(r.patient, r.structure, r.phase): (r.volume_ml, r.manual_volume_ml) for r in rows}

    def read_out(patient: str, name: str, measured: float, manual: float) -> ReadOut:
        return ReadOut(patient, groups[patient], name, measured, manual, measured - manual)

    for patient in sorted(groups):
        for cavity in ("LV", "RV"):
            ed, es = ml.get((patient, cavity, "ED")), ml.get((patient, cavity, "ES"))
            if ed:
                yield read_out(patient, f"{cavity} EDV ml", *ed)
            if es:
                yield read_out(patient, f"{cavity} ESV ml", *es)
            if ed and es:
                values = [volumes.ejection_fraction(*pair) for pair in zip(ed, es, strict=True)]
                yield read_out(patient, f"{cavity} EF %", *values)
        if muscle := ml.get((patient, "MYO", "ED")):
            yield read_out(patient, "LV mass g", *(volumes.mass_g(v) for v in muscle))
