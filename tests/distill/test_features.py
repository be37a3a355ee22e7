"""Distillation of features on small real networks: paths and hooks, heads that stay, memory, and whole runs."""

import copy
import signal
from dataclasses import replace
from pathlib import Path

import nnunet_folders
import numpy as np
import pytest
import torch
from disks import dataset
from safetensors.torch import load_file
from torch import nn

from edgeseg.distill.features import FeatureLosses, watching, without_padding
from edgeseg.distill.module import Distiller, at_student_spacing, feature_losses, teacher_grid
from edgeseg.distill.progress import EpochReport
from edgeseg.distill.recipe import FeaturePair, Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.train import distill, student_grid
from edgeseg.errors import EdgesegError, Interrupted
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.phantoms.write import write_acdc
from edgeseg.preprocess import Preprocessing
from edgeseg.students.mobilenetv2 import MobileNetV2Spec, MobileNetV2UNet
from edgeseg.teachers import open_teacher

HEART = LabelScheme(("background", "RV", "MYO", "LV"))
PAIRS = (FeaturePair("encoder", "encoder.stages.1", "stages.1", "supervised"),
         FeaturePair("bottleneck", "encoder.stages.3", "stages.3", "instance"),
         FeaturePair("decoder", "decoder.stages.2", "decoder.0", "mse"))


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    return write_acdc(dataset(HEART), tmp_path_factory.mktemp("hearts"))


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory) -> Path:
    return nnunet_folders.model_folder(tmp_path_factory.mktemp("teacher"), patch=(32, 32), spacing=(1.5, 1.25))


@pytest.fixture(scope="module")
def teacher(teacher_folder):
    return open_teacher(f"nnunet:{teacher_folder}", bf16=False)


@pytest.fixture(autouse=True)
def without_teacher_onnx(monkeypatch):
    """Writing teacher.onnx takes most of a tiny run."""
    monkeypatch.setattr("edgeseg.teachers.export.teacher_onnx", lambda *arguments: None)


def small(data: Path, teacher: Path, **changes) -> Recipe:
    base = Recipe(data=(f"acdc:{data}",), teacher=f"nnunet:{teacher}", size=(32, 32), spacing=(1.5, 1.25),
                  width_mult=0.5, expansion=2, epochs=2, batch_size=4, validate_every=1, precision="32-true",
                  features=PAIRS)
    return replace(base, **changes)


def mobile(seed: int = 0) -> MobileNetV2UNet:
    torch.manual_seed(seed)
    return MobileNetV2UNet(MobileNetV2Spec(width_mult=0.5, expansion=2)).train()


def of_grid(student: nn.Module, teacher, size=(32, 32), spacing=(1.5, 1.25), pairs=PAIRS) -> FeatureLosses:
    logits = at_student_spacing(teacher, size, spacing)
    return feature_losses(Recipe(features=pairs), student, teacher, logits, Preprocessing(size, spacing))


def step(features: FeatureLosses, student: nn.Module, logits, image: torch.Tensor, labels: torch.Tensor
         ) -> torch.Tensor:
    with features.watch() as maps:
        student(image)
        logits(image)
    return features(maps, labels, torch.Generator().manual_seed(0))


def classes(batch: int, size: tuple[int, int]) -> torch.Tensor:
    found = torch.zeros(batch, *size, dtype=torch.uint8)
    found[:, 4:20, 6:24] = 1
    found[:, 10:14, 10:18] = 2
    return found


# ---- whole runs

def test_heads_are_trained_and_stay_in_the_checkpoint_and_the_optimiser_but_not_in_the_student(hearts, teacher_folder,
                                                                                               tmp_path):
    recipe = small(hearts, teacher_folder, kd_weight=0.0)
    said: list[str] = []
    run = distill(recipe, tmp_path / "run", say=said.append)
    assert set(load_file(run.folder / "student.safetensors")) == set(run.student().state_dict())
    kept = torch.load(run.folder / "last.ckpt", weights_only=True)
    heads = {k.removeprefix("features."): v for k, v in kept["state_dict"].items() if k.startswith("features.")}
    assert len(heads) == 2 * 5  # weight and bias: two heads for each InfoNCE, the student's alone for MSE
    fresh = of_grid(run.student(), open_teacher(f"nnunet:{teacher_folder}")).state_dict()
    assert set(fresh) == set(heads)
    assert all(not torch.equal(fresh[k], heads[k]) for k in heads)
    moments = sum(len(group["params"]) for group in kept["optimizer_states"][0]["param_groups"])
    assert moments == len(list(run.student().parameters())) + len(heads)
    assert not any("teacher" in k and "heads" not in k for k in kept["state_dict"])
    lines = "\n".join(said)
    assert ("encoder: supervised x 0.1, teacher encoder.stages.1 (8 x 16 x 16), student stages.1 (16 x 8 x 8), at 8 x 8"
            in lines)


