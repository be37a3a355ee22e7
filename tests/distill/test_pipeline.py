import json
import shutil
import sys

import nibabel
import numpy as np
import pytest
import tiny_bundle
from nnunet_folders import model_folder, volume_folder

from edgeseg.case import Case
from edgeseg.container import open_bundle
from edgeseg.distill import pipeline
from edgeseg.distill.pipeline import NAMES, faster, measure_pipeline, run_command, whole_commands, without_folders
from edgeseg.distill.pipeline_worker import MIRRORED, PLAIN, SLICE_SPACING, STUDENT, NnUNet, write_cases
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import one_line
from edgeseg.measure.turns import write_frames
from edgeseg.teachers import open_teacher


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return open_bundle(tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg",
                                               precisions=("fp32",)))


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
    return {f.name: np.asarray(nibabel.load(f).dataobj).tolist() for f in sorted(folder.glob("case*"))}


def test_nnunet_makes_as_many_passes_as_its_row_says_and_writes_what_the_teacher_predicts(tmp_path):
    model = model_folder(tmp_path / "model", folds=(0, 1))
    rng = np.random.default_rng(0)
    frames = [np.rint(rng.normal(100, 30, (1, *shape))).astype(np.float32) for shape in ((40, 36), (40, 36), (20, 24))]
    stored = write_frames(tmp_path / "frames.npz", frames, [(1.5, 1.5)] * 3, frames)
    subject = NnUNet({"path": str(model), "frames": str(stored), "threads": 1})
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
    assert mirrored.keys() == plain.keys() == {"case000.nii.gz", "case001.nii.gz"}
    assert mirrored != plain
    case = Case("case000", "p", np.stack(frames[:2]), (1.5, 1.5), slice_spacing=SLICE_SPACING)
    labels = open_teacher(f"nnunet:{model}").predict(case)[0]
    np.testing.assert_array_equal(np.transpose(mirrored["case000.nii.gz"]), labels)


@pytest.mark.soak  # nnU-Net's own command among them
def test_commands_write_what_loaded_processes_write_and_an_ended_run_says_what_it_has(tmp_path, bundle, monkeypatch):
    ran, steps = [], []

    def command(line, out, threads):
        ran.append(mode := out.name.removeprefix("command, "))
        if len(ran) > 3:  # nnU-Net's are not repeated, so this is the student
            raise KeyboardInterrupt
        if mode == PLAIN:
            return 1.5
        seconds = run_command(line, out, threads)
        assert masks(out) == masks(out.with_name(mode))
        assert list(masks(out)) == ["case000.nii.gz"]
        return seconds

    monkeypatch.setattr(pipeline, "run_command", command)
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 0.0)
    monkeypatch.setattr(pipeline, "BLOCK_SECONDS", 0.0)
    found = measure_pipeline(model_folder(tmp_path / "model"), bundle, 1, 2, 3, lambda *step: steps.append(step))
    assert sorted(ran[:3]) == sorted(NAMES)
    assert ran[3:] == [STUDENT]
    assert len(steps) == 2 * 3 + 3
    assert {total for _, total in steps} == {2 * 3 + 3 * 3}
    assert (found.cases, found.images, found.threads, found.precision) == (1, 3, 1, "fp32")
    assert (found.complete, found.interrupted) == (False, True)
    assert found.runtime["nnU-Net"].keys() >= {"TORCH", "NNUNETV2"}
    assert found.runtime["student"]["INFERENCE_NUM_THREADS"] == "1"
    assert (found.student.name, found.student.input_shape) == (NAMES[STUDENT], (1, 1, 32, 32))
    assert [(r.name, r.mirrored, r.input_shape) for r in found.rows] == [
        (NAMES[MIRRORED], True, (1, 1, 32, 40)), (NAMES[PLAIN], False, (1, 1, 32, 40))]
    for row in (found.student, *found.rows):
        assert len(row.spread) == 2
        assert row.seconds_per_image == pytest.approx(np.median(row.spread))
        assert row.starts == (row.seconds_with_start_up,)
    for row in found.rows:
        assert row.passes == row.tiles * (4 if row.mirrored else 1)
        assert row.student_seconds_per_image == pytest.approx(found.student.seconds_per_image)
        ratios = np.divide(row.spread, found.student.spread)  # a block here is one call
        assert row.faster.value == pytest.approx(np.sqrt(np.prod(ratios)))
        assert (row.faster.n, row.faster_with_start_up.n) == (2, 1)
        assert row.faster_with_start_up.value == pytest.approx(row.seconds_with_start_up / found.student.starts[0])
    assert json.loads(one_line(found))["rows"][0]["faster_with_start_up"]["low"] is None


def test_each_command_runs_once_a_round_but_nnunets_long_ones_once():
    ran, took = [], {}

    def way(mode, seconds):
        return lambda: ran.append(mode) or seconds

    assert not whole_commands({STUDENT: way(STUDENT, 31.0), MIRRORED: way(MIRRORED, 31.0), PLAIN: way(PLAIN, 2.0)}, 3,
                              took, lambda what: None)
    assert took == {STUDENT: {0: 31.0, 1: 31.0, 2: 31.0}, MIRRORED: {0: 31.0}, PLAIN: {0: 2.0, 1: 2.0, 2: 2.0}}
    assert sorted(ran[:3]) == sorted(NAMES)


def test_the_student_is_compared_in_the_rounds_that_both_have():
    found = faster({0: 1.0, 1: 2.0, 3: 1.0}, {0: 10.0, 1: 80.0, 2: 5.0})
    assert (found.value, found.n) == (pytest.approx(20.0), 2)
    assert faster({0: 1.0}, {1: 1.0}) is None


def test_a_command_that_fails_is_one_line_with_what_it_said_last(tmp_path, monkeypatch):
    (out := tmp_path / "command, mirrored").mkdir()
    (out / "case000.nii.gz").write_text("of the run before")
    python = (sys.executable, "-c")
    with pytest.raises(EdgesegError, match=r"^command, mirrored: ended with code 3: the end$"):
        run_command((*python, "import sys; print('first'); print('the end'); sys.exit(3)"), out, 1)
    out.mkdir()
    (out / "case000.nii.gz").write_text("of the run before")
    with pytest.raises(EdgesegError, match="ended with code 0: without a word"):
        run_command((*python, "pass"), out, 1)
    monkeypatch.setattr(pipeline, "COMMAND_TIMEOUT", 0.2)
    with pytest.raises(EdgesegError, match="not done after"):
        run_command((*python, "import time; time.sleep(60)"), out, 1)


def test_a_pipeline_that_does_not_start_is_one_line_without_folders(tmp_path, bundle):
    folder = volume_folder(tmp_path / "model")
    shutil.rmtree(folder / "fold_0")
    with pytest.raises(EdgesegError, match=r"^the full pipeline of nnU-Net does not start: model: .*fold_") as caught:
        measure_pipeline(folder, bundle, 1)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)
    assert without_folders(f"[Errno 2] no file: '{tmp_path}/images/case.nii' in {sys.prefix}/lib/x.py", tmp_path) == (
        "[Errno 2] no file: 'images/case.nii' in lib/x.py")


def test_without_nnunet_nothing_starts(monkeypatch, tmp_path, bundle):
    monkeypatch.setattr(pipeline, "Worker", lambda job: pytest.fail("a process was started"))
    monkeypatch.setitem(sys.modules, "nnunetv2", None)
    with pytest.raises(EdgesegError, match=r"^this needs nnunetv2: pip install 'edgeseg\[train\]'$"):
        measure_pipeline(tmp_path, bundle, 1)
