"""The accuracy half of a search: candidates trained for a few epochs, each in a process of its own.

    python -m edgeseg.distill.search_rung SEARCH NAME EPOCHS OUT     writes OUT.json, in OUT/ while it trains

A rung starts anew, with a complete one-cycle schedule of its own length: what a network reaches after a cut-off long
schedule ranks it worse than what it reaches at the end of a short one. The teacher's predictions are made once per case
(SEARCH/soft) and brought to each grid once (SEARCH/grids); the weights of the last epoch are what dev scores.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg import child
from edgeseg.case import Case
from edgeseg.distill.machine import Machine, check_machine
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.search_space import Candidate
from edgeseg.errors import EdgesegError
from edgeseg.files import new_file, write_text
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.readers import Dataset

TASK, CANDIDATES, RUNGS = "task.json", "candidates.json", "rungs"


@dataclass(frozen=True)
class Task:
    """What every training of a search shares, without the teacher's network; stored in its folder.

    Attributes:
        recipe: of the distillation. mirror_axes: the teacher's. stored: there are soft targets.
    """

    recipe: Recipe
    scheme: LabelScheme
    channels: tuple[Normalisation, ...]
    mirror_axes: tuple[int, ...]
    stored: bool

    def save(self, folder: Path) -> None:
        write_text(folder / TASK, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Task":
        values = json.loads((folder / TASK).read_text())
        return cls(Recipe().changed(values["recipe"]), LabelScheme(**values["scheme"]),
                   tuple(Normalisation(**c) for c in values["channels"]), tuple(values["mirror_axes"]),
                   values["stored"])

    def dataset(self) -> Dataset:
        return data_of(self.recipe)

    def grid(self, candidate: Candidate) -> Preprocessing:
        return Preprocessing(candidate.size, candidate.spacing, self.channels)


def data_of(recipe: Recipe) -> Dataset:
    return recipe.dataset()


class StoredTeacher:
    """A teacher whose soft predictions lie in a folder, uint8 [N, K, H, W] in the native grid, one file a case.

    Without `teacher`, the real one, it has only those that are there already.
    """

    predict_only = True

    def __init__(self, folder: Path, mirror_axes: tuple[int, ...], teacher: Any = None) -> None:
        self.folder, self.mirror_axes, self.teacher = folder, mirror_axes, teacher

    def predict(self, case: Case, tta: str) -> tuple[None, np.ndarray]:
        """(nothing, class probabilities float32 [N, K, H, W])."""
        file = self.folder / f"{hashlib.sha256(case.id.encode()).hexdigest()[:24]}.npy"
        if not file.exists():
            if self.teacher is None:
                raise EdgesegError(f"{case.id}: no stored prediction in {self.folder}: has the data changed?")
            soft = np.round(self.teacher.predict(case, tta)[1] * 255).astype(np.uint8)
            with new_file(file) as part:
                np.save(part, soft)
        return None, np.load(file).astype(np.float32) / 255


def prepare(task: Task, grid: Preprocessing, folder: Path, teacher: Any, say: Callable[[str], None]) -> float:
    """Bring the training cases to one grid, in `folder`; returns the share of the foreground outside its window."""
    from edgeseg.distill.cache import Preparation

    stored = StoredTeacher(folder.parents[1] / "soft", task.mirror_axes, teacher)
    soft = (lambda case: stored.predict(case, task.recipe.tta)[1]) if task.stored else None
    train = task.dataset().select("train")
    return Preparation(train, task.scheme, grid, task.recipe.kd_weight < 1, soft).run(folder, say).outside


def save_candidates(folder: Path, candidates: Sequence[Candidate]) -> None:
    write_text(folder / CANDIDATES, "[\n" + ",\n".join(json.dumps(asdict(c)) for c in candidates) + "\n]\n")


def load_candidates(folder: Path) -> dict[str, Candidate]:
    """By name; none where nothing was drawn yet."""
    file = folder / CANDIDATES
    rows = json.loads(file.read_text()) if file.exists() else []
    return {r["name"]: Candidate(**r | {"size": tuple(r["size"]), "spacing": tuple(r["spacing"])}) for r in rows}


def train_one(search: Path, name: str, epochs: int, out: Path) -> dict[str, Any]:
    """Train one candidate on one thread and return what is kept of it: dev Dice, seconds, kind of window."""
    from edgeseg.distill.train import make_student, train_network

    task, candidate = Task.load(search), load_candidates(search)[name]
    # the schedule ends at learning rate 0, which is its own average: a moving one would only lag in a run so short
    recipe = replace(candidate.recipe(task.recipe), epochs=epochs, validate_every=epochs, ema=0.0)
    machine = Machine(threads=1)
    check_machine(machine, recipe.batch_size)
    student = make_student(recipe, len(task.channels), len(task.scheme.names))
    teacher = StoredTeacher(search / "soft", task.mirror_axes) if task.stored else None
    out.mkdir(parents=True, exist_ok=True)
    module = train_network(student, recipe, task.dataset(), task.scheme, task.grid(candidate), out, machine,
                           lambda line: None, teacher, grid_folder(search, candidate))
    if module.best["epoch"] < 0 or not np.isfinite(module.best["dice"]):
        raise EdgesegError(f"{name}: its training diverged")
    return {"name": name, "epochs": epochs, "dice": module.best["dice"],
            "per_structure": module.best["per_structure"], "seconds": round(module.seconds, 1),
            "window": module.preprocessing.window}


def grid_folder(search: Path, candidate: Candidate) -> Path:
    return search / "grids" / candidate.grid


def result_file(search: Path, rung: int, name: str) -> Path:
    return search / RUNGS / str(rung) / f"{name}.json"


def train_rung(search: Path, rung: int, names: Sequence[str], epochs: int, jobs: int,
               on_done: Callable[[str, dict[str, Any]], None]) -> dict[str, dict[str, Any]]:
    """Train `names` (rung counts from 1), `jobs` at a time; {name: what `train_one` gave, or {"failed": why}}.

    What an earlier call finished is not trained again, what it began goes on from its last epoch. `on_done` is told of
    each as it is done. Whatever ends this call ends the trainings.
    """
    found: dict[str, dict[str, Any]] = {}
    running: dict[str, Training] = {}
    waiting = list(names)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                if (file := result_file(search, rung, name)).exists():
                    found[name] = json.loads(file.read_text())
                    continue
                running[name] = Training(search, rung, name, epochs)
            for name, training in list(running.items()):
                if training.process.poll() is not None:
                    found[name] = running.pop(name).result()
                    on_done(name, found[name])
            time.sleep(0.1 if running else 0)
    finally:
        for training in running.values():
            training.end()
    return found


class Training:
    """One process that trains one candidate."""

    def __init__(self, search: Path, rung: int, name: str, epochs: int) -> None:
        self.file = result_file(search, rung, name)
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  closed in `end`
        # a session of its own: Ctrl-C is the search's business, which then ends it between two epochs' files
        self.process = subprocess.Popen(
            [*child.command("edgeseg.distill.search_rung"), str(search), name, str(epochs),
             str(self.file.with_suffix(""))], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self.errors,
            env=child.environment() | {"OMP_NUM_THREADS": "1"}, start_new_session=True)

    def result(self) -> dict[str, Any]:
        code = self.process.wait()
        self.errors.seek(0)
        said = [line for line in self.errors.read().splitlines() if line.strip()][-1:] or [f"ended with code {code}"]
        self.end()
        return json.loads(self.file.read_text()) if code == 0 and self.file.exists() else {"failed": said[0][:300]}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def end_with_search() -> None:
    """A search that was killed closes the pipe to its trainings: two of a candidate must not write into one folder."""
    sys.stdin.read()
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    threading.Thread(target=end_with_search, daemon=True).start()
    search, name, epochs, out = Path(arguments[0]), arguments[1], int(arguments[2]), Path(arguments[3])
    try:
        found = train_one(search, name, epochs, out)
    except EdgesegError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    write_text(out.with_suffix(".json"), json.dumps(found) + "\n")
    shutil.rmtree(out, ignore_errors=True)  # weights and optimiser: the winner is trained anew
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
