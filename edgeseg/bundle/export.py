"""Export: a run becomes a bundle, whole or not at all."""

import errno
import json
import re
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseg.bundle.apart import Say
from edgeseg.bundle.build import FEWEST, Job, build_apart
from edgeseg.bundle.calibrate import calibration_draws, draw_frames
from edgeseg.bundle.card import licence_text, model_card
from edgeseg.bundle.fold import fold_batch_norm, torch_logits
from edgeseg.bundle.metadata import metadata
from edgeseg.bundle.recipe import CalibrationRecipe
from edgeseg.bundle.staging import beside, check_target
from edgeseg.bundle.stream_export import check_clip, check_streamable, recurrence, trajectories, write_step
from edgeseg.container import MANIFEST, SUFFIX, open_bundle, write_sums
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.manifest import (
    Calibration,
    Data,
    FileCheck,
    FrameProtocol,
    Labels,
    Manifest,
    Measured,
    grid_of,
    split_sha256,
)
from edgeseg.measure.document import plain
from edgeseg.onnx_file import write_onnx
from edgeseg.readers import open_data
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, Precision

if TYPE_CHECKING:
    from torch import nn

CHECK_FRAMES = 24
"""Real frames on which every exported file is compared with torch."""
PACKAGES = ("edgeseg", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy",
            "opencv-python-headless")


def export_bundle(run: Run, out: Path | None = None, int8: bool = True, recipe: CalibrationRecipe | None = None,
                  protocols: tuple[FrameProtocol, ...] = (), frame_precisions: tuple[Precision, ...] = PRECISIONS,
                  force: bool = False, seconds: float = 2.0, golden: str = "", say: Say = lambda line: None) -> Path:
    """Make the bundle of a finished run and return its folder.

    Args:
        out: default: RUN.edgeseg beside the run.
        recipe: calibration frames, ladder and limits; default: 100 training frames.
        protocols: frame graphs to write, for those of `frame_precisions` that the bundle has.
        force: replace a bundle that is already there, once the new one is complete.
        seconds: counted time of each row of the speed gate.
        golden: data set whose frames go into golden.npz, images included; default: phantom frames.
        say: told of each step.

    Raises:
        EdgesegError: `out` exists, data that is gone or has other splits, a missing package, a full disk.
        GateFailed: an exported file does not compute what the student computes. In every case nothing is written.
    """
    for module in ("nncf", "onnx", "onnxscript"):  # found, not imported: NNCF is for the other process
        if find_spec(module) is None:
            raise EdgesegError(f"export needs {module}: pip install 'edgeseg[train]'")
    out = Path(out) if out else run.folder.with_name(run.name + SUFFIX)
    check_target(out, force)
    try:
        with beside(out, force) as folder:
            fill(folder, run, out.name.removesuffix(SUFFIX), int8, recipe or CalibrationRecipe(), protocols,
                 frame_precisions, seconds, golden, say)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise EdgesegError(f"{out}: no space left on the device while exporting: free some and export again (nothing "
                           "was written)") from None
    return out


