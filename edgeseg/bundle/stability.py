"""Does it matter which frames calibrated? INT8 from several resampled sets, scored beside FP32.

    python -m edgeseg.bundle.stability SCRATCH RUN SPLIT [THREADS]      the part without torch, see `apart.py`

SCRATCH holds model.fp32.onnx and one array of frames a set; patient frames leave it with the folder.
"""

import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.bundle.apart import Say, answer_apart, run_apart
from edgeseg.bundle.calibrate import calibration_sets
from edgeseg.bundle.recipe import RUNGS, CalibrationRecipe
from edgeseg.bundle.score import labelled_split, score_file
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Calibration
from edgeseg.measure.statistics import Difference, paired_difference
from edgeseg.readers import Dataset
from edgeseg.runtime.backends import BACKENDS, SUFFIX

SCHEMA = "edgeseg.stability/1"
SPLITS = ("dev", "val")
Scored = dict[str, dict[str, float]]
"""Backend -> patient -> mean Dice of the patient's cases and structures."""


@dataclass(frozen=True)
class Sets:
    """One recipe's sets: their sheets, and what the INT8 files made with each scored."""

    recipe: CalibrationRecipe
    sheets: tuple[Calibration, ...]
    scored: tuple[Scored, ...]

    def dice(self, backend: str) -> list[float]:
        """Mean Dice over patients of each set."""
        return [mean(found[backend]) for found in self.scored]

    def spread(self, backend: str) -> float:
        """Largest minus smallest mean Dice."""
        return max(self.dice(backend)) - min(self.dice(backend))

    @property
    def overlap(self) -> float:
        """Share of frames that two sets have in common, averaged over all pairs of sets (of 1 nothing can spread)."""
        frames = [{f.sha256 for f in sheet.frames} for sheet in self.sheets]
        return float(np.mean([len(a & b) / min(len(a), len(b)) for a, b in combinations(frames, 2)]))

    def per_patient(self, backend: str) -> list[float]:
        """Dice of each patient, averaged over the sets, in the order of their names."""
        patients = sorted(self.scored[0][backend])
        return [float(np.mean([found[backend][p] for found in self.scored])) for p in patients]

    def document(self, fp32: Scored) -> dict[str, Any]:
        sheet = self.sheets[0]
        return {"recipe": self.recipe.name, "source": sheet.source, "data": sheet.data, "synthetic": sheet.synthetic,
                "overlap": self.overlap,
                "backends": {b: {"dice": self.dice(b), "spread": self.spread(b), "fp32": mean(fp32[b]),
                                 "largest_drop": mean(fp32[b]) - min(self.dice(b))} for b in BACKENDS},
                "sets": [{"seed": s.seed, "frames": len(s.frames), "patients": s.patients, "strata": s.strata}
                         for s in self.sheets]}


@dataclass(frozen=True)
class Stability:
    """What `measure_stability` found on `patients` patients of `split`. `others`: the sets of the compared recipe."""

    run: str
    data: str
    split: str
    patients: int
    fp32: Scored
    own: Sets
    others: Sets | None
    seconds: float

    def difference(self, backend: str) -> Difference | None:
        """Dice with the compared recipe minus Dice with the first one, both averaged over their sets, over patients."""
        if self.others is None:
            return None
        return paired_difference(self.others.per_patient(backend), self.own.per_patient(backend))

    def notes(self) -> list[str]:
        found = [f"{sets.recipe.name}: two sets share {100 * sets.overlap:.0f} % of their frames: the spread says "
                 "little of other frames" for sets in (self.own, self.others) if sets and sets.overlap > 0.5]
        found.append(f"the spread is that of {RUNGS[0]} quantisation, whatever rungs the recipe names: later rungs "
                     "of the ladder were not tried")
        if self.split == "val":
            found.append("val is only reported: choose on dev")
        return found

    def document(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "run": self.run, "data": self.data, "split": self.split, "patients": self.patients,
                "fp32": {b: mean(self.fp32[b]) for b in BACKENDS}, "recipe": self.own.document(self.fp32),
                "compared": self.others.document(self.fp32) if self.others else None,
                "difference": {b: self.difference(b) for b in BACKENDS} if self.others else None,
                "seconds": self.seconds, "notes": self.notes()}


