"""The built-in default: its teacher is a real nnU-Net folder that goes through the same door as anybody's."""

from dataclasses import replace

import pytest

from edgeseg.distill.recipe import PHANTOM
from edgeseg.distill.train import distill
from edgeseg.readers import open_data
from edgeseg.teachers import open_teacher


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = replace(PHANTOM, data=("phantom:cine?n=3",), epochs=1, precision="32-true", width_mult=0.25, expansion=1)
    with pytest.MonkeyPatch.context() as patch:  # half of the time, and the same for every nnU-Net folder
        patch.setattr("edgeseg.teachers.export.teacher_onnx", lambda teacher, out: out.write_bytes(b""))
        return distill(recipe, tmp_path_factory.mktemp("runs") / "phantom", say=str)


def test_the_phantom_teacher_is_read_back_as_an_nnunet_folder(run):
    assert run.recipe["teacher"] == f"nnunet:{run.folder / 'teacher'}"
    teacher = open_teacher(run.recipe["teacher"])
    assert teacher.scheme == run.scheme == open_data(run.recipe["data"][0]).scheme
    assert teacher.provenance["sha256"] == run.teacher["sha256"]


def test_nnunets_own_predictor_reads_it(run):
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(run.folder / "teacher"), (0,), "checkpoint_final.pth")
    assert predictor.configuration_manager.patch_size == [192, 192]


def test_no_image_is_left_in_the_finished_run(run):
    assert not (run.folder / "cache").exists()
    assert not (run.folder / "teacher-training").exists()
    assert {p.name for p in run.folder.iterdir()} == {
        "last.ckpt", "metrics.csv", "recipe.toml", "run.json", "student.safetensors", "teacher", "teacher.onnx"}
