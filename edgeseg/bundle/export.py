"""Export: a run becomes a bundle, whole or not at all."""

import errno
import json
import re
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseg.bundle.apart import Say
from edgeseg.bundle.build import Job, build_apart
from edgeseg.bundle.calibrate import calibration_frames, draw_frames
from edgeseg.bundle.card import licence_text, model_card
from edgeseg.bundle.fold import fold_batch_norm, torch_logits
from edgeseg.bundle.metadata import metadata
from edgeseg.bundle.recipe import CalibrationRecipe
from edgeseg.bundle.staging import beside, check_target
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

if TYPE_CHECKING:
    from torch import nn

CHECK_FRAMES = 24
"""Real frames on which every exported file is compared with torch."""
PACKAGES = ("edgeseg", "torch", "onnx", "onnxscript", "onnxruntime", "openvino", "nncf", "numpy",
            "opencv-python-headless")


def export_bundle(run: Run, out: Path | None = None, int8: bool = True, recipe: CalibrationRecipe | None = None,
                  protocols: tuple[FrameProtocol, ...] = (), force: bool = False,
                  seconds: float = 2.0, say: Say = lambda line: None) -> Path:
    """Make the bundle of a finished run and return its folder.

    Args:
        out: default: RUN.edgeseg beside the run.
        recipe: calibration frames, ladder and limits; default: 100 training frames.
        protocols: frame graphs to write.
        force: replace a bundle that is already there, once the new one is complete.
        seconds: counted time of each row of the speed gate.
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
            fill(folder, run, out.name.removesuffix(SUFFIX), int8, recipe or CalibrationRecipe(), protocols, seconds,
                 say)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise EdgesegError(f"{out}: no space left on the device while exporting: free some and export again (nothing "
                           "was written)") from None
    return out


def fill(folder: Path, run: Run, name: str, int8: bool, recipe: CalibrationRecipe,
         protocols: tuple[FrameProtocol, ...], seconds: float, say: Say) -> None:
    """Write every file of the bundle into `folder`."""
    data = run.dataset()
    model = run.student()
    with tempfile.TemporaryDirectory(prefix="edgeseg-export-") as kept:
        scratch = Path(kept)  # patient frames go here, never below the bundle
        say(f"reading frames of {data.name}")
        calibration, frames = None, None
        if int8:
            frames, calibration = calibration_frames(run, data, recipe)
            np.save(scratch / "calibration.npy", frames)
        source = next((s for s in ("dev", "train") if len(data.select(s))), None)
        if source is None:
            raise EdgesegError(f"{data.spec}: no training or dev case to check the exported files on: restore the data")
        inputs = np.stack([f.window for f in draw_frames(data.select(source), run.preprocessing, CHECK_FRAMES, 0)])
        np.save(scratch / "inputs.npy", inputs)
        last = "fine-tune" not in recipe.rungs or not int8
        job = Job(run=str(run.folder.absolute()), int8=int8, recipe=asdict(recipe), protocols=protocols,
                  frames_from=f"{data.name} {source}", tuned=False, last=last, seconds=seconds)
        measured = attempt(folder, scratch, model, inputs, job, say)
        if not measured.checks:  # not admitted with these weights
            from edgeseg.distill.fine_tune import fine_tune

            assert frames is not None
            say(f"not admitted yet: fine-tuning with simulated INT8, {recipe.fine_tune_steps} steps")
            model = fine_tune(run, frames, recipe.fine_tune_steps, say)
            job = job.model_copy(update={"tuned": True, "last": True})
            again = attempt(folder, scratch, model, inputs, job, say)
            measured = again.model_copy(update={"ladder": measured.ladder + again.ladder})
    measured = measured.model_copy(update={
        "training": plain({k: run.metrics[k] for k in ("dev", "seconds") if k in run.metrics})})
    manifest = describe(run, name, calibration, measured, protocols)
    manifest.write(folder / MANIFEST)
    (folder / "metadata.json").write_text(json.dumps(metadata(manifest), indent=1, ensure_ascii=False) + "\n", "utf-8")
    (folder / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
    (folder / "LICENSE").write_text(licence_text(manifest), encoding="utf-8")
    write_sums(folder)
    open_bundle(folder)  # what was written is what a user will read


def attempt(folder: Path, scratch: Path, model: "nn.Module", inputs: np.ndarray, job: Job, say: Say) -> Measured:
    """ONNX from the weights of `model`, and from it everything else. Without checks: not admitted, climb on."""
    np.save(scratch / "logits.npy", torch_logits(model, inputs))
    say("writing ONNX")
    write_onnx(fold_batch_norm(model), (1, *inputs.shape[1:]), folder / "model.fp32.onnx")
    return build_apart(scratch, folder, job, say)


def describe(run: Run, name: str, calibration: Calibration | None, measured: Measured,
             protocols: tuple[FrameProtocol, ...] = ()) -> Manifest:
    """The manifest of a run; of its recipe everything but where things were on the building machine."""
    recipe = {k: v for k, v in run.recipe.items() if k not in ("data", "split_file")}
    recipe["teacher"] = str(recipe.get("teacher", "none")).split(":", 1)[0]
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
        frames=protocols,
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
