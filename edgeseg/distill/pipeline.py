"""From NIfTI files to masks: nnU-Net's full pipeline, with and without mirroring, against the student's `predict`.

All of it on the same files (the bundle's own frames or given volumes), with the same number of threads, and in one
run: first as loaded processes that take turns (measure/turns.py), then as whole commands that take turns. Nothing here
imports torch.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg import child
from edgeseg.case import Case
from edgeseg.container import Bundle
from edgeseg.distill.against import need_installed
from edgeseg.distill.pipeline_worker import IMAGES, MIRRORED, MODEL, PLAIN, STUDENT
from edgeseg.errors import EdgesegError
from edgeseg.measure import statistics, turns
from edgeseg.measure.bench import golden_frames
from edgeseg.measure.statistics import Interval
from edgeseg.measure.turns import Job, Turns, Worker, WorkerError

WORKER = "edgeseg.distill.pipeline_worker"
NNUNET = "nnU-Net"
NNUNET_COMMAND = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; run()"
"""nnUNetv2_predict_from_modelfolder: what the script of that name holds, found in whatever environment this is."""
NAMES = {STUDENT: "student, files to masks", MIRRORED: f"nnU-Net full pipeline, {MIRRORED}",
         PLAIN: f"nnU-Net full pipeline, {PLAIN}"}
BLOCK_SECONDS = 0.5
"""Least length of a turn: a student's call is short; one of nnU-Net's is longer than that anyway."""
LONG_SECONDS = 30.0
"""A command of nnU-Net that takes longer is run once."""
COMMAND_TIMEOUT = 3600.0

Rounds = dict[int, float]
"""Round -> seconds. What has the same round ran one after the other."""


@dataclass(frozen=True)
class FilesToMasks:
    """One way from all cases to all masks.

    Attributes:
        input_shape: of its network, [1, C, H, W].
        seconds_per_image: in a loaded and warm process, all cases divided by their images: median over all calls.
            spread: each call. None and () when interrupted before.
        seconds_with_start_up: the whole command for all cases, from its start to its end, files in the page cache; not
            divided. Median of `starts`, which are all of them in order: their number is its n. None and () when
            interrupted before.
    """

    name: str
    input_shape: tuple[int, ...]
    seconds_per_image: float | None
    spread: tuple[float, ...]
    seconds_with_start_up: float | None
    starts: tuple[float, ...]


@dataclass(frozen=True)
class PipelineRow(FilesToMasks):
    """nnU-Net's full pipeline; its command is `nnUNetv2_predict_from_modelfolder`.

    Attributes:
        tiles: windows that nnU-Net cuts, for one image (a mean: images differ in size).
        passes: passes of the network for one image: tiles, times mirrorings, times folds.
        student_seconds_per_image: the student's in the same rounds, median of their medians.
        faster, faster_with_start_up: how many times faster the student is, paired by round (`statistics.
            ratio_interval`; n is the number of rounds, an n of 1 has no interval). None without a common round.
    """

    mirrored: bool
    tiles: float
    passes: float
    student_seconds_per_image: float | None
    faster: Interval | None
    faster_with_start_up: Interval | None


@dataclass(frozen=True)
class Pipeline:
    """The result.

    Attributes:
        rows: nnU-Net mirrored, and not mirrored. student: `edgeseg predict` with the bundle's default `precision`.
        cases, images: how many cases there are (frames of one geometry are the slices of one), and slices in all.
        runtime: what the two processes say they run with: {"nnU-Net": {...}, "student": {...}}, nnU-Net's with the
            versions of torch and nnunetv2.
        complete: all of it was measured. interrupted: it was not because of Ctrl-C.
    """

    rows: tuple[PipelineRow, ...]
    student: FilesToMasks
    precision: str
    cases: int
    images: int
    threads: int
    runtime: dict[str, dict[str, Any]]
    complete: bool
    interrupted: bool


def measure_pipeline(model: Path, bundle: Bundle, threads: int, repeats: int = 5, starts: int = 3,
                     on_step: Callable[[str, int], None] | None = None, cases: Sequence[Case] = ()) -> Pipeline:
    """Time an nnU-Net model folder's full pipeline and the bundle's `predict`, without start-up and with it.

    The folder's checkpoints are read without running what they hold; nnU-Net gets a copy of their weights
    (`teachers.export.safe_copy`), and one that wants more than that is refused. Ctrl-C gives what there is.

    Args:
        repeats: rounds of turns of the loaded processes. starts: rounds of whole commands; one of nnU-Net's that takes
            more than LONG_SECONDS is run in the first round only.
        on_step: called after each measurement with what it was and how many there are at most.
        cases: volumes, no two of one geometry; default: the bundle's own frames, a few slices a file.

    Raises:
        EdgesegError: torch or nnunetv2 is missing, a folder that cannot be read, other channels or files than the
            bundle's, a failure of either pipeline; names files without their folders.
        KeyboardInterrupt: before the first measurement.
    """
    need_installed("torch", "nnunetv2")
    model, path = model.absolute(), bundle.path.absolute()

    def step(what: str) -> None:
        if on_step:
            on_step(what, len(NAMES) * (repeats + starts))

    with tempfile.TemporaryDirectory(prefix="edgeseg-nnunet-") as folder:
        scratch = Path(folder)
        frames, spacings = (golden_frames(bundle.file("golden.npz")) if not cases else
                            ([f for c in cases for f in c.frames], [c.spacing for c in cases for _ in c.frames]))
        turns.write_frames(scratch / "frames.npz", frames, spacings, frames)  # nnU-Net normalises by itself
        try:
            ready, taken = loaded_processes(model, path, threads, scratch, repeats, step)
            about = ready[NNUNET]["runtime"]
            whole: dict[str, Rounds] = {}
            ended = taken.interrupted or whole_commands(
                commands(path, scratch, about["folds"], threads), starts, whole, step)
        except (EdgesegError, WorkerError) as error:
            raise EdgesegError(without_folders(str(error), scratch, model.parent, path.parent)) from None
    warm = {mode: seconds_by_round(taken, mode, about["images"]) for mode in NAMES}
    student = FilesToMasks(**measured(STUDENT, ready[STUDENT], taken, about["images"], whole))
    rows = []
    for mode in (MIRRORED, PLAIN):
        tiles = about["tiles"] / about["images"]
        passes = tiles * len(about["folds"]) * (about["mirrorings"] if mode == MIRRORED else 1)
        common = [warm[STUDENT][r] for r in sorted(warm[STUDENT].keys() & warm[mode].keys())]
        rows.append(PipelineRow(
            **measured(mode, ready[NNUNET], taken, about["images"], whole), mirrored=mode == MIRRORED, tiles=tiles,
            passes=passes, student_seconds_per_image=float(np.median(common)) if common else None,
            faster=faster(warm[STUDENT], warm[mode]),
            faster_with_start_up=faster(whole.get(STUDENT, {}), whole.get(mode, {}))))
    return Pipeline(tuple(rows), student, ready[STUDENT]["runtime"]["PRECISION"], about["cases"], about["images"],
                    threads, {name: answer["runtime"] for name, answer in ready.items()}, not ended, ended)


def loaded_processes(model: Path, bundle: Path, threads: int, scratch: Path, repeats: int,
                     step: Callable[[str], None]) -> tuple[dict[str, dict[str, Any]], Turns]:
    """What each of the two processes says of itself, and their turns.

    No call is discarded: each is all cases, and the first was made when the process started. That is to the student's
    disadvantage if to anybody's, as it has the shorter calls.
    """
    def started(kind: str, path: Path, frames: Path) -> Worker:
        try:
            return Worker(Job(kind, str(path), str(frames), threads=threads, module=WORKER))
        except WorkerError as error:
            raise EdgesegError(f"the full pipeline of {kind} does not start: {error}") from None

    with (started(NNUNET, model, scratch / "frames.npz") as teacher,  # writes the images
          started(STUDENT, bundle, scratch / IMAGES) as student):
        workers = {NNUNET: teacher, STUDENT: student}
        taken = turns.take_turns(workers, repeats, BLOCK_SECONDS, 0, on_block=lambda block: step(NAMES[block.mode]))
    for kind, why in taken.failed.items():
        raise EdgesegError(f"the full pipeline of {kind} failed: {why}")
    return {kind: worker.ready for kind, worker in workers.items()}, taken


def commands(bundle: Path, scratch: Path, folds: Sequence[int | str],
             threads: int) -> dict[str, Callable[[], float]]:
    """Mode -> a whole command as a user starts it, on what the processes left in `scratch`; returns its wall seconds.

    nnU-Net takes its number of threads from its environment; of its own settings only the number of helper processes
    is changed from three each to one each, as each of them first imports torch.
    """
    images = ("-i", str(scratch / IMAGES), "-o")
    nnunet = [sys.executable, "-P", "-c", NNUNET_COMMAND, "-m", str(scratch / MODEL), "-f", *map(str, folds),
              "-device", "cpu", "-npp", "1", "-nps", "1", "--disable_progress_bar"]
    own = [*child.command("edgeseg"), "predict", str(bundle), "--threads", str(threads)]
    return {mode: partial(run_command, (*command, *images), scratch / f"command, {mode}", threads)
            for mode, command in ((STUDENT, own), (MIRRORED, nnunet), (PLAIN, [*nnunet, "--disable_tta"]))}


def run_command(command: Sequence[str], out: Path, threads: int) -> float:
    """Wall seconds of `command`, whose last argument is to be `out`, a folder that is made anew.

    It ends together with the processes that it started.
    """
    shutil.rmtree(out, ignore_errors=True)
    said = out.with_name(f"{out.name}.log")
    environment = {k: v for k, v in child.environment().items() if not k.startswith("nnUNet_")}
    environment |= dict.fromkeys(("nnUNet_def_n_proc", "OMP_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"), str(threads))
    with said.open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen([*command, str(out)], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   env=environment, start_new_session=True)
        try:
            code = process.wait(COMMAND_TIMEOUT)
            seconds = time.perf_counter() - start
        except subprocess.TimeoutExpired:
            raise EdgesegError(f"{out.name}: not done after {COMMAND_TIMEOUT:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code or not any(out.glob("case*")):
        last = (said.read_text(errors="replace").strip().splitlines() or ["without a word"])[-1]
        raise EdgesegError(f"{out.name}: ended with code {code}: {last}")
    return seconds


def whole_commands(ways: Mapping[str, Callable[[], float]], starts: int, took: dict[str, Rounds],
                   step: Callable[[str], None]) -> bool:
    """Run each command once a round, in an order drawn anew, and write its seconds into `took`; True after Ctrl-C."""
    rng = np.random.default_rng(0)
    try:
        for number in range(starts):
            for mode in rng.permutation(list(ways)).tolist():
                before = took.setdefault(mode, {})
                if mode == STUDENT or max(before.values(), default=0) <= LONG_SECONDS:
                    before[number] = ways[mode]()
                    step(f"{NAMES[mode]}, with start-up")
    except KeyboardInterrupt:
        return True
    return False


def measured(mode: str, ready: Mapping[str, Any], taken: Turns, images: int,
             whole: Mapping[str, Rounds]) -> dict[str, Any]:
    """The fields of FilesToMasks."""
    each = tuple(float(ms) / 1000 / images for b in taken.blocks if b.mode == mode for ms in b.ms)
    starts = tuple(seconds for _, seconds in sorted(whole.get(mode, {}).items()))
    return {"name": NAMES[mode], "input_shape": tuple(ready["shape"]),
            "seconds_per_image": float(np.median(each)) if each else None, "spread": each,
            "seconds_with_start_up": float(np.median(starts)) if starts else None, "starts": starts}


def seconds_by_round(taken: Turns, mode: str, images: int) -> Rounds:
    """Of one image, the median of each block."""
    return {b.round: float(np.median(b.ms)) / 1000 / images for b in taken.blocks if b.mode == mode}


def faster(student: Rounds, other: Rounds) -> Interval | None:
    """How many times faster the student is, paired by round."""
    both = sorted(student.keys() & other.keys())
    return statistics.ratio_interval([other[r] for r in both], [student[r] for r in both]) if both else None


def without_folders(text: str, *folders: Path) -> str:
    """`text` with what lies in `folders` (and in Python's own) named without them."""
    for folder in (*folders, Path(sys.prefix)):
        text = text.replace(f"{folder}{os.sep}", "")
    return text
