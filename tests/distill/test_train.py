"""Distillation end to end on small real files: determinism, resuming, teachers of every kind, refusals."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nnunet_folders
import numpy as np
import pytest
import torch
from disks import dataset

from edgeseg.bundle.card import licence_text
from edgeseg.bundle.export import describe
from edgeseg.bundle.leak import check_own
from edgeseg.cli.main import main
from edgeseg.distill.module import at_student_spacing
from edgeseg.distill.progress import EpochReport
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.train import distill
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.manifest import Measured
from edgeseg.phantoms.write import write_acdc, write_nnunet
from edgeseg.teachers import open_teacher
from edgeseg.teachers.checkpoint import sha256

HEART = LabelScheme(("background", "RV", "MYO", "LV"))


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    return write_acdc(dataset(HEART), tmp_path_factory.mktemp("data of hearts"))


@pytest.fixture(scope="module")
def heart_teacher(tmp_path_factory) -> Path:
    return nnunet_folders.model_folder(tmp_path_factory.mktemp("teacher"), patch=(32, 32), spacing=(1.5, 1.25))


def small(data: Path, teacher: Path | None = None, **changes) -> Recipe:
    base = Recipe(data=(f"acdc:{data}",), teacher=f"nnunet:{teacher}" if teacher else "none", size=(32, 32),
                  spacing=(1.5, 1.25), width_mult=0.5, expansion=2, epochs=2, batch_size=4, validate_every=1,
                  kd_weight=0.5 if teacher else 0.0, precision="32-true")
    return replace(base, **changes)


@pytest.fixture(scope="module")
def first(hearts, heart_teacher, tmp_path_factory) -> tuple[Run, str]:
    """A whole run with seed 3, and what was said."""
    said: list[str] = []
    run = distill(small(hearts, heart_teacher, seed=3), tmp_path_factory.mktemp("runs") / "run", say=said.append)
    return run, "\n".join(said)


@pytest.fixture
def without_teacher_onnx(monkeypatch):
    """Writing teacher.onnx takes most of a tiny run; the tests of `first` and of tests/teachers look at it."""
    monkeypatch.setattr("edgeseg.teachers.export.teacher_onnx", lambda *arguments: None)


def weights(run: Path) -> bytes:
    return (run / "student.safetensors").read_bytes()


def test_a_run_holds_what_later_steps_need(first):
    run, text = first
    assert Run.open(run.folder).spec == run.spec
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "last.ckpt", "metrics.csv", "recipe.toml", "run.json", "student.safetensors", "teacher.onnx"]
    assert len((run.folder / "metrics.csv").read_text().splitlines()) == 3
    assert run.teacher["parameters"] > 0
    assert len(run.data["splits"]["train"]) == 4
    assert run.student()(torch.zeros(1, 1, 32, 32)).shape == (1, 4, 32, 32)
    assert "of the labelled foreground lies outside" in text
    assert "M MAC" in text
    assert str(run.folder.parent.parent) not in json.dumps(run.teacher)


def test_two_runs_of_one_seed_are_identical_and_another_seed_is_not(first, hearts, heart_teacher, tmp_path,
                                                                     without_teacher_onnx):
    same, other = (distill(small(hearts, heart_teacher, seed=s), tmp_path / f"{s}", say=str) for s in (3, 4))
    assert weights(same.folder) == weights(first[0].folder)
    assert weights(other.folder) != weights(first[0].folder)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(hearts, tmp_path):
    dense = {"widths": [8, 8, 16, 16], "blocks": [0] * 4, "expansions": [0] * 4}
    recipe = small(hearts, epochs=4, ema=0.9, student="dense", spec=dense, width_mult=1.0, expansion=4)
    whole = distill(recipe, tmp_path / "whole", say=str)
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    command = [sys.executable, "-m", "edgeseg", "distill", "--recipe", str(tmp_path / "r.toml")]
    cut = tmp_path / "cut"
    buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}  # progress is seen all the same
    process = subprocess.Popen([*command, "--out", str(cut)], stdout=subprocess.PIPE, text=True, env=buffered)
    for line in process.stdout:  # the line is printed just before the checkpoint of that epoch is written
        if line.startswith("epoch   2/4"):
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "run.json").exists()
    with pytest.raises(EdgesegError, match="--resume"):
        distill(recipe, cut, say=str)
    resumed = distill(recipe, cut, resume=True, say=str)
    assert weights(cut) == weights(whole.folder)
    assert [r["loss"] for r in resumed.metrics["history"]] == [r["loss"] for r in whole.metrics["history"]]


def test_the_moving_average_is_what_is_kept(hearts, tmp_path, without_teacher_onnx):
    plain, average = (distill(small(hearts, epochs=1, ema=e), tmp_path / f"{e}", say=str) for e in (0.0, 0.9))
    assert weights(plain.folder) != weights(average.folder)
    kept = torch.load(average.folder / "last.ckpt", weights_only=True)
    stem = "student.stem.0.weight"
    assert torch.equal(kept["state_dict"][stem], average.student().state_dict()["stem.0.weight"])
    assert torch.equal(kept["current_model_state"][f"{stem}"], plain.student().state_dict()["stem.0.weight"])


def test_ctrl_c_is_one_line_and_leaves_a_run_that_can_be_resumed(hearts, tmp_path, monkeypatch, capfd):
    (tmp_path / "r.toml").write_text(small(hearts, epochs=3).to_toml())
    out = tmp_path / "run"
    ended = EpochReport.on_train_epoch_end

    def press(report, trainer, module):
        ended(report, trainer, module)
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EpochReport, "on_train_epoch_end", press)
    monkeypatch.setattr("sys.argv", ["edgeseg", "distill", "--recipe", str(tmp_path / "r.toml"), "--out", str(out)])
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones, as it is about to end
    assert stop.value.code == 130
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == f"edgeseg: {out}: interrupted; go on with `edgeseg distill --resume {out}`"
    monkeypatch.undo()
    resumed = distill(small(hearts), out, resume=True, say=str)
    assert [r["epoch"] for r in resumed.metrics["history"]] == [1, 2, 3]


def test_a_two_channel_five_label_model_of_other_organs_needs_no_code_of_its_own(tmp_path, without_teacher_onnx):
    scheme = LabelScheme(tuple(nnunet_folders.ORGANS))
    data = write_nnunet(dataset(scheme, channels=2), tmp_path / "raw", ("CT", "T1"))
    teacher = nnunet_folders.organ_folder(tmp_path / "teacher", patch=(32, 32))
    recipe = replace(small(data, teacher, epochs=1), data=(f"nnunet:{data}",))
    run = distill(recipe, tmp_path / "run", say=str)
    assert run.scheme == scheme
    assert run.channels == ("CT", "T1")
    assert run.preprocessing.channels[0].kind == "ct"


def test_a_3d_teacher_distils_through_stored_predictions(hearts, tmp_path):
    teacher = nnunet_folders.volume_folder(tmp_path / "teacher")
    run = distill(small(hearts, teacher, epochs=1, kd_weight=1.0), tmp_path / "run", say=str)
    assert run.metrics["history"][0]["loss"] > 0
    assert not (run.folder / "teacher.onnx").exists()
    with pytest.raises(EdgesegError, match="stored targets"):
        distill(small(hearts, teacher, targets="network"), tmp_path / "other", say=str)


def test_a_teacher_of_another_spacing_gives_logits_on_the_students_grid(heart_teacher):
    teacher = open_teacher(f"nnunet:{heart_teacher}", bf16=False)
    image = torch.nn.functional.interpolate(torch.randn(2, 1, 8, 8), (48, 40), mode="bicubic")
    same = at_student_spacing(teacher, (48, 40), (1.5, 1.25))(image)
    assert torch.equal(same[0], teacher.logits(image)[0])
    # every pixel doubled: halving it gives the very same image to the teacher's network
    finer = at_student_spacing(teacher, (96, 80), (0.75, 0.625))(image.repeat_interleave(2, 2).repeat_interleave(2, 3))
    wanted = torch.nn.functional.interpolate(same[0], (96, 80), mode="bilinear")
    np.testing.assert_allclose(finer[0].numpy(), wanted.numpy(), atol=1e-4)
    odd = at_student_spacing(teacher, (50, 41), (1.5, 1.25))(image.new_zeros(1, 1, 50, 41))
    assert odd[0].shape == (1, 4, 50, 41)


def test_labels_only_and_teacher_only_both_train(hearts, heart_teacher, tmp_path, without_teacher_onnx):
    for w, name in ((0.0, "labels"), (1.0, "teacher")):
        run = distill(small(hearts, heart_teacher, kd_weight=w, epochs=1), tmp_path / name, say=str)
        assert run.metrics["dev"]["epoch"] == 0


def test_a_run_folder_is_never_overwritten(hearts, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").write_text("keep")
    with pytest.raises(EdgesegError, match="already there"):
        distill(small(hearts), tmp_path / "run", say=str)
    assert (tmp_path / "run" / "mine.txt").read_text() == "keep"


def test_a_final_fit_trains_on_dev_too_keeps_its_last_epoch_and_still_holds_dev_back_from_calibration(hearts, tmp_path):
    said: list[str] = []
    run = distill(small(hearts, epochs=3, final=True), tmp_path / "run", say=said.append)
    data = run.dataset()
    fitted = len(data.select("train").refs) + len(data.select("dev").refs)
    assert f"({fitted} training cases)" in "".join(said)
    assert run.metrics["dev"]["epoch"] == 2
    assert [k for row in run.metrics["history"] for k in row if k == "dev_dice_mean"] == ["dev_dice_mean"]
    with pytest.raises(EdgesegError, match="was in dev when"):
        check_own(run, data.select("dev"))


def test_data_without_dev_patients_is_refused(hearts, tmp_path):
    split = {"train": [f"patient{i:03d}" for i in range(1, 6)], "dev": [], "val": ["patient006"]}
    (tmp_path / "split.json").write_text(json.dumps(split))
    with pytest.raises(EdgesegError, match="no dev patients"):
        distill(small(hearts, split_file=str(tmp_path / "split.json")), tmp_path / "run", say=str)


@pytest.mark.soak  # three processes with torch
def test_two_gloo_processes_train_together_each_with_its_own_teacher(hearts, heart_teacher, tmp_path):
    (tmp_path / "r.toml").write_text(small(hearts, heart_teacher).to_toml())
    command = [sys.executable, "-m", "edgeseg", "distill", "--recipe", str(tmp_path / "r.toml"), "--out",
               str(tmp_path / "run"), "--devices", "2", "--accelerator", "cpu", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "run")
    assert [r["epoch"] for r in run.metrics["history"]] == [1, 2]
    assert run.metrics["dev"]["dice"] > 0


def test_runs_with_one_cache_ask_the_teacher_once_and_give_what_they_give_alone(hearts, heart_teacher, tmp_path,
                                                                               without_teacher_onnx):
    said: list[str] = []
    recipe, shared = small(hearts, heart_teacher, targets="stored", tta="none", epochs=1), tmp_path / "shared"
    alone = distill(recipe, tmp_path / "alone", say=said.append)
    asked = sum("stored targets" in line for line in said)
    first = distill(recipe, tmp_path / "first", say=lambda _: None, cache=shared)
    said.clear()
    second = distill(replace(recipe, seed=1), tmp_path / "second", say=said.append, cache=shared)
    assert asked
    assert not any("stored targets" in line for line in said)
    assert shared.is_dir()
    assert not any((run.folder / "cache").exists() for run in (alone, second))
    assert first.metrics["dev"] == alone.metrics["dev"]


# ---- to begin with the weights of another run

@pytest.fixture(scope="module")
def labelled(hearts, tmp_path_factory) -> Run:
    return distill(small(hearts, epochs=1), tmp_path_factory.mktemp("runs") / "labelled", say=print)


def going_on(labelled: Run, hearts: Path, **changes) -> Recipe:
    return small(hearts, **{"epochs": 1, "pretrained": str(labelled.folder)} | changes)


def test_a_run_begins_with_the_weights_of_another_and_keeps_whose_they_were(labelled, hearts, tmp_path):
    old = replace(labelled, folder=tmp_path / "old", teacher={"dataset": "other hospital"},
                  data=labelled.data | {"licence": "ask first"})
    shutil.copytree(labelled.folder, old.folder)
    old.save()
    still = going_on(old, hearts, learning_rate=1e-12, weight_decay=0.0)
    run = distill(still, tmp_path / "run", say=print)
    before, after = (dict(r.student().named_parameters()) for r in (old, run))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value)
    kept = Run.open(run.folder).data
    assert kept["pretrained"]["name"] == "old"
    assert kept["pretrained"]["sha256"] == sha256(old.folder / "student.safetensors")
    assert kept["licence"].endswith("; ask first")
    assert set(old.data["splits"]["train"]) <= set(kept["pretrained"]["patients"]) <= run.trained_on()
    manifest = describe(run, "name", None, Measured(frames=0, frames_from="", checks=(), training={}))
    assert "other hospital" in licence_text(manifest)
    assert "No teacher" not in licence_text(manifest)
    third = distill(going_on(run, hearts), tmp_path / "third", say=print)
    assert third.data["pretrained"]["teachers"] == ["other hospital"]  # along a chain


def test_an_interrupted_run_goes_on_without_the_one_that_it_began_with(labelled, hearts, tmp_path):
    old = replace(labelled, folder=tmp_path / "old")
    shutil.copytree(labelled.folder, old.folder)
    run = distill(going_on(old, hearts), tmp_path / "run", say=print)
    (run.folder / "run.json").unlink()
    shutil.rmtree(old.folder)
    again = distill(Recipe(), run.folder, resume=True, say=print)
    assert again.data["pretrained"] == run.data["pretrained"]


@pytest.mark.parametrize(("changes", "why"), [
    ({"pretrained": "nowhere"}, "no such run"),
    ({"width_mult": 1.0}, "width_mult = 0.5, this one 1.0"),
    ({"student": "dense", "width_mult": 1.0, "expansion": 4}, "family mobilenetv2, this one dense"),
])
def test_a_run_that_does_not_fit_is_no_beginning(labelled, hearts, tmp_path, changes, why):
    with pytest.raises(EdgesegError, match=why):
        distill(going_on(labelled, hearts, **changes), tmp_path / "run", say=print)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("swapped", "mixture"), [
    (("train", "dev"), False), (("train", "val"), False), (("dev", "val"), False), (("train", "val"), True)])
def test_a_run_made_with_patients_who_choose_or_report_is_no_beginning(labelled, hearts, tmp_path, swapped, mixture):
    splits = {name: list(patients) for name, patients in labelled.data["splits"].items()}
    one, other = swapped
    splits[one][0], splits[other][0] = splits[other][0], splits[one][0]
    data = shutil.copytree(hearts, tmp_path / "data")
    (data / "split.json").write_text(json.dumps(splits))
    recipe = going_on(labelled, data)
    if mixture:
        recipe = replace(recipe, data=(*recipe.data, "phantom:cine?n=6"))
    name = f"{'acdc_' if mixture else ''}{splits[other][0]}"
    with pytest.raises(EdgesegError, match=rf"made with 1 patient\(s\) of {other}, {name} one"):
        distill(recipe, tmp_path / "run", say=print)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_weights_are_damaged_is_no_beginning(labelled, hearts, tmp_path):
    old = Path(shutil.copytree(labelled.folder, tmp_path / "old"))
    file = old / "student.safetensors"
    for spoil, why in ((lambda: file.write_bytes(file.read_bytes()[:-9]), "damaged"), (file.unlink, "missing")):
        spoil()
        with pytest.raises(EdgesegError, match=f"student.safetensors: {why}"):
            distill(small(hearts, pretrained=str(old)), tmp_path / "run", say=print)
        assert not (tmp_path / "run").exists()