def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one(hearts, teacher_folder, tmp_path, monkeypatch):
    recipe = small(hearts, teacher_folder, epochs=3, ema=0.9)
    whole = distill(recipe, tmp_path / "whole", say=str)
    ended = EpochReport.on_train_epoch_end

    def press(report, trainer, module):
        ended(report, trainer, module)
        if trainer.current_epoch == 1:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(EpochReport, "on_train_epoch_end", press)
        try:
            with pytest.raises(Interrupted):
                distill(recipe, tmp_path / "cut", say=str)
        finally:
            signal.signal(signal.SIGINT, handler)
    resumed = distill(recipe, tmp_path / "cut", resume=True, say=str)
    assert [r["loss"] for r in resumed.metrics["history"]] == [r["loss"] for r in whole.metrics["history"]]
    states = [torch.load(run.folder / "last.ckpt", weights_only=True)["state_dict"] for run in (whole, resumed)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_one_forward_of_the_teacher_a_step_gives_logits_and_features(hearts, teacher_folder, tmp_path, monkeypatch):
    images: list[int] = []
    opened = open_teacher

    def counting(*arguments, **options):
        found = opened(*arguments, **options)
        found.running.register_forward_hook(lambda _m, inputs, _o: images.append(len(inputs[0])))
        return found

    monkeypatch.setattr("edgeseg.teachers.open_teacher", counting)
    distill(small(hearts, teacher_folder, epochs=1), tmp_path / "run", say=str)
    assert images == [2, 4, 4, 4, 4]  # the trial, then 16 slices in batches of four


def test_a_fraction_of_the_training_patients_is_what_the_run_names(hearts, teacher_folder, tmp_path):
    run = distill(small(hearts, teacher_folder, features=(), fraction=0.5, epochs=1), tmp_path / "run", say=str)
    used = Run.open(run.folder).data["splits"]
    assert [len(used[s]) for s in ("train", "dev", "val")] == [2, 1, 1]
    assert list(run.dataset().select("train").patients()) == used["train"]


# ---- terms

def test_every_term_moves_the_student_and_the_heads_and_never_the_teacher(teacher):
    student, image = mobile(), torch.randn(3, 1, 32, 32)
    before = copy.deepcopy(teacher.running.state_dict())
    for pair in PAIRS:
        features = of_grid(student, teacher, pairs=(pair,))
        student.zero_grad()
        loss = step(features, student, teacher.logits, image, classes(3, (32, 32)))
        loss.backward()
        assert float(loss.detach()) > 0
        module = student.get_submodule(pair.student)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters()), pair
        assert all(p.grad.abs().sum() > 0 for n, p in features.named_parameters() if n.endswith("weight"))
    assert all(torch.equal(before[k], v) for k, v in teacher.running.state_dict().items())


