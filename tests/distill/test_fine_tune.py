"""The last rung: a student whose INT8 loses Dice learns to live with it, and only its weights are changed."""

import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import nnunet_folders
import numpy as np
import pytest
import torch
from disks import dataset
from safetensors.torch import save_file

from edgeseg.bundle.calibrate import draw_frames
from edgeseg.bundle.fold import fold_batch_norm, torch_logits
from edgeseg.bundle.quantise import quantise_rung
from edgeseg.distill.fine_tune import enough, fine_tune
from edgeseg.distill.module import dev_truth
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.simulated_int8 import simulated_int8
from edgeseg.distill.train import distill
from edgeseg.labels import LabelScheme
from edgeseg.measure.overlap import dice_per_class
from edgeseg.onnx_file import write_onnx
from edgeseg.phantoms.write import write_acdc
from edgeseg.runtime.backends import load_backend
from edgeseg.students.mobilenetv2 import InvertedResidual

HEART = LabelScheme(("background", "RV", "MYO", "LV"))


def make_hard(student: torch.nn.Module, decades: float = 1.5) -> None:
    """Depthwise channels scaled by powers of ten, undone in the pointwise convolution behind them: the same function
    (ReLU lets positive factors through), but one activation scale a tensor no longer fits."""
    rng = np.random.default_rng(0)
    for block in student.modules():
        if isinstance(block, InvertedResidual):
            norm, project = block.body[-2][1], block.body[-1][0]
            scale = torch.tensor(10 ** rng.uniform(-decades, decades, norm.num_features), dtype=torch.float32)
            norm.weight.data *= scale
            norm.bias.data *= scale
            project.weight.data /= scale[None, :, None, None]


@pytest.fixture(scope="module")
def hard_run(tmp_path_factory) -> Run:
    data = write_acdc(dataset(HEART), tmp_path_factory.mktemp("data of hearts"))
    recipe = Recipe(data=(f"acdc:{data}",), teacher="none", size=(32, 32), spacing=(1.5, 1.25), width_mult=0.5,
                    expansion=2, epochs=8, batch_size=4, validate_every=8, kd_weight=0.0, learning_rate=1e-2,
                    precision="32-true")
    run = distill(recipe, tmp_path_factory.mktemp("runs") / "hard", say=str)
    student = run.student()
    make_hard(student)
    save_file(student.state_dict(), run.folder / "student.safetensors")
    return run


@pytest.fixture(scope="module")
def frames(hard_run) -> np.ndarray:
    return np.stack([f.window for f in draw_frames(hard_run.dataset().select("train"), hard_run.preprocessing, 8, 0)])


@pytest.fixture(scope="module")
def tuned(hard_run, frames) -> torch.nn.Module:
    return fine_tune(hard_run, frames, 20, str)


def dev_dice(run: Run, net) -> float:
    rows = [dice_per_class(run.preprocessing.segment(case.frames, case.spacing, net),
                           dev_truth(case, run.scheme, run.preprocessing, None), 4)
            for case in run.dataset().select("dev")]
    return float(np.mean(rows))


def simulated_dice(run: Run, student: torch.nn.Module, frames: np.ndarray) -> float:
    with simulated_int8(student, frames):
        return dev_dice(run, lambda x: torch_logits(student, x))


def int8_network(student: torch.nn.Module, frames: np.ndarray, folder: Path):
    """The ordinary route: BatchNorm folded, ONNX, post-training quantisation, ONNX Runtime."""
    write_onnx(fold_batch_norm(student), (1, *frames.shape[1:]), folder / "model.onnx")
    quantise_rung("post-training", "onnxruntime", folder / "model.onnx", folder / "int8.onnx", frames, None)
    net = load_backend("onnxruntime", folder / "int8.onnx", threads=1)
    return lambda x: np.concatenate([net(one[None]) for one in x])


