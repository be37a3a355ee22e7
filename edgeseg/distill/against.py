"""What `bench --against` means: the rows of a run's student and of a teacher, and the teacher's full pipeline.

Only what is named is measured: the teacher that a run folder was distilled from may still be there, but is another
thing to ask for. Nothing here imports torch; all that needs it runs in processes of its own.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeseg import child
from edgeseg.container import Bundle, open_bundle
from edgeseg.distill.pipeline_worker import IMAGES, MIRRORED, MODEL, PLAIN
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError, need
from edgeseg.measure import turns
from edgeseg.measure.bench import RowSpec, golden_frames
from edgeseg.measure.turns import Job, Worker, WorkerError

STUDENT, TEACHER, TEACHER_TORCH = "student PyTorch FP32", "teacher OpenVINO FP32", "teacher PyTorch FP32"
COMMAND = "from nnunetv2.inference.predict_from_raw_data import predict_entry_point_modelfolder as run; run()"
"""nnUNetv2_predict_from_modelfolder: what the script of that name holds, found in whatever environment this is."""
COMMAND_TIMEOUT = 3600.0


def against_rows(spec: str, bundle_path: Path, threads: int, scratch: Path) -> list[RowSpec]:
    """The rows that `--against spec` adds; their jobs' `frames` are filled in by the bench.

    RUN: the run's student in PyTorch (only when it is the bundle's network on the bundle's grid: a run may be named for
    its teacher alone) and RUN/teacher.onnx in OpenVINO where there is one. X.onnx: that network in OpenVINO.
    nnunet:DIR: the network of an nnU-Net model folder in PyTorch and, written to `scratch`, in OpenVINO.

    Raises:
        EdgesegError: what is named is not there or cannot be read, or PyTorch is needed and not installed.
    """
    if (folder := teacher_folder(spec)) is not None:
        network = scratch / "teacher.onnx"
        done = child.run_module("edgeseg.teachers.export", str(folder), str(network))
        if done.returncode:
            raise EdgesegError((done.stderr.strip().splitlines() or [f"{folder}: its network cannot be exported"])[-1])
        return [RowSpec(TEACHER_TORCH, "teacher", torch_job("torch-teacher", folder, threads)),
                RowSpec(TEACHER, "teacher", Job("network", str(network), "", threads=threads), (TEACHER_TORCH,))]
    path = Path(spec).expanduser()
    if not path.is_dir():
        if path.suffix != ".onnx" or not path.is_file():
            raise EdgesegError(f"{path}: no such network: --against takes a run folder, an .onnx file or "
                               "nnunet:MODEL_FOLDER")
        return [RowSpec(TEACHER, "teacher", Job("network", str(path), "", threads=threads))]
    run, rows = Run.open(path), []
    network = path / "teacher.onnx"
    if network.is_file():
        rows.append(RowSpec(TEACHER, "teacher", Job("network", str(network), "", threads=threads)))
    if same_student(run, open_bundle(bundle_path)):
        need_torch()
        rows.insert(0, RowSpec(STUDENT, "student", torch_job("torch-student", path, threads)))
    if not rows:
        raise EdgesegError(f"{path}: has no teacher.onnx, and its student is not the bundle's: nothing to measure")
    return rows


def teacher_folder(spec: str) -> Path | None:
    """The folder of `nnunet:DIR`, None when `spec` is something else.

    Raises:
        EdgesegError: no such folder, or PyTorch is not installed.
    """
    kind, _, where = spec.partition(":")
    if kind != "nnunet":
        return None
    folder = Path(where).expanduser()
    if not where or not folder.is_dir():
        raise EdgesegError(f"{where or spec}: no such nnU-Net model folder: write --against nnunet:MODEL_FOLDER")
    need_torch()
    return folder


def same_student(run: Run, bundle: Bundle) -> bool:
    """Whether the run's student is the network of the bundle on its grid, so that the two rows are of one network."""
    return run.spec == bundle.manifest.student and run.preprocessing.size == bundle.preprocessing.size


def need_torch() -> None:
    """EdgesegError when PyTorch is not installed; it is not imported here."""
    if importlib.util.find_spec("torch") is None:
        need("torch", "train")


def torch_job(kind: str, path: Path, threads: int) -> Job:
    return Job(kind, str(path), "", "torch", "fp32", threads, "edgeseg.distill.torch_worker")


