"""Reading nnU-Net v2 model folders: what is accepted, what is refused and how."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from nnunet_folders import (
    edit_checkpoint,
    edit_json,
    model_folder,
    organ_folder,
    region_folder,
    volume_folder,
    with_old_plans,
)

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation
from edgeseg.teachers import open_teacher

FINAL = "checkpoint_final.pth"


@pytest.fixture
def folder(tmp_path):
    return model_folder(tmp_path / "a model", folds=(0, 1))


def refused(folder, match, **options):
    """Opening fails with one line that names the folder, and changes nothing in it."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(EdgesegError, match=match) as caught:
        open_teacher(f"nnunet:{folder}", **options)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_names_values_channels_and_grid_come_from_the_folder(tmp_path):
    teacher = open_teacher(f"nnunet:{organ_folder(tmp_path / 'organs')}")
    names = ("background", "liver", "spleen", "left kidney", "right kidney", "pancreas")
    assert teacher.scheme == LabelScheme(names, (0, 1, 2, 3, 4, 5))
    assert teacher.channels == ("CT", "T1")
    assert (teacher.ignore, teacher.is_3d, teacher.name) == (None, False, "Dataset900_Tiny")
    grid = teacher.preprocessing
    assert (grid.size, grid.spacing, teacher.stride) == ((32, 40), (1.5, 1.25), (8, 8))
    assert grid.channels == (Normalisation("ct", mean=90, std=40, low=-50, high=210), Normalisation("zscore"))


def test_labels_are_ordered_by_value_not_by_place_in_the_file(tmp_path):
    folder = model_folder(tmp_path / "m", {"LVC": 3, "background": 0, "MLV": 2, "RV": 1})
    assert open_teacher(f"nnunet:{folder}").scheme.names == ("background", "RV", "MYO", "LV")


def test_regions_come_in_painting_order_and_ignore_has_no_class(tmp_path):
    teacher = open_teacher(f"nnunet:{region_folder(tmp_path / 'm')}")
    assert teacher.scheme == LabelScheme(("background", "whole", "core", "enhancing"), (0, 1, 2, 3))
    assert teacher.ignore == 4
    assert teacher.network()(torch.zeros(teacher.input_shape)).shape == (1, 3, 32, 40)


def test_residual_encoder_and_3d_fullres_are_read(tmp_path):
    residual = open_teacher(f"nnunet:{model_folder(tmp_path / 'residual', residual=True)}")
    assert residual.provenance["network"] == "ResidualEncoderUNet"
    volume = open_teacher(f"nnunet:{volume_folder(tmp_path / 'volume')}")
    assert volume.is_3d
    assert (volume.preprocessing.size, volume.preprocessing.spacing) == ((32, 24), (1.5, 1.25))
    with pytest.raises(EdgesegError, match="no 2D outputs"):
        volume.logits(torch.zeros(1, 1, 32, 24))


def test_plans_of_the_first_v2_releases_give_the_same_network(folder):
    x = torch.randn(1, 1, 32, 40)
    new = open_teacher(f"nnunet:{folder}", bf16=False).logits(x)
    old = open_teacher(f"nnunet:{with_old_plans(folder)}", bf16=False).logits(x)
    assert all(torch.equal(a, b) for a, b in zip(new, old, strict=True))


@pytest.mark.parametrize("scheme", ["NoNormalization", "RescaleTo01Normalization", "RGBTo01Normalization"])
def test_other_normalisations_are_mapped(tmp_path, scheme):
    teacher = open_teacher(f"nnunet:{model_folder(tmp_path / 'm', normalisation=(scheme,))}")
    kind = {"N": "none", "Re": "rescale", "RG": "rgb"}
    expected = next(value for key, value in kind.items() if scheme.startswith(key))
    assert teacher.preprocessing.channels == (Normalisation(expected),)


def test_mask_is_kept_for_zscore(folder):
    edit_json(folder / "plans.json", lambda plans: plans["configurations"]["2d"].update(use_mask_for_norm=[True]))
    assert open_teacher(f"nnunet:{folder}").preprocessing.channels == (Normalisation("zscore", masked=True),)