def test_training_on_the_terms_lowers_each_of_them(teacher):
    labels = classes(4, (32, 32))
    image = labels[:, None] + 0.5 * torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for pair in PAIRS:
        student = mobile()
        features = of_grid(student, teacher, pairs=(pair,))
        optimiser = torch.optim.AdamW([*student.parameters(), *features.parameters()], 3e-3)
        losses = []
        for _ in range(12):
            loss = step(features, student, teacher.logits, image, labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < 0.8 * losses[0], (pair, losses)


@pytest.mark.parametrize("value", [0, 2, IGNORE])
def test_labels_of_one_class_or_none_give_a_finite_term_without_gradient(teacher, value):
    student = mobile()
    features = of_grid(student, teacher, pairs=PAIRS[:1])
    loss = step(features, student, teacher.logits, torch.randn(2, 1, 32, 32),
                torch.full((2, 32, 32), value, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(float(p.grad.abs().sum()) == 0 for p in features.parameters())


def test_a_short_last_batch_of_one_image_works(teacher):
    student = mobile().eval()  # BatchNorm at 1 x 1 cannot train on one image, with or without features
    features = of_grid(student, teacher)
    with features.watch() as maps:
        student(torch.randn(1, 1, 32, 32))
        teacher.logits(torch.randn(1, 1, 32, 32))
    assert torch.isfinite(features(maps, classes(1, (32, 32)), torch.Generator().manual_seed(0)))


def test_a_dead_map_has_a_finite_gradient(teacher):
    student = mobile()
    features = of_grid(student, teacher)
    with features.watch() as maps:
        student(torch.randn(2, 1, 32, 32))
        teacher.logits(torch.randn(2, 1, 32, 32))
    dead = {k: torch.zeros_like(v).requires_grad_() for k, v in maps[0].items()}
    features((dead, {k: torch.zeros_like(first(v)) for k, v in maps[1].items()}), classes(2, (32, 32)),
             torch.Generator().manual_seed(0)).backward()
    assert all(torch.isfinite(v.grad).all() and v.grad.abs().max() < 100 for v in dead.values())


def first(x):
    return x[0] if isinstance(x, list) else x


@pytest.mark.parametrize(("kind", "bound"), [
    ("supervised", 6 * 2**20 + 2048 * (24 + 40)),
    ("instance", 2 * (256 * (24 + 40) + 96 * 1024)),
    ("mse", 2 * 1024 * (16 * 24 + 32 * 40)),
])
def test_what_a_term_keeps_for_its_gradient_is_bounded_whatever_the_image_size(kind, bound):
    one, other = nn.Conv2d(1, 24, 1), nn.Conv2d(1, 40, 1)
    networks = nn.Sequential(one), nn.Sequential(other)
    kept = []
    for side in (96, 384):
        image = torch.randn(2, 1, side, side)
        features = FeatureLosses([FeaturePair("x", "0", "0", kind)], *networks, networks[1], image)
        labels = torch.randint(0, 3, (2, side, side), dtype=torch.uint8)
        with features.watch() as maps:
            networks[0](image)
            networks[1](image)
        whole = {t.untyped_storage().data_ptr() for m in maps for t in m.values()}
        saved: dict[int, int] = {}

        def pack(t: torch.Tensor, whole=whole, saved=saved) -> torch.Tensor:
            storage = t.untyped_storage()
            if storage.data_ptr() not in whole and not isinstance(t, nn.Parameter):
                saved[storage.data_ptr()] = storage.nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = features(maps, labels, torch.Generator().manual_seed(0))
        assert torch.isfinite(loss)
        kept.append(sum(saved.values()))
    assert kept[0] == kept[1]
    assert 0 < kept[0] <= bound


# ---- grids

def test_features_of_a_teacher_on_another_grid_show_the_same_part_of_the_image(teacher):
    """The patch at twice the teacher's resolution, and of a size that needs padding: what is compared is what the
    teacher gives for the image alone."""
    pairs = (FeaturePair("encoder", "encoder.stages.1", "stages.1", "mse"),)
    size, spacing = (80, 64), (0.75, 0.625)
    assert teacher_grid(teacher, size, spacing) == ((40, 32), (40, 32))
    assert teacher_grid(teacher, (72, 64), spacing) == ((36, 32), (40, 32))
    student = mobile()
    features = of_grid(student, teacher, (96, 64), spacing, pairs)
    image = torch.nn.functional.interpolate(torch.randn(2, 1, 6, 4), (48, 32), mode="bicubic")
    with features.watch() as maps:
        at_student_spacing(teacher, (96, 64), spacing)(image.repeat_interleave(2, 2).repeat_interleave(2, 3))
    with watching(teacher.running, ["encoder.stages.1"], "teacher") as wanted:
        teacher.logits(image)
    np.testing.assert_allclose(maps[1]["encoder.stages.1"].numpy(), wanted["encoder.stages.1"].numpy(), atol=1e-4)


def test_the_padding_of_the_teachers_input_is_cut_off_its_maps():
    rows = torch.arange(8.0)[None, None, :, None].expand(2, 3, 8, 6)  # a ramp along the rows
    assert without_padding(rows, (1.0, 1.0)) is rows
    half = without_padding(rows, (0.5, 1.0))
    torch.testing.assert_close(half, rows[:, :, :4])
    # 0.7 of 8 rows are 5.6: six cells of 5.6 / 6 rows each
    part = without_padding(rows, (0.7, 1.0))
    torch.testing.assert_close(part[0, 0, :, 0], ((torch.arange(6.0) + 0.5) * 5.6 / 6 - 0.5).clamp_min(0))


def test_a_grid_that_needs_padding_distils(teacher):
    student, size, spacing = mobile(), (32, 64), (1.7, 1.25)
    features = of_grid(student, teacher, size, spacing)
    assert features.covered == (36 / 40, 1.0)
    loss = step(features, student, at_student_spacing(teacher, size, spacing), torch.randn(2, 1, *size),
                classes(2, size))
    assert torch.isfinite(loss)
    assert loss > 0


# ---- nothing is left behind

def test_trying_the_modules_changes_neither_student_nor_random_state_and_leaves_no_hook(teacher):
    student = mobile()
    before, state = copy.deepcopy(student.state_dict()), torch.get_rng_state()
    features = of_grid(student, teacher)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[k], v) for k, v in student.state_dict().items())
    step(features, student, teacher.logits, torch.randn(2, 1, 32, 32), classes(2, (32, 32)))
    assert not any(m._forward_hooks for network in (student, teacher.running) for m in network.modules())
    assert all(k.startswith("heads.") for k in features.state_dict())


# ---- refusals

@pytest.mark.parametrize(("changes", "message"), [
    ({"teacher": "encoder.stage.1"}, r"the teacher has no module 'encoder.stage.1': did you mean .*encoder.stages.1\b"),
    ({"student": "stagess.2"}, r"the student has no module 'stagess.2': did you mean .*stages.2\b"),
    ({"student": "zzz"}, "did you mean .*stages.*, decoder"),
    ({"student": "heads"}, "'heads' does not run"),
])
def test_a_module_that_is_not_there_is_one_line_with_near_ones_and_leaves_no_run(hearts, teacher_folder, tmp_path,
                                                                                 changes, message):
    recipe = small(hearts, teacher_folder, features=(replace(PAIRS[0], **changes),))
    with pytest.raises(EdgesegError, match=message) as error:
        distill(recipe, tmp_path / "run", say=str)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_maps_far_apart_in_size_are_refused_with_both_shapes():
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(8), nn.Conv2d(3, 2, 1))

    student, large = network(), network()
    FeatureLosses([FeaturePair("encoder", "0", "0", "mse")], student, large, large, torch.zeros(2, 1, 64, 64))
    with pytest.raises(EdgesegError, match=r"the student's '1' gives 8 x 8, the teacher's '0' 64 x 64"):
        FeatureLosses([FeaturePair("encoder", "0", "1", "mse")], student, large, large, torch.zeros(2, 1, 64, 64))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_map_that_the_next_module_overwrites_is_refused(inplace):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace))
    with torch.no_grad():
        if inplace:
            with pytest.raises(EdgesegError, match=r"teacher's module '1' gives .* changes in place"), \
                    watching(network, ["1"], "teacher"):
                network(torch.randn(2, 1, 8, 8))
        else:
            with watching(network, ["1"], "teacher") as seen:
                network(torch.randn(2, 1, 8, 8))
            assert seen["1"].min() < 0
    assert not any(m._forward_hooks for m in network.modules())


