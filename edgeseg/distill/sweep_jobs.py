"""The runs of a sweep, several at once, each `distill` in a process of its own.

    python -m edgeseg.distill.sweep_jobs OUT NAME THREADS [trust]     one run, into OUT/NAME

OUT/NAME are the runs. OUT/.sweep holds what only the sweep needs: NAME.toml (the recipe), NAME.log (what the run said)
and, until all runs are finished, the prepared cases that they share.
"""

import csv
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgeseg import child
from edgeseg.distill.machine import Machine
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.sweep import Planned, differing, shared
from edgeseg.distill.train import READY, absolute
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text

INSIDE = ".sweep"
LOOK_SECONDS = 0.5
"""Between looks at the processes; an epoch takes longer."""
State = Literal["waiting", "preparing", "training", "done", "failed"]


@dataclass(frozen=True)
class Progress:
    """How far one run is, as its folder says.

    Attributes:
        epoch: finished ones, of `epochs`. dice: best mean dev Dice so far, None before the first validation.
        left: seconds to go at the mean pace of its epochs, None where that is not known. why: of a failed run, a line.
    """

    planned: Planned
    state: State
    epoch: int
    epochs: int
    dice: float | None
    left: float | None
    why: str = ""


def run_sweep(planned: Sequence[Planned], out: Path, jobs: int = 1, threads: int = 1, trust: bool = False,
              on_look: Callable[[list[Progress]], None] = lambda rows: None) -> list[Progress]:
    """Make the runs that `out` does not hold yet, `jobs` at a time; what was interrupted goes on from its last epoch.

    A run that fails is left as it is and the others go on; the same call tries it again. Whatever ends this call ends
    the runs. `on_look` gets the progress of all runs, every LOOK_SECONDS.

    Raises:
        EdgesegError: a run in `out` was begun with another recipe (before anything is made), or another sweep is at
            work in `out`.
    """
    planned = [replace(p, recipe=whole_paths(p.recipe)) for p in planned]
    check_begun(planned, out)
    inside = out / INSIDE
    inside.mkdir(parents=True, exist_ok=True)
    with alone(out):
        waiting = [p for p in planned if not finished(out, p)]
        for p in waiting:
            write_text(inside / f"{p.name}.toml", p.recipe.to_toml())
            (out / p.name / READY).unlink(missing_ok=True)  # of an interrupted run
        running: dict[str, Training] = {}
        failed: dict[str, str] = {}
        done: dict[str, Progress] = {}  # read once

        def rows() -> list[Progress]:
            found = [done.get(p.name) or look(p, out, p.name in running, failed.get(p.name, "")) for p in planned]
            done.update({r.planned.name: r for r in found if r.state == "done"})
            return found

        try:
            while waiting or running:
                for p in [p for p in waiting if len(running) < jobs]:
                    # one run at a time prepares the cases that several share
                    preparing = {t.cache for t in running.values() if not (out / t.planned.name / READY).exists()}
                    if len(running) < jobs and shared(p.recipe) not in preparing:
                        waiting.remove(p)
                        slot = min(set(range(jobs)) - {t.slot for t in running.values()})
                        running[p.name] = Training(p, out, slot, threads, trust)
                on_look(rows())
                time.sleep(LOOK_SECONDS)
                for name, training in list(running.items()):
                    if training.process.poll() is not None:
                        del running[name]
                        if not finished(out, training.planned):
                            failed[name] = training.last_words()
                        training.end()
        finally:
            for training in running.values():
                training.end()
        on_look(rows())
        if not failed:
            for cache in inside.glob("cache-*"):  # it holds images
                shutil.rmtree(cache, ignore_errors=True)
        return rows()


def whole_paths(recipe: Recipe) -> Recipe:
    """As the run will keep it."""
    return replace(recipe, data=tuple(map(absolute, recipe.data)), teacher=absolute(recipe.teacher),
                   split_file=str(Path(recipe.split_file).resolve()) if recipe.split_file else "")


def check_begun(planned: Sequence[Planned], out: Path) -> None:
    for p in planned:
        path = out / p.name / "recipe.toml"
        if path.exists() and (key := next(iter(differing(begun := Recipe.load(path), p.recipe)), "")):
            raise EdgesegError(f"{path.parent}: was begun with {key} = {getattr(begun, key)!r}, not "
                               f"{getattr(p.recipe, key)!r}: choose another --out, or delete that run")


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold `out` for this process; the system lets go of it when the process ends, however it does."""
    import fcntl

    with (out / INSIDE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise EdgesegError(f"{out}: another sweep is at work there: wait for it, or choose another --out") from None
        yield


def finished(out: Path, planned: Planned) -> bool:
    return (out / planned.name / "run.json").exists()


def look(planned: Planned, out: Path, runs: bool, why: str) -> Progress:
    """What the folder of a run says."""
    folder, epochs = out / planned.name, planned.recipe.epochs
    rows = metrics(folder / "metrics.csv")
    dice = max((d for r in rows if (d := number(r.get("dev_dice_mean"))) is not None), default=None)
    if finished(out, planned):
        best = Run.open(folder).metrics.get("dev") or {}
        return Progress(planned, "done", epochs, epochs, best.get("dice", dice), 0.0)
    seconds = [s for r in rows if (s := number(r.get("seconds"))) is not None]
    left = (epochs - len(rows)) * sum(seconds) / len(seconds) if seconds else None
    state: State = "failed" if why else "waiting" if not runs else "training" if rows else "preparing"
    return Progress(planned, state, len(rows), epochs, dice, left, why)


def metrics(path: Path) -> list[dict[str, str]]:
    """Rows of metrics.csv; none where it is not there, and a line that is just being written may be short."""
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []


def number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


class Training:
    """The process of one run. It ends when this process does: the pipe to it closes."""

    def __init__(self, planned: Planned, out: Path, slot: int, threads: int, trust: bool) -> None:
        self.planned, self.slot, self.cache = planned, slot, shared(planned.recipe)
        self.log = out / INSIDE / f"{planned.name}.log"
        environment = child.environment() | {"OMP_NUM_THREADS": str(threads)}
        if devices := [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]:
            environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]  # jobs are dealt to the GPUs named
        with self.log.open("a") as said:
            self.process = subprocess.Popen(
                [*child.command("edgeseg.distill.sweep_jobs"), str(out), planned.name, str(threads),
                 *(["trust"] if trust else [])],
                stdin=subprocess.PIPE, stdout=said, stderr=said, env=environment, start_new_session=True)

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return (lines[-1].strip() if lines else f"ended with code {self.process.returncode}")[:300]

    def end(self) -> None:
        self.process.kill()  # checkpoints are renamed into place: nothing is half written
        self.process.communicate()


def end_with_sweep() -> None:
    """Two processes of one run must not write into one folder: a sweep that was killed takes its runs along."""
    sys.stdin.read()
    os._exit(1)


def main(arguments: Sequence[str]) -> int:
    from edgeseg.distill.train import distill

    threading.Thread(target=end_with_sweep, daemon=True).start()
    out, name, threads, trust = Path(arguments[0]), arguments[1], int(arguments[2]), "trust" in arguments[3:]
    inside, folder = out / INSIDE, out / name
    try:
        recipe = Recipe.load(inside / f"{name}.toml")
        distill(recipe, folder, resume=(folder / "recipe.toml").exists(), machine=Machine(threads=threads),
                trust_checkpoint=trust, cache=inside / shared(recipe), say=lambda line: print(line, flush=True))
    except EdgesegError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