@dataclass(frozen=True)
class PipelineRow:
    """nnU-Net's full pipeline on the bundle's frames, from NIfTI files to masks.

    Attributes:
        cases, images: how many cases there are (frames of one geometry are the slices of one), and slices in all.
        tiles: windows that nnU-Net cuts, for one image (a mean: images differ in size).
        passes: passes of the network for one image: tiles, times mirrorings, times folds.
        input_shape: of the network, [1, C, *patch].
        seconds_per_image: median over `repeats` of all cases in an initialised process, divided by the images. spread:
            each of these. None and () when interrupted before.
        seconds_with_start_up: one whole `nnUNetv2_predict_from_modelfolder` for all cases, in s, files in the page
            cache, one process each for preprocessing and export; not divided. None when interrupted before.
        complete: whether all of it was measured.
    """

    name: str
    mirrored: bool
    cases: int
    images: int
    tiles: float
    passes: float
    input_shape: tuple[int, ...]
    threads: int
    seconds_per_image: float | None
    spread: tuple[float, ...]
    seconds_with_start_up: float | None
    complete: bool


def measure_pipeline(model: Path, bundle: Bundle, threads: int, repeats: int = 3,
                     on_step: Callable[[str, int], None] | None = None) -> tuple[PipelineRow, ...]:
    """Time the full pipeline of an nnU-Net model folder with and without mirroring, with and without start-up.

    The folder's checkpoints are read without running what they hold; nnU-Net gets a copy of their weights
    (`teachers.export.safe_copy`), and one that wants more than that is refused. Ctrl-C gives what there is.

    Args:
        on_step: called after each measurement with what it was and how many there are in all.

    Raises:
        EdgesegError: a folder that cannot be read, other channels or files than the bundle's, nnU-Net's own failure.
    """
    need_torch()
    step = (lambda name: on_step(f"nnU-Net {name}", 2 * repeats + 2)) if on_step else lambda name: None
    with tempfile.TemporaryDirectory(prefix="edgeseg-nnunet-") as folder:
        scratch = Path(folder)
        frames, spacings = golden_frames(bundle.file("golden.npz"))
        stored = turns.write_frames(scratch / "frames.npz", frames, spacings, frames)  # nnU-Net normalises by itself
        job = Job("nnunet", str(model), str(stored), "torch", "fp32", threads, "edgeseg.distill.pipeline_worker")
        try:
            with Worker(job) as worker:
                about, shape = worker.ready["runtime"], tuple(worker.ready["shape"])
                taken = turns.take_turns({"nnU-Net": worker}, repeats, 0.0, 0, on_block=lambda b: step(b.mode))
        except WorkerError as error:
            raise EdgesegError(f"{model}: nnU-Net's full pipeline does not start: {error}") from None
        if taken.failed:
            raise EdgesegError(f"{model}: nnU-Net's full pipeline failed: {taken.failed['nnU-Net']}")
        whole: dict[str, float] = {}
        with suppress(KeyboardInterrupt):
            for mode in (MIRRORED, PLAIN) if taken.complete else ():
                whole[mode] = run_command(scratch, about["folds"], mode == MIRRORED, threads)
                step(f"{mode}, with start-up")
    rows = []
    for mode in (MIRRORED, PLAIN):
        each = tuple(float(ms) / 1000 / about["images"] for b in taken.of("nnU-Net", mode) for ms in b.ms)
        tiles = about["tiles"] / about["images"]
        passes = tiles * len(about["folds"]) * (about["mirrorings"] if mode == MIRRORED else 1)
        rows.append(PipelineRow(f"nnU-Net full pipeline, {mode}", mode == MIRRORED, about["cases"], about["images"],
                                tiles, passes, shape, threads, float(np.median(each)) if each else None, each,
                                whole.get(mode), taken.complete and mode in whole))
    return tuple(rows)


def run_command(scratch: Path, folds: list[int | str], mirrored: bool, threads: int) -> float:
    """Wall seconds of nnU-Net's own command on what the pipeline's worker left in `scratch`; masks go to its folder
    "command, mirrored" or "command, not mirrored".

    nnU-Net takes its number of threads from its environment; of its own settings only the number of helper processes
    is changed from three each to one each, as each of them first imports torch. It and they end together.
    """
    out, said = scratch / f"command, {MIRRORED if mirrored else PLAIN}", scratch / "command.log"
    own = {name: value for name, value in os.environ.items() if not name.startswith("nnUNet_")}
    own |= {"nnUNet_def_n_proc": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-P", "-c", COMMAND, "-i", str(scratch / IMAGES), "-o", str(out),
               "-m", str(scratch / MODEL), "-f", *map(str, folds), "-device", "cpu", "-npp", "1", "-nps", "1",
               "--disable_progress_bar", *([] if mirrored else ["--disable_tta"])]
    with said.open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=own,
                                   start_new_session=True)
        try:
            code = process.wait(COMMAND_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise EdgesegError(f"nnUNetv2_predict_from_modelfolder: not done after {COMMAND_TIMEOUT:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        seconds = time.perf_counter() - start
    if code or not any(out.glob("case*")):
        last = (said.read_text(errors="replace").strip().splitlines() or ["without a word"])[-1]
        raise EdgesegError(f"nnUNetv2_predict_from_modelfolder ended with code {code}: {last}")
    return seconds