def test_a_module_that_gives_no_map_is_refused():
    maps, flat = nn.Sequential(nn.Conv2d(1, 4, 3)), nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())
    with pytest.raises(EdgesegError, match=r"teacher's module '1' gives a tensor \[2, 144\], not a map \[B, C, h, w\]"):
        FeatureLosses([FeaturePair("x", "1", "0", "mse")], maps, flat, flat, torch.zeros(2, 1, 8, 8))


def test_a_teacher_without_a_network_on_patches_has_no_features(hearts, tmp_path):
    volume = nnunet_folders.volume_folder(tmp_path / "teacher")
    with pytest.raises(EdgesegError, match=r"on each patch.* name a 2D teacher"):
        distill(small(hearts, volume), tmp_path / "run", say=str)


@pytest.mark.parametrize(("text", "message"), [
    ("scale = 'e'\nteacher = 'a'\nstudent = 'b'\nkind = 'cosine'", r"features.0.kind = 'cosine'.*'instance' or 'mse'"),
    ("scale = 'e'\nteacher = 'a'\nkind = 'mse'", r"features.0.student"),
    ("scale = 'e'\nteacher = 'a'\nstudent = 'b'\nkind = 'mse'\nwieght = 1.0", "features.0.wieght"),
    ("scale = 'e'\nteacher = ''\nstudent = 'b'\nkind = 'mse'", "none of them empty"),
    ("scale = 'e'\nteacher = 'a'\nstudent = 'b'\nkind = 'mse'\nweight = 0.0", "e: weight and tau must be positive"),
    ("scale = 'e'\nteacher = 'a'\nstudent = 'b'\nkind = 'instance'\ntau = -1.0", "weight and tau must be positive"),
])
def test_a_bad_table_of_features_is_one_line(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(f"teacher = 'nnunet:x'\n[[features]]\n{text}\n")
    with pytest.raises(EdgesegError, match=message) as error:
        Recipe.load(tmp_path / "r.toml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("changes", "message"), [
    ({"features": (PAIRS[0], PAIRS[0])}, "two .*features.* tables are called 'encoder'"),
    ({"features": PAIRS, "teacher": "none", "kd_weight": 0.0}, "are a teacher's: name one"),
    ({"features": PAIRS, "student": "convlstm"}, "a convlstm student reads clips"),
    ({"features": PAIRS, "targets": "stored"}, "set targets = 'network'"),
    ({"fraction": 0.0}, "fraction is a share of the training patients"),
    ({"fraction": 1.5}, "fraction is a share of the training patients"),
    ({"hu_window": (240.0, -160.0)}, r"hu_window is the lowest and the highest HU, such as \[-160, 240\]"),
    ({"hu_window": (240.0,)}, "hu_window is the lowest"),
])
def test_a_recipe_that_cannot_be_is_refused(changes, message):
    with pytest.raises(EdgesegError, match=message):
        Recipe(**{"teacher": "nnunet:x", **changes})