def test_a_few_steps_win_back_dice_in_the_simulation_and_in_the_exported_int8(hard_run, frames, tuned, tmp_path):
    student = hard_run.student()
    fp32 = dev_dice(hard_run, lambda x: torch_logits(student, x))
    before, after = (simulated_dice(hard_run, s, frames) for s in (student, tuned))
    assert fp32 - before > 0.1  # hard to quantise
    assert after - before > 0.05
    files = [int8_network(s, frames, Path(tempfile.mkdtemp(dir=tmp_path))) for s in (student, tuned)]
    exported = [dev_dice(hard_run, net) for net in files]
    assert exported[1] - exported[0] > 0.05
    # the simulation is about what was exported: nearer to it than FP32 is
    windows = frames[:4]
    real, plain = files[0](windows), torch_logits(student, windows)
    with simulated_int8(student, frames):
        found = torch_logits(student, windows)
    assert np.mean((found - real) ** 2) < 0.5 * np.mean((plain - real) ** 2)


def test_what_comes_back_is_an_ordinary_student(hard_run, frames, tuned):
    student = hard_run.student()
    assert list(tuned.state_dict()) == list(student.state_dict())
    assert not tuned.training
    changed = [k for k, v in tuned.state_dict().items() if not torch.equal(v, student.state_dict()[k])]
    assert changed
    assert not [k for k in changed if "running" in k or "num_batches" in k]  # statistics are those of the run
    student.load_state_dict(tuned.state_dict())
    np.testing.assert_array_equal(torch_logits(student, frames[:2]), torch_logits(tuned, frames[:2]))  # no simulation
    assert not any("forward" in vars(m) or m._forward_pre_hooks for m in tuned.modules())


def test_the_run_is_left_as_it_was_and_no_image_stays_behind(hard_run, frames, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = {p.name: p.read_bytes() for p in hard_run.folder.iterdir()}
    said: list[str] = []
    fine_tune(hard_run, frames, 1, said.append)
    assert {p.name: p.read_bytes() for p in hard_run.folder.iterdir()} == before
    assert not list(tmp_path.iterdir())
    assert "simulated INT8: dev Dice" in said[-1]


def test_the_same_run_and_frames_give_the_same_weights(hard_run, frames):
    one, two = (fine_tune(hard_run, frames, 4, str).state_dict() for _ in range(2))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_the_teacher_of_the_run_is_distilled_again(hard_run, frames, tmp_path):
    teacher = nnunet_folders.model_folder(tmp_path / "teacher", patch=(32, 32), spacing=(1.5, 1.25))
    recipe = replace(Recipe().changed(hard_run.recipe), teacher=f"nnunet:{teacher}", kd_weight=1.0)

    def loss(run: Run) -> float:
        said: list[str] = []
        fine_tune(run, frames, 2, said.append)
        return next(float(line.split("loss")[1].split()[0]) for line in said if line.startswith("epoch"))

    assert loss(replace(hard_run, recipe=asdict(recipe))) > 2 * loss(hard_run)  # a teacher with random weights


def test_a_simulation_that_is_left_leaves_the_student_as_it_was(hard_run, frames):
    student = hard_run.student()
    before = torch_logits(student, frames[:2])
    with simulated_int8(student, frames):
        assert np.abs(torch_logits(student, frames[:2]) - before).max() > 0
    np.testing.assert_array_equal(torch_logits(student, frames[:2]), before)


def test_ranges_follow_the_weights_when_training_gives_way_to_evaluation(hard_run, frames):
    """A stem ten times as large saturates in the old ranges, and does not in those found anew."""
    student, x = hard_run.student(), torch.from_numpy(frames[:1])
    with simulated_int8(student, frames), torch.no_grad():
        before = student(x)
        student.stem[1].weight *= 10
        student.stem[1].bias *= 10
        kept = student(x)
        student.train()(x)
        found = student.eval()(x)
    plain = hard_run.student()
    plain.stem[1].weight.data *= 10
    plain.stem[1].bias.data *= 10
    wanted = torch_logits(plain, frames[:1])
    assert np.mean((found.numpy() - wanted) ** 2) < np.mean((kept.numpy() - wanted) ** 2)
    assert not torch.equal(before, found)


def test_only_as_many_training_cases_are_prepared_as_the_steps_need(hard_run):
    data = hard_run.dataset()
    some, slices = enough(data, 3, seed=0)
    assert slices == 4
    assert len(some.select("train")) == 2
    assert some.select("dev").refs == data.select("dev").refs
    assert enough(data, 10_000, seed=0)[0].refs == data.refs