def test_folds_are_all_there_are_or_those_asked_for(folder):
    shutil.copytree(folder / "fold_0", folder / "fold_all")
    (folder / "fold_7").mkdir()  # a training that has not written a checkpoint yet
    both, one = open_teacher(f"nnunet:{folder}"), open_teacher(f"nnunet:{folder}", folds=(1,))
    assert both.provenance["folds"] == [0, 1]
    assert one.provenance["folds"] == [1]
    assert list(one.provenance["sha256"]) == [f"fold_1/{FINAL}"]
    refused(folder, r"fold_7.*checkpoint_final.pth or checkpoint_best.pth.*exist: 0, 1, all", folds=(0, 7))


def test_fold_all_is_read_when_it_is_alone(folder):
    shutil.rmtree(folder / "fold_1")
    (folder / "fold_0").rename(folder / "fold_all")
    assert open_teacher(f"nnunet:{folder}").provenance["folds"] == ["all"]


def test_best_checkpoint_is_read_when_there_is_no_final_one(folder):
    (folder / "fold_1" / FINAL).rename(folder / "fold_1" / "checkpoint_best.pth")
    checkpoints = open_teacher(f"nnunet:{folder}").provenance["sha256"]
    assert list(checkpoints) == [f"fold_0/{FINAL}", "fold_1/checkpoint_best.pth"]


def test_prefixed_weights_are_the_same_network(folder):
    x = torch.randn(1, 1, 32, 40)
    plain = open_teacher(f"nnunet:{folder}", folds=(0,)).logits(x)

    def prefix(content):
        weights = content["network_weights"]
        content["network_weights"] = {f"module._orig_mod.{name}": tensor for name, tensor in weights.items()}

    edit_checkpoint(folder / "fold_0" / FINAL, prefix)
    assert torch.equal(plain[0], open_teacher(f"nnunet:{folder}", folds=(0,)).logits(x)[0])


def test_provenance_names_the_folder_but_no_path(folder):
    provenance = open_teacher(f"nnunet:{folder}").provenance
    assert provenance["folder"] == "a model"
    assert provenance["trainer"] == "nnUNetTrainer"
    assert provenance["parameters"] == sum(p.numel() for p in open_teacher(f"nnunet:{folder}").network().parameters())
    assert str(folder.parent) not in str(provenance)


def test_opening_prints_nothing(folder):
    """In a fresh interpreter: nnU-Net prints when it is imported, and this one has imported it already."""
    code = f"from edgeseg.teachers import open_teacher; open_teacher({f'nnunet:{with_old_plans(folder)}'!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_hostile_checkpoint_needs_trust(folder):
    marker = folder.parent / "ran"
    code = f"import os; os.mkdir({str(marker)!r})"

    class Payload:
        def __reduce__(self):
            return exec, (code,)

    edit_checkpoint(folder / "fold_0" / FINAL, lambda content: content.update(logging=Payload()))
    refused(folder, "exec.*--trust-checkpoint")
    assert not marker.exists()
    open_teacher(f"nnunet:{folder}", trust=True)
    assert marker.exists()


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_missing_and_broken_json_are_named(folder, name):
    (folder / name).write_text("{")
    refused(folder, f"{name}: not valid JSON")
    (folder / name).unlink()
    refused(folder, f"{name}: missing")


def test_missing_folder_fold_and_weights_are_named(folder):
    refused(folder / "nowhere", "no such nnU-Net model folder")
    edit_checkpoint(folder / "fold_1" / FINAL, lambda content: content.pop("network_weights"))
    refused(folder, "fold_1.*no network_weights")
    shutil.rmtree(folder / "fold_1")
    refused(folder, "fold_1.*exist: 0", folds=(0, 1))
    shutil.rmtree(folder / "fold_0")
    refused(folder, "nothing was trained here")


def test_the_folder_above_a_model_points_to_it(folder):
    refused(folder.parent, "name that folder")


def test_cascade_is_refused_by_name(folder):
    edit_json(folder / "plans.json", lambda plans: plans["configurations"]["2d"].update(previous_stage="3d_lowres"))
    refused(folder, "cascade.*3d_lowres")


@pytest.mark.parametrize(("entry", "value", "match"), [
    ("network_class_name", "subprocess.Popen", "subprocess.Popen is not one that edgeseg reads"),
    ("network_class_name", "dynamic_network_architectures.architectures.primus.Primus", "Primus is not one"),
    ("conv_op", "os.system", "conv_op names os.system"),
])
def test_plans_cannot_name_code_outside_the_known_networks(folder, entry, value, match):
    def change(plans):
        architecture = plans["configurations"]["2d"]["architecture"]
        (architecture if entry in architecture else architecture["arch_kwargs"])[entry] = value

    edit_json(folder / "plans.json", change)
    refused(folder, match, trust=True)