def test_a_recipe_with_features_reads_back_equal(tmp_path):
    recipe = Recipe(teacher="nnunet:x", spec={"widths": [8, 8]}, student="unet", loss="prediction_map", fraction=0.5,
                    hu_window=(-160, 240), features=(*PAIRS[:2], replace(PAIRS[2], weight=0.25, tau=0.4)))
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "r.toml") == recipe


# ---- the window, the loss at one scale

def test_the_window_of_ct_is_the_students_normalisation_unless_a_teacher_has_another(teacher):
    from edgeseg.preprocess import ct_window

    recipe = Recipe(teacher="none", kd_weight=0.0, hu_window=(-160, 240))
    assert student_grid(recipe, None, 8, 2).channels == (ct_window(-160, 240),) * 2
    with pytest.raises(EdgesegError, match=r"hu_window -160..240: .* normalisation of Dataset900_Tiny"):
        student_grid(recipe, teacher, 8, 1)


def test_prediction_map_teaches_at_full_resolution_alone_and_its_labels_are_those_of_the_layerwise_loss():
    from edgeseg.losses.layerwise_kl import layerwise_kl, nnunet_hard_loss
    from edgeseg.losses.prediction_map import prediction_map

    g, w = torch.Generator().manual_seed(0), 0.3
    outputs = [torch.randn(2, 4, n, n, generator=g) for n in (16, 8, 4, 2)]
    said = [torch.randn(2, 4, n, n, generator=g) for n in (16, 8)]
    labels = torch.randint(0, 4, (2, 16, 16), generator=g, dtype=torch.uint8)
    hard = layerwise_kl(outputs, None, labels, nnunet_hard_loss(), 0, 1)
    recipe = Recipe(loss="prediction_map", kd_weight=w, temperature=4, t_squared=True)
    data = dataset(HEART)
    module = Distiller(mobile(), recipe, None, data, HEART, Preprocessing((16, 16), (1, 1)), Path(), lambda _: said)
    found = module.loss_of(outputs, torch.zeros(2, 1, 16, 16), {"labels": labels})
    torch.testing.assert_close(found, (1 - w) * hard + w * prediction_map(said[0], outputs[0], 4.0))
