import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle
import tiny_run
import torch
from nnunet_folders import edit_checkpoint, model_folder, volume_folder

from edgeseg.container import MANIFEST, write_sums
from edgeseg.distill.against import against_rows, teacher_folder
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Manifest, grid_of
from edgeseg.runtime.backends import load_backend
from edgeseg.teachers import export, open_teacher


class Harmful:
    """Runs code when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("a place") / "model.2d")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg", precisions=("fp32",))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.mktemp("a place"))


@pytest.fixture(scope="module")
def runs_bundle(bundle, run, tmp_path_factory):
    """A bundle that says that it holds the run's student."""
    path = tmp_path_factory.mktemp("a place") / "own.edgeseg"
    shutil.copytree(bundle, path)
    Manifest.read(path / MANIFEST).model_copy(update={
        "student": run.spec, "preprocessing": grid_of(run.preprocessing)}).write(path / MANIFEST)
    write_sums(path)
    return path


def described(rows):
    return [(r.name, r.role, r.job.kind, r.job.module.rpartition(".")[2], r.job.threads) for r in rows]


def test_an_onnx_file_is_the_teachers_network(bundle, tmp_path):
    network = tiny_bundle.write_network(tmp_path / "any name.onnx")
    (row,) = against_rows(str(network), bundle, 2, tmp_path)
    assert described([row]) == [("teacher OpenVINO FP32", "teacher", "network", "worker", 2)]
    assert row.job.path == str(network)


def test_a_run_is_its_student_and_its_teachers_network(run, runs_bundle, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    student = ("student PyTorch FP32", "student", "torch-student", "torch_worker", 1)
    assert described(against_rows(str(folder), runs_bundle, 1, tmp_path)) == [student]  # it had no teacher
    tiny_bundle.write_network(folder / "teacher.onnx")
    rows = against_rows(str(folder), runs_bundle, 1, tmp_path)
    assert described(rows) == [student, ("teacher OpenVINO FP32", "teacher", "network", "worker", 1)]
    assert [Path(r.job.path).name for r in rows] == ["run", "teacher.onnx"]


def test_the_student_of_another_run_is_not_the_bundles(run, bundle, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    with pytest.raises(EdgesegError, match=r"has no teacher\.onnx, and its student is not the bundle's"):
        against_rows(str(folder), bundle, 1, tmp_path)
    tiny_bundle.write_network(folder / "teacher.onnx")
    assert [r.name for r in against_rows(str(folder), bundle, 1, tmp_path)] == ["teacher OpenVINO FP32"]


def test_a_model_folder_is_its_network_in_both_runtimes(model, bundle, tmp_path):
    rows = against_rows(f"nnunet:{model}", bundle, 1, tmp_path)
    assert described(rows) == [("teacher PyTorch FP32", "teacher", "torch-teacher", "torch_worker", 1),
                               ("teacher OpenVINO FP32", "teacher", "network", "worker", 1)]
    assert rows[1].faster_than == ("teacher PyTorch FP32",)
    assert [Path(r.job.path).name for r in rows] == ["model.2d", "model.2d.onnx"]
    teacher = open_teacher(f"nnunet:{model}")
    x = np.random.default_rng(0).normal(size=teacher.input_shape).astype(np.float32)
    with torch.no_grad():
        expected = teacher.network()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(load_backend("openvino", Path(rows[1].job.path), 1)(x), expected, atol=1e-3)


@pytest.mark.parametrize(("spec", "message"), [
    ("{tmp}/absent.onnx", r"absent\.onnx: no such network: --against takes a run folder, an \.onnx file or nnunet:"),
    ("{tmp}/absent", "absent: no such network"),
    ("{tmp}/empty", r"empty: not finished \(no run\.json\)"),
    ("{tmp}/other.txt", r"other\.txt: no such network"),
    ("nnunet:", "no such nnU-Net model folder: write --against nnunet:MODEL_FOLDER"),
    ("nnunet:{tmp}/absent", "absent: no such nnU-Net model folder"),
])
def test_what_is_not_there_is_one_line(bundle, tmp_path, spec, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.txt").write_text("x")
    with pytest.raises(EdgesegError, match=message) as caught:
        against_rows(spec.format(tmp=tmp_path), bundle, 1, tmp_path)
    assert "\n" not in str(caught.value)


def test_rows_that_need_what_is_not_installed_say_so_first(monkeypatch, model, run, runs_bundle, tmp_path):
    monkeypatch.setattr("edgeseg.child.run_module", lambda *arguments: pytest.fail("a process was started"))
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    with pytest.raises(EdgesegError, match=r"^this needs nnunetv2: pip install 'edgeseg\[train\]'$"):
        against_rows(f"nnunet:{model}", runs_bundle, 1, tmp_path)
    assert [r.name for r in against_rows(str(run.folder), runs_bundle, 1, tmp_path)] == ["student PyTorch FP32"]
    monkeypatch.setitem(sys.modules, "torch", None)
    for spec in (f"nnunet:{model}", str(run.folder)):
        with pytest.raises(EdgesegError, match=r"^this needs torch: pip install 'edgeseg\[train\]'$"):
            against_rows(spec, runs_bundle, 1, tmp_path)
    against_rows(str(tiny_bundle.write_network(tmp_path / "t.onnx")), runs_bundle, 1, tmp_path)  # this one does not


def test_only_nnunet_names_a_folder_for_the_full_pipeline(model, tmp_path):
    assert teacher_folder(f"nnunet:{model}") == model
    assert teacher_folder(str(model)) is None
    assert teacher_folder(str(tmp_path / "x.onnx")) is None


def test_a_failed_export_says_why_in_one_line(tmp_path, capsys):
    (folder := tmp_path / "nothing").mkdir()
    assert export.main([str(folder), str(tmp_path / "out.onnx")]) == 2
    said = capsys.readouterr().err
    assert "plans.json" in said
    assert said.count("\n") == 1
    assert export.main([str(volume_folder(tmp_path / "3d")), str(tmp_path / "out.onnx")]) == 2
    assert "a 3d model's network takes volumes" in capsys.readouterr().err
    assert not (tmp_path / "out.onnx").exists()


def test_the_copy_for_nnunet_holds_the_same_model_and_is_refused_for_a_harmful_one(tmp_path):
    folder = model_folder(tmp_path / "model", folds=(2,))
    assert export.safe_copy(folder, tmp_path / "copy") == [2]
    was, now = (open_teacher(f"nnunet:{tmp_path / name}") for name in ("model", "copy"))
    for name, tensor in was.network().state_dict().items():
        assert torch.equal(now.network().state_dict()[name], tensor)
    assert (now.mirror_axes, now.scheme, now.preprocessing) == (was.mirror_axes, was.scheme, was.preprocessing)
    checkpoint = folder / "fold_2" / "checkpoint_final.pth"
    edit_checkpoint(checkpoint, lambda content: content.update(harm=Harmful(tmp_path / "harmed")))
    with pytest.raises(EdgesegError, match=r"checkpoint_final\.pth: the checkpoint wants posix\.mkdir"):
        export.safe_copy(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert not (tmp_path / "harmed").exists()
