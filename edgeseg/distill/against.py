"""What `bench --against` means: the rows of a run's student and of a teacher (its full pipeline: pipeline.py).

Only what is named is measured: the teacher that a run folder was distilled from may still be there, but is another
thing to ask for. Nothing here imports torch; all that needs it runs in processes of its own.
"""

import importlib.util
from pathlib import Path

from edgeseg import child
from edgeseg.container import Bundle, open_bundle
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError, need
from edgeseg.measure.rows import RowSpec
from edgeseg.measure.turns import Job

STUDENT, TEACHER, TEACHER_TORCH = "student PyTorch FP32", "teacher OpenVINO FP32", "teacher PyTorch FP32"


def against_rows(spec: str, bundle_path: Path, threads: int, scratch: Path) -> list[RowSpec]:
    """The rows that `--against spec` adds; their jobs' `frames` are filled in by the bench.

    RUN: the run's student in PyTorch (only when it is the bundle's network on the bundle's grid: a run may be named for
    its teacher alone) and RUN/teacher.onnx in OpenVINO where there is one. X.onnx: that network in OpenVINO.
    nnunet:DIR: the network of an nnU-Net model folder in PyTorch and, written to `scratch` under the folder's name, in
    OpenVINO.

    Raises:
        EdgesegError: what is named is not there or cannot be read, or PyTorch or nnunetv2 is needed and not installed.
    """
    if (folder := teacher_folder(spec)) is not None:
        network = scratch / f"{folder.absolute().name}.onnx"
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
        need_installed("torch")
        rows.insert(0, RowSpec(STUDENT, "student", torch_job("torch-student", path, threads)))
    if not rows:
        raise EdgesegError(f"{path}: has no teacher.onnx, and its student is not the bundle's: nothing to measure")
    return rows


def teacher_folder(spec: str) -> Path | None:
    """The folder of `nnunet:DIR`, None when `spec` is something else.

    Raises:
        EdgesegError: no such folder, or PyTorch or nnunetv2 is not installed.
    """
    kind, _, where = spec.partition(":")
    if kind != "nnunet":
        return None
    folder = Path(where).expanduser()
    if not where or not folder.is_dir():
        raise EdgesegError(f"{where or spec}: no such nnU-Net model folder: write --against nnunet:MODEL_FOLDER")
    need_installed("torch", "nnunetv2")
    return folder


def same_student(run: Run, bundle: Bundle) -> bool:
    """Whether the run's student has the architecture and the grid of the bundle's, so that the two rows cost the same.

    The student's spec and the size of its grid are compared, not its weights: another training of the same student
    counts as it.
    """
    return run.spec == bundle.manifest.student and run.preprocessing.size == bundle.preprocessing.size


def need_installed(*modules: str) -> None:
    """EdgesegError when one of `modules` is not installed; none is imported here."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            need(module, "train")


def torch_job(kind: str, path: Path, threads: int) -> Job:
    return Job(kind, str(path), "", "torch", "fp32", threads, "edgeseg.distill.torch_worker")
