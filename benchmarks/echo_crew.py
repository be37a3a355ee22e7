"""Steps of the echo scripts: each a command, taken by workers that have torch and end with the script, however it ends.

A step is a command of `edgeseg` or one of echo_steps.py. What it left in --work is not made again, what it left
unfinished is gone on with: the same command, given again, does the rest.

    WORK/deeplabv3           the teacher, unless --teacher names one
    WORK/clips/NAME          clips as AVI files without labels: all that a student sees
    WORK/targets/NAME        what a teacher says of them
    WORK/NAME                the run of a student; its recipe is NAME.toml, its bundle NAME.edgeseg
    WORK/predictions/NAME    soft masks of a network on the test clips
    WORK/logs                what the steps said
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from queue import SimpleQueue
from typing import Self

import echo_steps
from common import HERE

from edgeseg.distill.recipe import Recipe
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.readers import Dataset, open_data
from edgeseg.teachers.stored import StoredTargets

TEACHER = "teacher"


@dataclass(frozen=True)
class Step:
    """A command for a worker: of `edgeseg`, or of echo_steps.py."""

    name: str
    command: tuple[str | Path, ...]


class Crew:
    """Workers that take steps, up to `jobs` at a time (0: none, this process takes them). Use as a context manager: no
    worker outlives it."""

    def __init__(self, work: Path, jobs: int) -> None:
        self.logs, self.jobs = work / "logs", jobs
        self.free: SimpleQueue[subprocess.Popen[str]] = SimpleQueue()
        self.all: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.all:
            if worker.stdin:
                with suppress(BrokenPipeError):
                    worker.stdin.close()
        for worker in self.all:
            worker.wait()

    def run(self, steps: Iterable[Step | None]) -> None:
        """Take the steps that are not None, in any order.

        Raises:
            EdgesegError: one failed; those beside it are stopped.
        """
        left = [s for s in steps if s is not None]
        if self.jobs == 0:
            for step in left:
                echo_steps.do([str(c) for c in step.command])
            return
        while self.free.qsize() < min(self.jobs, len(left)):
            worker = subprocess.Popen([sys.executable, str(HERE / "echo_steps.py")], stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            self.all.append(worker)
            self.free.put(worker)
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                list(pool.map(self.take, left))
            except BaseException:
                self.__exit__()  # what the others began is gone on with next time
                raise

    def take(self, step: Step) -> None:
        worker = self.free.get()
        assert worker.stdin is not None
        assert worker.stdout is not None
        log = self.logs / f"{step.name}.log"
        try:
            if worker.stdin.closed:
                raise EdgesegError(f"{step.name}: not begun")
            print(f"step     {step.name}", flush=True)
            with suppress(BrokenPipeError):
                worker.stdin.write(json.dumps({"log": str(log), "command": [str(c) for c in step.command]}) + "\n")
                worker.stdin.flush()
            answer = json.loads(worker.stdout.readline() or '{"error": "its process ended"}')
        finally:
            self.free.put(worker)
        if "error" in answer:
            raise EdgesegError(f"{step.name} failed: {answer['error']} (all it said: {log})")


def train_teacher(given: argparse.Namespace, crew: Crew) -> None:
    """`given.teacher` names a DeepLabv3 afterwards."""
    folder = given.work / "deeplabv3"
    if given.teacher is None:
        given.teacher = f"deeplabv3:{folder / 'deeplabv3.safetensors'}"
        if not (folder / "deeplabv3.safetensors").exists():
            more = ("--resume",) if (folder / "recipe.toml").exists() else ()
            crew.run([Step(TEACHER, ("train-teacher", "deeplabv3", "--data", given.other, "--out", folder, "--epochs",
                                     str(given.teacher_epochs), "--batch-size", "2" if given.quick else "4",
                                     "--threads", str(max(given.jobs, 1)), *more))])


def targets(given: argparse.Namespace, name: str, teacher: str, data: str) -> Step | None:
    """A teacher's soft masks of all (unlabelled) clips of `data`, in WORK/targets/NAME."""
    out = given.work / "targets" / name
    check_source(out, teacher)
    if complete(out, open_data(data)):
        return None
    return Step(f"targets-{name}", ("targets", "--teacher", teacher, "--data", data, "--out", out))


def distillation(given: argparse.Namespace, name: str, recipe: Recipe) -> Step | None:
    """Raises EdgesegError when the run was begun with another recipe."""
    folder, file = given.work / name, given.work / f"{name}.toml"
    if (kept := folder / "recipe.toml").exists():
        if (begun := Recipe.load(kept)) != recipe:
            key = next(k for k, v in asdict(recipe).items() if v != getattr(begun, k))
            raise EdgesegError(f"{folder}: was begun with {key} = {getattr(begun, key)!r}, not "
                               f"{getattr(recipe, key)!r}: choose another --work")
        if (folder / "run.json").exists():
            return None
        return Step(name, ("distill", "--resume", folder, "--threads", "1"))
    write_text(file, recipe.to_toml())
    return Step(name, ("distill", "--recipe", file, "--out", folder, "--threads", "1"))


def prediction(given: argparse.Namespace, name: str, network: str | Path, data: str, split: str) -> Step | None:
    """Soft masks of a teacher (its spec) or a student (its run folder), in WORK/predictions/NAME."""
    out = given.work / "predictions" / name
    weights = Path(network) / "student.safetensors"
    check_source(out, sha256(weights.read_bytes()).hexdigest() if weights.exists() else str(network))
    if complete(out, open_data(data).select(split)):
        return None
    return Step(f"predict-{name}", ("predict", network, data, split, out))


def check_source(out: Path, source: str) -> None:
    """EdgesegError when `out` was made of something else: a teacher's spec, or the hash of a student's weights."""
    file = out.with_name(f"{out.name}.source")
    if not file.exists():
        write_text(file, source)
    if (made := file.read_text()) != source:
        raise EdgesegError(f"{out}: was made of {made}, not {source}: choose another --work, or delete it and {file}")


def complete(folder: Path, dataset: Dataset) -> bool:
    """Whether stored targets hold every case."""
    if not (folder / "manifest.json").exists():
        return False
    return {ref.id for ref in dataset.refs} <= StoredTargets.open(folder).manifest["cases"].keys()
