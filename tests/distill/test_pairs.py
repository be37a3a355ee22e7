"""All four pairs of teacher and student run by the same command, on clips that nobody labelled."""

import clip_data
import cv2
import nnunet_folders
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from edgeseg.cli.main import app
from edgeseg.distill.run import Run


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Three real AVI files of eight frames each."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(3):
        frames = clip_data.clip("x", i, frames=8).frames[:, 0].astype(np.uint8)
        file = cv2.VideoWriter(str(folder / f"clip{i}.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 50, (112, 112))
        for frame in frames:
            file.write(cv2.cvtColor(cv2.resize(frame, (112, 112)), cv2.COLOR_GRAY2BGR))
        file.release()
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    from edgeseg.teachers.deeplabv3 import DeepLabV3

    folder = tmp_path_factory.mktemp("teachers")
    nnunet = nnunet_folders.model_folder(folder / "model", {"background": 0, "LV": 1}, ("ultrasound",),
                                         patch=(112, 112), spacing=(1.0, 1.0))
    torch.manual_seed(0)
    network = DeepLabV3()
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.model.state_dict().items()}}, folder / "best.pt")
    return {"nnunet": f"nnunet:{nnunet}", "deeplabv3": f"deeplabv3:{folder / 'best.pt'}"}


@pytest.mark.parametrize("student", ["mobilenetv2", "convlstm"])
@pytest.mark.parametrize("teacher", ["nnunet", "deeplabv3"])
def test_every_pair_is_distilled_by_the_same_command(tmp_path, videos, teachers, teacher, student):
    result = CliRunner().invoke(app, [
        "distill", "--teacher", teachers[teacher], "--data", f"video:{videos}", "--student", student, "-W", "1",
        "--epochs", "1", "--batch-size", "2", "--targets", "stored", "--tta", "none", "--threads", "1",
        "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    run = Run.open(tmp_path / "run")
    assert run.spec["family"] == student
    assert run.scheme.foreground == ("LV",)
    assert np.isfinite([row["loss"] for row in run.metrics["history"]]).all()
    assert 0 <= run.metrics["dev"]["dice"] <= 1  # against the teacher's masks: nobody labelled these clips