def fill(folder: Path, run: Run, name: str, int8: bool, recipe: CalibrationRecipe,
         protocols: tuple[FrameProtocol, ...], frame_precisions: tuple[Precision, ...], seconds: float, golden: str,
         say: Say) -> None:
    """Write every file of the bundle into `folder`."""
    from edgeseg.students import is_recurrent

    data = run.dataset()
    model = run.student()
    recurrent, stream = is_recurrent(model), None
    if recurrent:
        check_streamable(run.preprocessing, protocols)
    with tempfile.TemporaryDirectory(prefix="edgeseg-export-") as kept:
        scratch = Path(kept)  # patient frames go here, never below the bundle
        say(f"reading frames of {data.name}")
        calibration, frames = None, None
        if int8:
            drawn, calibration = next(calibration_draws(run, data, recipe, [recipe.seed]))
            frames = np.stack([f.window for f in drawn])
            if recurrent:
                samples: dict[str, Any] = trajectories(model, drawn, run.preprocessing)
                np.savez(scratch / "calibration.npz", **samples)
            else:
                np.save(scratch / "calibration.npy", frames)
        source = next((s for s in ("dev", "train") if len(data.select(s))), None)
        if source is None:
            raise EdgesegError(f"{data.spec}: no training or dev case to check the exported files on: restore the data")
        if recurrent:
            inputs, clip = check_clip(data.select(source), run.preprocessing)
            stream = recurrence(model, run.preprocessing.size, clip.frame_time)
        else:
            inputs = np.stack([f.window for f in draw_frames(data.select(source), run.preprocessing, CHECK_FRAMES, 0)])
        np.save(scratch / "inputs.npy", inputs)
        job = Job(run=str(run.folder.absolute()), int8=int8, recipe=asdict(recipe), protocols=protocols,
                  frame_precisions=frame_precisions, frames_from=f"{data.name} {source}", seconds=seconds,
                  golden=golden)
        measured = attempt(folder, scratch, model, inputs, job, say)
        if frames is not None and not recurrent and "fine-tune" in recipe.rungs and may_tune(measured):
            measured = tune(folder, scratch, run, frames, inputs, job, recipe.fine_tune_steps, measured, say)
    measured = measured.model_copy(update={
        "training": plain({k: run.metrics[k] for k in ("dev", "seconds") if k in run.metrics})})
    manifest = describe(run, name, calibration, measured).model_copy(update={
        "frames": protocols, "stream": stream, "limits": asdict(recipe.limits) if int8 else {},
        "golden": open_data(golden).name if golden else "phantom"})
    manifest.write(folder / MANIFEST)
    (folder / "metadata.json").write_text(json.dumps(metadata(manifest), indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
    (folder / "LICENSE").write_text(licence_text(manifest), encoding="utf-8")
    write_sums(folder)
    open_bundle(folder)  # what was written is what a user will read


def attempt(folder: Path, scratch: Path, model: "nn.Module", inputs: np.ndarray, job: Job, say: Say) -> Measured:
    """ONNX from the weights of `model`, and from it everything else in `folder`."""
    from edgeseg.students import is_recurrent

    np.save(scratch / "logits.npy", torch_logits(model, inputs))
    say("writing ONNX")
    if is_recurrent(model):
        write_step(model, inputs.shape[2:], folder / "model.fp32.onnx")
    else:
        write_onnx(fold_batch_norm(model), (1, *inputs.shape[1:]), folder / "model.fp32.onnx")
    return build_apart(scratch, folder, job, say)


def may_tune(measured: Measured) -> bool:
    """Whether other weights could still help: an INT8 file was judged and not admitted."""
    found = measured.admission
    return found is not None and found.patients >= FEWEST and len(admitted(measured)) < len(BACKENDS)


def admitted(measured: Measured) -> list[str]:
    """The runtimes whose INT8 file was admitted, with weights (if they were fine-tuned) that lost nothing in FP32."""
    found = measured.admission
    if found is None or any(not g.passed for g in found.gates if g.subject in {f"{b} fp32" for b in BACKENDS}):
        return []
    return [b for b in BACKENDS if found.admitted(b, "int8")]


def tune(folder: Path, scratch: Path, run: Run, frames: np.ndarray, inputs: np.ndarray, job: Job, steps: int,
         measured: Measured, say: Say) -> Measured:
    """The ladder's last rung. Its files replace those in `folder` only if more runtimes admit INT8 then."""
    from edgeseg.distill.fine_tune import fine_tune

    say(f"not admitted yet: fine-tuning with simulated INT8, {steps} steps")
    try:
        model = fine_tune(run, frames, steps, say)
    except EdgesegError as error:  # the rest of the bundle is none the worse for a teacher that is gone
        say(f"fine-tuning is not possible ({error})")
        return measured
    if model is None:
        return measured
    tuned = folder / "tuned"
    tuned.mkdir()
    again = attempt(tuned, scratch, model, inputs, job.model_copy(update={"untuned": str(folder)}), say)
    better = len(admitted(again)) > len(admitted(measured))
    say(f"fine-tuned weights {'taken' if better else 'not taken'}")
    ladder = measured.ladder + again.ladder
    if better:
        for old in [p for p in folder.iterdir() if p != tuned]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        for new in list(tuned.iterdir()):
            new.rename(folder / new.name)
    shutil.rmtree(tuned)
    return (again if better else measured).model_copy(update={"ladder": ladder})


def describe(run: Run, name: str, calibration: Calibration | None, measured: Measured) -> Manifest:
    """The manifest of a run; of its recipe everything but where things were on the building machine."""
    recipe = {k: v for k, v in run.recipe.items() if k not in ("data", "split_file")}
    recipe["teacher"] = str(recipe.get("teacher", "none")).split(":", 1)[0]
    if began := run.data.get("pretrained"):
        recipe["pretrained"] = {k: began[k] for k in ("name", "sha256", "data", "teachers")}
    return Manifest(
        name=name,
        task=f"segmentation of {', '.join(run.scheme.foreground)}",
        intended_use="research",
        labels=Labels(names=run.scheme.names, values=run.scheme.values),
        channels=run.channels,
        preprocessing=grid_of(run.preprocessing),
        student=plain(run.spec),
        teacher=without_paths(plain(run.teacher)),
        data=Data(name=run.data["name"], licence=run.data["licence"],
                  patients={split: len(patients) for split, patients in run.data["splits"].items()},
                  split_sha256={split: split_sha256(patients) for split, patients in run.data["splits"].items()}),
        distillation=without_paths(plain(recipe)),
        licences={"weights": run.data["licence"], "software": "Apache-2.0"},
        calibration=calibration,
        versions={p: v for p in PACKAGES if (v := installed(p))},
        measured=measured,
    )


def without_paths(value: Any) -> Any:
    """Every path in strings, lists and dicts cut to its last name: a bundle says nothing of the building machine."""
    if isinstance(value, dict):
        return {k: without_paths(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v) for v in value]
    if isinstance(value, str) and (found := re.match(r"(\w{2,}:)?(~\w*|\.{1,2}|[A-Za-z]:)?[/\\](?!/)", value)):
        return (found[1] or "") + re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def file_rows(checks: tuple[FileCheck, ...]) -> list[tuple[str, str, str, str]]:
    """What people want to see of each file: name, size, largest logit difference, agreement."""
    return [(c.file, f"{c.bytes / 1e6:.2f} MB", f"{c.max_logit_difference:.2g} of {c.logit_range:.0f}",
             f"{100 * c.label_agreement:.2f} %") for c in checks]
