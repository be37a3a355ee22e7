import json
import os
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tiny_bundle
import tiny_run
import torch
from nnunet_folders import edit_checkpoint, model_folder, volume_folder

from edgeseg.case import Case
from edgeseg.container import MANIFEST, open_bundle, write_sums
from edgeseg.distill import against
from edgeseg.distill.against import against_rows, measure_pipeline, run_command, teacher_folder
from edgeseg.distill.pipeline_worker import IMAGES, MIRRORED, PLAIN, SLICE_SPACING, Pipeline, write_cases
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Manifest, grid_of
from edgeseg.measure.document import one_line
from edgeseg.measure.turns import write_frames
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
    return model_folder(tmp_path_factory.mktemp("a place") / "model", folds=(0, 1))


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


def test_rows_that_need_torch_say_so_without_it(monkeypatch, model, run, runs_bundle, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    for spec in (f"nnunet:{model}", str(run.folder)):
        with pytest.raises(EdgesegError, match=r"needs torch: pip install 'edgeseg\[train\]'"):
            against_rows(spec, runs_bundle, 1, tmp_path)
    with pytest.raises(EdgesegError, match="needs torch"):
        measure_pipeline(model, open_bundle(runs_bundle), 1)
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


def test_frames_of_one_geometry_are_the_slices_of_one_case(tmp_path):
    frames = [np.full((2, 4, 5), i, np.float32) for i in range(3)] + [np.full((2, 6, 5), 3, np.float32)]
    cases = write_cases(frames, [(1.5, 1.0), (1.5, 1.5), (1.5, 1.0), (1.5, 1.0)], ".nii.gz", 2, tmp_path, "model")
    assert [[f.name for f in files] for files in cases] == [
        [f"case{k:03d}_0000.nii.gz", f"case{k:03d}_0001.nii.gz"] for k in range(3)]
    image = nibabel.load(cases[0][1])
    assert image.header.get_zooms() == pytest.approx((1.0, 1.5, SLICE_SPACING))
    assert image.shape == (5, 4, 2)
    assert np.asarray(image.dataobj)[0, 0].tolist() == [0, 2]
    assert nibabel.load(cases[2][0]).shape == (5, 6, 1)
    with pytest.raises(EdgesegError, match="model: takes 3 channels, the bundle's frames have 2"):
        write_cases(frames, [(1.0, 1.0)] * 4, ".nii.gz", 3, tmp_path, "model")
    with pytest.raises(EdgesegError, match=r"model: was trained on \.png files"):
        write_cases(frames, [(1.0, 1.0)] * 4, ".png", 2, tmp_path, "model")


def masks(folder):
    return {f.name: np.asarray(nibabel.load(f).dataobj) for f in sorted(folder.glob("case*"))}


def test_what_is_timed_writes_what_nnunets_own_command_writes(model, tmp_path):
    """And makes as many passes of the network as its row says."""
    rng = np.random.default_rng(0)
    frames = [np.rint(rng.normal(100, 30, (1, *shape))).astype(np.float32) for shape in ((40, 36), (40, 36), (20, 24))]
    stored = write_frames(tmp_path / "frames.npz", frames, [(1.5, 1.5)] * 3, frames)
    subject = Pipeline({"path": str(model), "frames": str(stored), "threads": 1})
    assert {k: subject.runtime[k] for k in ("folds", "cases", "images", "tiles", "mirrorings")} == {
        "folds": [0, 1], "cases": 2, "images": 3, "tiles": 2 * 4 + 1, "mirrorings": 4}
    assert subject.shape == (1, 1, 32, 40)
    passes = []
    subject.predictor.network.register_forward_pre_hook(lambda *_: passes.append(1))
    subject.calls[PLAIN](0)
    assert len(passes) == 9 * 2  # folds
    subject.calls[MIRRORED](0)
    assert len(passes) == 9 * 2 * (1 + 4)
    mirrored, plain = masks(tmp_path / MIRRORED), masks(tmp_path / PLAIN)
    assert any((mirrored[name] != plain[name]).any() for name in mirrored)
    assert run_command(tmp_path, [0, 1], True, 1) > 0
    command = masks(tmp_path / "command, mirrored")
    case = Case("case000", "p", np.stack(frames[:2]), (1.5, 1.5), slice_spacing=SLICE_SPACING)
    labels = open_teacher(f"nnunet:{model}").predict(case)[0]
    assert command.keys() == mirrored.keys() == {"case000.nii.gz", "case001.nii.gz"}
    for name in command:
        np.testing.assert_array_equal(mirrored[name], command[name])
    np.testing.assert_array_equal(mirrored["case000.nii.gz"].T, labels)


def test_a_command_that_fails_is_one_line_with_what_it_said_last(tmp_path, monkeypatch):
    monkeypatch.setattr(against, "COMMAND", "import sys; print('first'); print('the end'); sys.exit(3)")
    with pytest.raises(EdgesegError, match=r"^nnUNetv2_predict_from_modelfolder ended with code 3: the end$"):
        run_command(tmp_path, [0], False, 1)
    monkeypatch.setattr(against, "COMMAND", "import time; time.sleep(60)")
    monkeypatch.setattr(against, "COMMAND_TIMEOUT", 0.2)
    with pytest.raises(EdgesegError, match="not done after"):
        run_command(tmp_path, [0], False, 1)


def test_a_row_says_what_was_measured_and_an_interrupted_one_what_was_not(model, bundle, monkeypatch):
    def command(scratch, folds, mirrored, threads):
        if not mirrored:
            raise KeyboardInterrupt
        assert len(list((scratch / IMAGES).iterdir())) == 1
        return 1.5

    monkeypatch.setattr(against, "run_command", command)
    steps = []
    mirrored, plain = measure_pipeline(model, open_bundle(bundle), 1, 2,
                                       lambda what, total: steps.append((what, total)))
    assert [r.name for r in (mirrored, plain)] == [f"nnU-Net full pipeline, {m}" for m in (MIRRORED, PLAIN)]
    assert len(steps) == 2 * 2 + 1
    assert {total for _, total in steps} == {6}
    for row in (mirrored, plain):
        assert (row.cases, row.images, row.threads, row.input_shape) == (1, 3, 1, (1, 1, 32, 40))
        assert len(row.spread) == 2
        assert row.seconds_per_image == pytest.approx(np.median(row.spread))
        assert row.passes == row.tiles * 2 * (4 if row.mirrored else 1)
    assert (mirrored.seconds_with_start_up, mirrored.complete) == (1.5, True)
    assert (plain.seconds_with_start_up, plain.complete) == (None, False)
    assert json.loads(one_line(mirrored))["tiles"] == mirrored.tiles


def test_a_pipeline_that_does_not_start_is_one_line(tmp_path, bundle):
    folder = volume_folder(tmp_path / "model")
    shutil.rmtree(folder / "fold_0")
    with pytest.raises(EdgesegError, match=r"does not start: .*no fold_\*/checkpoint_final\.pth") as caught:
        measure_pipeline(folder, open_bundle(bundle), 1)
    assert "\n" not in str(caught.value)