def test_configuration_must_be_the_trained_one(folder):
    assert open_teacher(f"nnunet:{folder}", configuration="2d").provenance["configuration"] == "2d"
    refused(folder, "trained as '2d', not '3d_fullres'", configuration="3d_fullres")
    edit_json(folder / "plans.json", lambda plans: plans["configurations"].update(other={}) or
              plans["configurations"].pop("2d"))
    refused(folder, "no configuration '2d', only other")


def test_checkpoint_that_does_not_say_its_configuration_takes_the_given_one(folder):
    for fold in (0, 1):
        edit_checkpoint(folder / f"fold_{fold}" / FINAL, lambda content: content.pop("init_args"))
    refused(folder, "name it")
    assert open_teacher(f"nnunet:{folder}", configuration="2d").provenance["configuration"] == "2d"


def test_weights_of_another_network_are_refused(folder, tmp_path):
    other = model_folder(tmp_path / "wider", features=(4, 8, 16, 16))
    shutil.copy(other / "fold_0" / FINAL, folder / "fold_1" / FINAL)
    refused(folder, "fold_1.*do not fit")


def test_plans_that_lack_an_entry_are_named(folder):
    edit_json(folder / "plans.json", lambda plans: plans["configurations"]["2d"]["architecture"].pop("arch_kwargs"))
    refused(folder, "plans.json: the entry 'arch_kwargs' is missing")


@pytest.mark.parametrize(("change", "match"), [
    (lambda plans: plans["configurations"]["2d"].pop("normalization_schemes"), "'normalization_schemes' is missing"),
    (lambda plans: plans["configurations"]["2d"].update(normalization_schemes=["CTNormalization"]), "'mean' is miss"),
    (lambda plans: plans["configurations"]["2d"].update(normalization_schemes=["MyNormalization"]), "MyNormalization"),
])
def test_normalisation_that_cannot_be_mapped_is_named(folder, change, match):
    edit_json(folder / "plans.json", change)
    teacher = open_teacher(f"nnunet:{folder}")
    with pytest.raises(EdgesegError, match=f"plans.json: .*{match}"):
        _ = teacher.preprocessing


def test_labels_that_nnunet_could_not_have_trained_are_refused(folder):
    edit_json(folder / "dataset.json", lambda dataset: dataset["labels"].update(LVC=5))
    refused(folder, re.escape("must be 0, 1, 2, ... as nnU-Net demands, found [0, 1, 2, 5]"))


def test_slices_across_another_axis_are_refused_for_2d_but_not_for_3d(folder, tmp_path):
    turn = {"transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0]}
    edit_json(folder / "plans.json", lambda plans: plans.update(turn))
    with pytest.raises(EdgesegError, match="across axis 2"):
        _ = open_teacher(f"nnunet:{folder}").preprocessing
    volume = volume_folder(tmp_path / "volume")
    edit_json(volume / "plans.json", lambda plans: plans.update(turn))
    grid = open_teacher(f"nnunet:{volume}").preprocessing  # plans are in order x, z, y: 8 x 32 x 24, 4 x 1.5 x 1.25 mm
    assert (grid.size, grid.spacing) == ((24, 8), (1.25, 4.0))


@pytest.mark.parametrize("spec", ["nnunet:", "deeplab:x", "/a/folder", ""])
def test_unknown_specs_are_refused(spec):
    with pytest.raises(EdgesegError, match="write nnunet:MODEL_FOLDER"):
        open_teacher(spec)


def test_importing_the_package_imports_no_torch():
    code = "import edgeseg.teachers, sys; sys.exit('torch' in sys.modules or 'nnunetv2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_weights_are_not_shared_between_folds(folder):
    first, second = open_teacher(f"nnunet:{folder}", folds=(0,)), open_teacher(f"nnunet:{folder}", folds=(1,))
    x = torch.randn(1, 1, 32, 40)
    assert not np.allclose(first.logits(x)[0].numpy(), second.logits(x)[0].numpy(), atol=1e-2)