def measure_stability(run: Run, recipe: CalibrationRecipe, count: int = 5, split: str = "dev",
                      compare: CalibrationRecipe | None = None, threads: int | None = None,
                      say: Say = lambda line: None) -> Stability:
    """Quantise (post-training) with `count` sets of frames, seeds recipe.seed and on, and score on `split`.

    Raises:
        EdgesegError: fewer than two sets, a split that is not dev or val or has no labels, whatever stops calibration.
    """
    from edgeseg.runtime.threads import checked_threads

    started = time.monotonic()
    for module in ("torch", "nncf", "onnx", "onnxscript"):  # found, not imported: NNCF is for the other process
        if find_spec(module) is None:
            raise EdgesegError(f"calibrate needs {module}: pip install 'edgeseg[train]'")
    checked_threads(threads)
    if count < 2:
        raise EdgesegError(f"--stability {count}: of fewer than 2 sets there is no spread")
    if split not in SPLITS:
        raise EdgesegError(f"--split {split}: choose dev, or val to report: calibration frames are training frames")
    data = run.dataset()
    cases = scored_cases(run, data, split)
    recipes = [recipe, compare] if compare else [recipe]
    with tempfile.TemporaryDirectory(prefix="edgeseg-stability-") as kept:
        scratch = Path(kept)
        sheets = [draw_sets(run, data, r, count, scratch / f"frames-{k}", say) for k, r in enumerate(recipes)]
        say("writing ONNX")
        write_model(run, scratch / "model.fp32.onnx")
        found = run_apart("edgeseg.bundle.stability", scratch, run.folder.absolute(), split,
                          *([str(threads)] if threads else []), say=say)
    own, *others = [Sets(r, s, tuple(scored))
                    for r, s, scored in zip(recipes, sheets, found["sets"], strict=True)]
    return Stability(run.name, data.name, split, len(cases.patients()), found["fp32"], own,
                     others[0] if others else None, time.monotonic() - started)


def scored_cases(run: Run, data: Dataset, split: str) -> Dataset:
    cases = labelled_split(run, data, split)
    if cases is None:
        raise EdgesegError(f"{data.spec}: no labelled case in {split}: nothing to score on")
    return cases


def draw_sets(run: Run, data: Dataset, recipe: CalibrationRecipe, count: int, folder: Path, say: Say
              ) -> tuple[Calibration, ...]:
    """Write the frames of each set as folder/K.npy and return their sheets."""
    folder.mkdir()
    sheets = []
    seeds = range(recipe.seed, recipe.seed + count)
    say(f"{recipe.name}: drawing {count} sets of {recipe.frames} frames")
    for k, (frames, sheet) in enumerate(calibration_sets(run, data, recipe, seeds)):
        np.save(folder / f"{k:03d}.npy", frames)
        sheets.append(sheet)
    return tuple(sheets)


def write_model(run: Run, out: Path) -> None:
    from edgeseg.bundle.fold import fold_batch_norm
    from edgeseg.onnx_file import write_onnx
    from edgeseg.students import is_recurrent

    student = run.student()
    if is_recurrent(student):
        raise EdgesegError(f"{run.folder}: its student is recurrent, and sets of single frames have no states: "
                           "`edgeseg export` calibrates it on clips")
    shape = (1, len(run.preprocessing.channels), *run.preprocessing.size)
    write_onnx(fold_batch_norm(student), shape, out)


def score_sets(scratch: Path, run: Run, split: str, threads: int | None, say: Say) -> dict[str, Any]:
    """FP32 of both runtimes, then the INT8 files of every set; for each recipe a list of `Scored`."""
    from edgeseg.bundle import quantise

    fp32 = scratch / "model.fp32.onnx"
    quantise.convert(fp32, fp32.with_suffix(".xml"))
    cases = scored_cases(run, run.dataset(), split)

    def score(path: Path, backend: str, precision: str) -> dict[str, float]:
        return score_file(path, backend, precision, cases, run.preprocessing, run.scheme, threads).patient_dice()

    base: Scored = {b: score(fp32.with_suffix(f".{SUFFIX[b]}"), b, "fp32") for b in BACKENDS}
    say("FP32: " + shown(base))
    folders = sorted(scratch.glob("frames-*"))
    sets: list[list[Scored]] = [[] for _ in folders]
    arrays = [(k, path) for k, folder in enumerate(folders) for path in sorted(folder.glob("*.npy"))]
    started = time.monotonic()
    for done, (k, path) in enumerate(arrays, start=1):
        scored: Scored = {}
        for backend in BACKENDS:
            int8 = path.with_suffix(f".{SUFFIX[backend]}")  # a new one each: OpenVINO maps the file that it runs
            quantise.quantise_rung(RUNGS[0], backend, fp32, int8, np.load(path), lambda p: float("nan"))
            scored[backend] = score(int8, backend, "int8")
        sets[k].append(scored)
        each = (time.monotonic() - started) / done
        say(f"set {done}/{len(arrays)}: {shown(scored)} ({each:.0f} s a set, {(len(arrays) - done) * each / 60:.1f} "
            "min left)")
    return {"fp32": base, "sets": sets}


def shown(scored: Scored) -> str:
    return ", ".join(f"{backend} {mean(found):.4f}" for backend, found in scored.items())


def mean(dice: dict[str, float]) -> float:
    return float(np.mean(list(dice.values())))


def main(arguments: list[str], say: Say) -> dict[str, Any]:
    scratch, run, split, *threads = arguments
    return score_sets(Path(scratch), Run.open(Path(run)), split, int(threads[0]) if threads else None, say)


if __name__ == "__main__":
    answer_apart(main)
