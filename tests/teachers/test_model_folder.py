"""A network trained by edgeseg is a real nnU-Net v2 model folder."""

import contextlib
import io

import pytest
import torch
from nnunet_folders import CARDIAC

from edgeseg.errors import EdgesegError
from edgeseg.teachers import folder as folder_module
from edgeseg.teachers import open_teacher
from edgeseg.teachers.folder import make_dataset_json, make_plans, write_model_folder
from edgeseg.teachers.plans import build_network

DATASET = make_dataset_json(CARDIAC, ["cineMRI"], cases=5)
PLANS = make_plans("Dataset901_Phantom", (4, 8, 16), (32, 48), (1.5, 1.5))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_nnunets_own_predictor_and_our_reader_get_the_trained_network_back(tmp_path):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    network = build_network(PLANS, DATASET).eval()
    out = tmp_path / "a model"
    write_model_folder(out, network.state_dict(), DATASET, PLANS, fold=2, mirror_axes=(1,))
    with contextlib.redirect_stdout(io.StringIO()):
        predictor = nnUNetPredictor(device=torch.device("cpu"))
        predictor.initialize_from_trained_model_folder(str(out), None)
    assert predictor.allowed_mirroring_axes == (1,)
    assert predictor.trainer_name == "nnUNetTrainer"
    x = torch.randn(1, 1, 32, 48)
    with torch.no_grad():
        expected = network(x)
        torch.testing.assert_close(predictor.network.eval()(x), expected[0], rtol=0, atol=0)
    teacher = open_teacher(f"nnunet:{out}", bf16=False)
    assert teacher.provenance["folds"] == [2]
    assert [torch.equal(a, b) for a, b in zip(teacher.logits(x), expected[:-1], strict=True)] == [True]


def test_folds_join_one_folder_but_another_model_does_not(tmp_path):
    state = build_network(PLANS, DATASET).state_dict()
    for fold in (0, 1):
        write_model_folder(tmp_path, state, DATASET, PLANS, fold=fold)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset.json", "fold_0", "fold_1", "plans.json"]
    before = contents(tmp_path)
    other = make_plans("Dataset901_Phantom", (4, 8, 16), (64, 64), (1.5, 1.5))
    with pytest.raises(EdgesegError, match=r"plans.json: belongs to another model"):
        write_model_folder(tmp_path, state, DATASET, other, fold=3)
    assert contents(tmp_path) == before
    assert not (tmp_path / "fold_3").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    state = build_network(PLANS, DATASET).state_dict()
    write_model_folder(tmp_path, state, DATASET, PLANS)
    before = contents(tmp_path)

    def full_disk(content, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        folder_module.write_model_folder(tmp_path, state, DATASET, PLANS)
    assert contents(tmp_path) == before


def test_a_patch_that_cannot_be_halved_often_enough_is_refused():
    with pytest.raises(EdgesegError, match="cannot be halved 3 times"):
        make_plans("Dataset901_Phantom", (4, 8, 16, 16), (36, 40), (1.5, 1.5))
