"""DeepLabv3: EchoNet-Dynamic's checkpoint layout, with or without DataParallel, its constants, its refusals."""

import clip_data
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from edgeseg.errors import EdgesegError
from edgeseg.teachers import open_teacher
from edgeseg.teachers.deeplabv3 import GREY, MEAN, STD, DeepLabV3, DeepLabV3Teacher


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return DeepLabV3().eval()


def checkpoint(path, network, prefix="module."):
    """As EchoNet-Dynamic's script saves it."""
    state = {prefix + k: v for k, v in network.model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "best_loss": 0.1, "loss": 0.2, "opt_dict": {}, "scheduler_dict": {}},
               path)
    return path


def test_it_has_the_parameters_of_deeplabv3_resnet50_with_one_output(network):
    assert sum(p.numel() for p in network.parameters()) == 39_633_729


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_a_published_checkpoint_is_read_with_and_without_the_prefix(tmp_path, network, prefix):
    teacher = open_teacher(f"deeplabv3:{checkpoint(tmp_path / 'best.pt', network, prefix)}", bf16=False)
    x = torch.randn(2, 1, 112, 112)
    with torch.no_grad():
        assert torch.equal(teacher.logits(x)[0], network(x))
    assert str(tmp_path) not in str(teacher.provenance)


def test_what_is_trained_here_is_read_as_safetensors(tmp_path, network):
    save_file(network.state_dict(), tmp_path / "deeplabv3.safetensors")
    teacher = DeepLabV3Teacher.open(tmp_path / "deeplabv3.safetensors", bf16=False)
    x = torch.randn(1, 1, 112, 112)
    with torch.no_grad():
        assert torch.equal(teacher.logits(x)[0], network(x))


def test_bfloat16_says_nearly_the_same(tmp_path, network):
    path = checkpoint(tmp_path / "best.pt", network)
    x = torch.randn(1, 1, 112, 112)
    exact, rounded = (DeepLabV3Teacher.open(path, bf16=b).logits(x)[0] for b in (False, True))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact[:, 1].std() + 0.05


def test_the_pipeline_is_the_published_one_on_raw_grey_frames(tmp_path, network):
    """Three equal channels, normalised by the published constants, sigmoid: computed here from its definition."""
    teacher = DeepLabV3Teacher.open(checkpoint(tmp_path / "best.pt", network), bf16=False)
    frames = np.random.default_rng(0).integers(0, 256, (3, 1, 112, 112)).astype(np.float32)
    rgb = (np.repeat(frames, 3, axis=1) - np.reshape(MEAN, (1, 3, 1, 1))) / np.reshape(STD, (1, 3, 1, 1))
    with torch.no_grad():
        wanted = network.model(torch.from_numpy(rgb.astype(np.float32)))["out"].sigmoid().numpy()[:, 0]
    case = clip_data.Case("a", "a", frames, (1.0, 1.0), "time")
    labels, p = teacher.predict(case)
    assert np.allclose(p[:, 1], wanted, atol=2e-4)
    assert np.allclose(p.sum(1), 1, atol=1e-6)
    assert np.array_equal(labels, (p[:, 1] > 0.5).astype(np.uint8))
    assert teacher.preprocessing.channels == (GREY,)


def test_frames_of_another_size_are_brought_to_112_and_back(tmp_path, network):
    teacher = DeepLabV3Teacher.open(checkpoint(tmp_path / "best.pt", network))
    frames = np.random.default_rng(0).uniform(0, 255, (2, 1, 90, 140))
    case = clip_data.Case("a", "a", frames, (0.5, 0.5), "time")
    labels, p = teacher.predict(case)
    assert labels.shape == (2, 90, 140)
    assert p.shape == (2, 2, 90, 140)


def two_outputs(path, network):
    state = dict(network.model.state_dict())
    state["classifier.4.weight"], state["classifier.4.bias"] = torch.zeros(2, 256, 1, 1), torch.zeros(2)
    torch.save({"state_dict": state}, path)


def other_network(path, network):
    torch.save({"state_dict": {"conv.weight": torch.zeros(3)}}, path)


def no_state(path, network):
    torch.save({"state_dict": 3}, path)


def truncated(path, network):
    checkpoint(path, network)
    path.write_bytes(path.read_bytes()[:100_000])


def a_program(path, network):
    import functools

    torch.save({"state_dict": functools.partial(print, "ran")}, path)


@pytest.mark.parametrize(("make", "said"), [
    (two_outputs, "2 outputs; this teacher has one"), (other_network, "not the weights of a deeplabv3"),
    (no_state, "holds no state_dict"), (truncated, "not a readable checkpoint"), (a_program, "could run code")])
def test_another_file_is_refused_in_one_line(tmp_path, network, make, said, capsys):
    make(tmp_path / "best.pt", network)
    with pytest.raises(EdgesegError, match=said) as error:
        DeepLabV3Teacher.open(tmp_path / "best.pt")
    assert "\n" not in str(error.value)
    assert "ran" not in capsys.readouterr().out
    with pytest.raises(EdgesegError, match="no such checkpoint"):
        DeepLabV3Teacher.open(tmp_path / "missing.pt")
