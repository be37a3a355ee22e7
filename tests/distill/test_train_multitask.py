"""Multi-task teachers trained on small real files: what is left behind, what is learnt, resuming, refusals."""

import json
import sys

import numpy as np
import pytest
import torch
from disks import dataset

from edgeseg.cli.main import main
from edgeseg.distill import train_multitask as multitask
from edgeseg.distill.machine import Machine
from edgeseg.distill.module import Distiller
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.samples import SliceDataset
from edgeseg.distill.train import distill
from edgeseg.distill.train_multitask import train_multitask
from edgeseg.errors import EdgesegError, Interrupted
from edgeseg.labels import LabelScheme
from edgeseg.measure.overlap import dice_per_class
from edgeseg.phantoms.write import write_nnunet
from edgeseg.teachers import open_teacher

SCHEME = LabelScheme(("background", "disk"))
ONE = Machine(accelerator="cpu", threads=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_nnunet(dataset(SCHEME), tmp_path_factory.mktemp("some data") / "Dataset001_Disks", ("MR",))


def recipe(data, **changes) -> Recipe:
    base = Recipe(data=(f"nnunet:{data}",), teacher="none", kd_weight=0.0, size=(48, 48), spacing=(1.5, 1.25),
                  epochs=2, batch_size=4, validate_every=1, augment="none", learning_rate=1e-2, precision="32-true")
    return base.changed(changes)


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """(folder, what was said) of a U-Net of width 4 that trained for 12 epochs of two steps."""
    said: list[str] = []
    out = tmp_path_factory.mktemp("teachers") / "a teacher"
    train_multitask(recipe(data, epochs=12), "multitask", 4, out, machine=ONE, say=said.append)
    return out, "\n".join(said)


def test_the_folder_holds_a_teacher_that_says_what_it_is(trained, data):
    out, said = trained
    assert sorted(p.name for p in out.iterdir()) == ["last.ckpt", "metrics.csv", "recipe.toml", "teacher.json",
                                                     "teacher.safetensors"]
    teacher = open_teacher(f"multitask:{out}")
    assert teacher.scheme == SCHEME
    assert teacher.preprocessing.size == (48, 48)
    record = json.loads((out / "teacher.json").read_text())
    assert record["network"] == {"kind": "multitask", "channels": 1, "classes": 2, "width": 4, "size": [48, 48]}
    assert len(record["training"]["splits"]["train"]) >= 3
    assert str(data.parent) not in (out / "teacher.json").read_text()
    assert "multitask, width 4, 0.17 M parameters, 48x48" in said
    assert f"dev Dice {record['training']['dev']['dice']:.4f}" in said


def test_without_mirroring_neither_teacher_nor_student_mirrors(data, tmp_path, monkeypatch):
    seen = []
    build = SliceDataset.__init__
    monkeypatch.setattr(SliceDataset, "__init__", lambda self, cache, size, seed, axes, *more, **named: (
        seen.append(axes), build(self, cache, size, seed, axes, *more, **named))[1])
    train_multitask(recipe(data, epochs=1, mirror=False), "multitask", 2, tmp_path / "t", machine=ONE, say=str)
    teacher, case = open_teacher(f"multitask:{tmp_path / 't'}"), next(iter(dataset(SCHEME)))
    assert teacher.mirror_axes == ()
    assert np.array_equal(teacher.predict(case, "mirror")[1], teacher.predict(case, "none")[1])
    monkeypatch.setattr("edgeseg.teachers.export.teacher_onnx", lambda *arguments: None)
    distill(recipe(data, epochs=1, teacher=f"multitask:{tmp_path / 't'}", kd_weight=0.5), tmp_path / "s", machine=ONE,
            say=str)
    assert seen == [(), ()]


def test_both_tasks_are_learnt(trained, data):
    """The disks are found on patients that it has not seen, and the reconstruction beats the best constant image."""
    teacher = open_teacher(f"multitask:{trained[0]}", bf16=False)
    dice, errors, spread = [], [], []
    for case in recipe(data).dataset().select("val"):
        labels, _ = teacher.predict(case, "none")
        dice.append(dice_per_class(labels, case.labels, 2)[0])
        image = torch.from_numpy(teacher.preprocessing.to_canvas(case.frames, case.spacing)[..., :48, :48])
        with torch.no_grad():
            errors.append((teacher.network().reconstruct(image) - image).square().mean())
        spread.append(image.var())
    assert np.mean(dice) > 0.8
    assert np.mean(errors) < 0.6 * np.mean(spread)


def test_the_reconstruction_is_part_of_what_is_minimised(data, tmp_path, monkeypatch):
    folder = tmp_path / "t"
    train_multitask(recipe(data, epochs=1), "multitask", 4, folder, machine=ONE, say=str)
    monkeypatch.setattr("edgeseg.teachers.multitask_unet.RECONSTRUCTION_WEIGHT", 0.0)
    train_multitask(recipe(data, epochs=1), "multitask", 4, tmp_path / "without", machine=ONE, say=str)
    one, other = (open_teacher(f"multitask:{f}").network().state_dict() for f in (folder, tmp_path / "without"))
    for name in ("reconstruction_head.weight", "encoder.0.0.weight"):
        assert not torch.equal(one[name], other[name])


def test_a_transformer_trains_and_teaches_a_unet_student(data, tmp_path, monkeypatch):
    monkeypatch.setattr("edgeseg.teachers.export.teacher_onnx", lambda *_: None)  # tests/teachers looks at that file
    train_multitask(recipe(data), "transformer", 2, tmp_path / "t", machine=ONE, say=str)
    plan = recipe(data, teacher=f"multitask:{tmp_path / 't'}", kd_weight=0.5, epochs=1, student="unet",
                  features=({"scale": "bottleneck", "teacher": "bottleneck", "student": "bottleneck", "kind": "mse"},),
                  spec={"widths": [4, 8, 8]}, size=(32, 32), spacing=(1.5, 1.5))
    run = distill(plan, tmp_path / "run", machine=ONE, say=str)
    assert run.metrics["history"][0]["loss"] > 0
    assert Run.open(run.folder).teacher["network"]["kind"] == "transformer"
    assert run.student()(torch.zeros(1, 1, 32, 32)).shape == (1, 2, 32, 32)


def test_an_interrupted_training_goes_on_to_what_it_would_have_been(data, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train_multitask(recipe(data, epochs=3), "multitask", 2, whole, machine=ONE, say=str)
    started = Distiller.on_validation_epoch_start

    def press(module):
        if module.current_epoch == 1:
            raise KeyboardInterrupt
        started(module)

    monkeypatch.setattr(Distiller, "on_validation_epoch_start", press)
    with pytest.raises(Interrupted, match="the same command with --resume"):
        train_multitask(recipe(data, epochs=3), "multitask", 2, cut, machine=ONE, say=str)
    monkeypatch.undo()
    with pytest.raises(EdgesegError, match=r"not finished.*--resume"):
        open_teacher(f"multitask:{cut}")
    with pytest.raises(EdgesegError, match="already there; --resume"):
        train_multitask(recipe(data), "multitask", 2, cut, machine=ONE, say=str)
    # kind, width and recipe are those of the folder, whatever is asked for
    train_multitask(recipe(data, epochs=9), "transformer", 8, cut, resume=True, machine=ONE, say=str)
    assert (cut / "teacher.safetensors").read_bytes() == (whole / "teacher.safetensors").read_bytes()


def command(monkeypatch, capfd, *arguments: object) -> str:
    """The command's one line of error; fails unless it exits with 2."""
    monkeypatch.setattr(sys, "argv", ["edgeseg", "train-teacher", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capfd.readouterr().err
    assert ended.value.code == 2, error
    assert error.count("\n") == 1, error
    return error


@pytest.mark.parametrize(("arguments", "said"), [
    (("multitask", "--width", 0), "width is the number of channels"),
    (("transformer", "--width", -1), "width is the number of channels"),
    (("multitask", "--size", 100, 64), "100 x 64 pixels cannot be halved 4 times"),
    (("transformer", "--size", 64, 0), "64 x 0 pixels cannot be halved 4 times"),
    (("mamba",), "mamba: deeplabv3, multitask and transformer are trained here"),
    (("deeplabv3", "--width", 8), "deeplabv3 has one width"),
    (("multitask", "--hu-window", 240, -160), "hu_window"),
    (("multitask", "--resume"), "not the folder of a multi-task teacher")])
def test_bad_input_is_one_line_and_leaves_nothing_behind(data, tmp_path, monkeypatch, capfd, arguments, said):
    out = tmp_path / "t"
    assert said in command(monkeypatch, capfd, *arguments, "--data", f"nnunet:{data}", "--out", out)
    assert not out.exists()


def test_data_that_cannot_be_read_leave_nothing_behind(tmp_path, monkeypatch, capfd):
    out = tmp_path / "t"
    said = command(monkeypatch, capfd, "multitask", "--data", f"nnunet:{tmp_path / 'no-such'}", "--out", out)
    assert "no-such" in said
    assert not out.exists()


def test_the_options_reach_the_training(data, tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr(multitask, "train_multitask", lambda *given: asked.update(enumerate(given)))
    monkeypatch.setattr(sys, "argv", ["edgeseg", "train-teacher", "transformer", "--data", f"nnunet:{data}", "--width",
                                      "16", "--size", "256", "128", "--spacing", "1.5", "1.6", "--hu-window", "-160",
                                      "240", "--out", str(tmp_path / "t")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert (asked[1], asked[2]) == ("transformer", 16)
    assert (asked[0].size, asked[0].spacing, asked[0].hu_window) == ((256, 128), (1.5, 1.6), (-160, 240))
