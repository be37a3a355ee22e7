"""The judge: open_clip models from a folder, without the network; and the one that is trained here."""

import json
import socket
from dataclasses import replace

import clip_data
import numpy as np
import pytest
import torch

from edgeseg.errors import EdgesegError
from edgeseg.teachers import judge_training
from edgeseg.teachers.judge import CONFIG, MASK_PROMPTS, VALVE_PROMPTS, WEIGHTS, Judge

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return judge_training.new_model().eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("with a space") / "tiny judge"
    judge_training.write_model(model, out)
    return out


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("something reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def judge(folder):
    return Judge.open(folder)


def test_similarities_are_cosines_of_open_clips_own_embeddings(judge, model):
    """Computed here from the definition: RGB pixels, the model's mean and deviation, the CLIP tokenizer."""
    import open_clip

    frames = RNG.integers(0, 256, (3, 112, 112, 3)).astype(np.uint8)
    mean, std = (np.array(judge_training.PREPROCESS[k], np.float32) for k in ("mean", "std"))
    x = torch.from_numpy(((frames / np.float32(255) - mean) / std).astype(np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        pictures = model.encode_image(x).numpy()
        words = model.encode_text(open_clip.SimpleTokenizer(context_length=16)(list(MASK_PROMPTS))).numpy()
    wanted = (pictures @ words.T) / np.outer(np.linalg.norm(pictures, axis=1), np.linalg.norm(words, axis=1))
    found = judge.of_masks(frames)
    assert found.shape == (3, 3)
    assert np.allclose(found, wanted, atol=1e-5)
    assert np.allclose(judge.similarities(frames, MASK_PROMPTS[::-1])[:, ::-1], found, atol=1e-6)
    assert judge.of_valve(frames).shape == (3, len(VALVE_PROMPTS))


def test_embeddings_have_length_one_whatever_the_number_of_frames(judge):
    frames = RNG.uniform(0, 255, (23, 112, 112))
    found = judge.embed_frames(frames)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert np.allclose(found[21:], judge.embed_frames(frames[21:]), atol=1e-5)
    assert np.allclose(np.linalg.norm(judge.embed_prompts(("WALL", "NOTHING")), axis=1), 1, atol=1e-5)


def test_red_is_red_and_grey_is_three_equal_channels(judge):
    """The published script hands over BGR frames."""
    red = np.zeros((1, 112, 112, 3), np.uint8)
    red[..., 0] = 200
    assert not np.allclose(judge.embed_frames(red), judge.embed_frames(red[..., ::-1]), atol=1e-4)
    grey = RNG.uniform(0, 255, (1, 112, 112)).astype(np.float32)
    assert np.allclose(judge.embed_frames(grey), judge.embed_frames(np.repeat(grey[..., None], 3, axis=-1)), atol=1e-6)


def test_frames_of_another_size_are_the_preprocessings_business(judge):
    assert judge.of_masks(RNG.uniform(0, 255, (1, 90, 140))).shape == (1, 3)


def test_its_provenance_names_the_folder_and_the_weights_but_no_path(judge, folder, model):
    assert judge.name == "tiny judge"
    assert str(folder.parent) not in json.dumps(judge.provenance)
    assert judge.provenance["parameters"] == sum(p.numel() for p in model.parameters())
    assert len(judge.provenance["sha256"][WEIGHTS]) == 64


def changed(config):
    return lambda folder: (folder / CONFIG).write_text(json.dumps(config))


def fetched_text():
    text = {**judge_training.MODEL["text_cfg"], "hf_model_name": "roberta-base"}
    return changed({"model_cfg": {**judge_training.MODEL, "text_cfg": text}})


def fetched_vision():
    vision = {**judge_training.MODEL["vision_cfg"], "timm_model_name": "hf-hub:timm/resnet18.a1_in1k"}
    return changed({"model_cfg": {**judge_training.MODEL, "vision_cfg": vision}})


def another_network():
    return changed({"model_cfg": {**judge_training.MODEL, "embed_dim": 16}})


@pytest.mark.parametrize(("spoil", "said"), [
    (lambda f: (f / CONFIG).unlink(), "holds no open_clip_config.json"),
    (lambda f: (f / CONFIG).write_text("{"), "not the configuration of an open_clip model"),
    (changed({"model_cfg": {"embed_dim": 3}}), "not the configuration of an open_clip model"),
    (lambda f: (f / WEIGHTS).unlink(), "holds no weights"),
    (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:1000]), "open_clip cannot load it"),
    (another_network(), "open_clip cannot load it"),
    (fetched_text(), "takes parts from the network"), (fetched_vision(), "takes parts from the network")])
def test_another_folder_is_refused_in_one_line_and_nothing_is_downloaded(tmp_path, folder, spoil, said):
    copy = tmp_path / "judge"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    spoil(copy)
    with pytest.raises(EdgesegError, match=said) as error:
        Judge.open(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["mkaichristensen/echo-clip", "ViT-B-32", "nowhere"])
def test_a_name_is_fetched_only_when_it_says_hub(name):
    with pytest.raises(EdgesegError, match=r"no such folder; a model of the Hugging Face hub is written hf-hub:"):
        Judge.open(name)


def beating(count: int = 2):
    """Clips of a beating disc that know their valve."""
    cases = [clip_data.clip(f"disc{i}", i) for i in range(count)]
    return [replace(c, provenance={"echo": {"mitral": np.linspace(0, 1, len(c.frames)).tolist()}}) for c in cases]


def test_captions_follow_how_much_of_ventricle_and_wall_is_seen():
    y, x = np.mgrid[:112, :112]
    inside = np.hypot(y - 50, x - 60) < 20
    larger = np.hypot(y - 50, x - 60) < 22
    assert judge_training.captions(inside, np.zeros_like(inside)) == (1, 1, 0)
    assert judge_training.captions(inside, inside) == (1, 0, 1)
    assert judge_training.captions(inside, np.ones_like(inside)) == (0, 0, 1)
    wall, lv, nothing = judge_training.captions(inside, larger)
    assert 0 < wall < 1
    assert (lv, nothing) == (0, 1)
    assert 0.6 < judge_training.captions(inside, inside & (y < 50))[1] < 0.8


def test_of_what_may_be_hidden_or_is_unknown_no_caption_is_learned():
    data = judge_training.gather([*beating(1), clip_data.clip("no valve", 5)])
    x, target = judge_training.drawn(data, np.arange(len(data.grey)), np.random.default_rng(0))
    half = len(data.grey)
    assert x.shape == (2 * half, 3, 112, 112)
    assert np.isnan(target[half:, 3:]).all()
    assert np.isnan(target[half // 2 : half, 3:]).all()
    assert np.allclose(target[: half // 2, 3:].sum(1), 1)
    assert np.array_equal(target[:half, :3], np.tile([1, 1, 0], (half, 1)))
    black = (-0.127 / 0.198) * np.ones(3)
    assert np.allclose(x[half:][:, :, 50, 50].min(0), black, atol=1e-5)


def test_a_judge_trained_here_is_read_by_the_same_loader_and_is_the_same_for_one_seed(tmp_path):
    cases = beating(1)
    said = []
    first = judge_training.train_judge(cases, tmp_path / "a", epochs=3, batch=6, say=said.append)
    second = judge_training.train_judge(cases, tmp_path / "b", epochs=3, batch=6, say=said.append)
    assert (first / WEIGHTS).read_bytes() == (second / WEIGHTS).read_bytes()
    history = json.loads((first / "training.json").read_text())["loss"]
    assert len(history) == 3
    assert history[-1] < history[0]
    found = Judge.open(first).of_masks(cases[0].frames[:, 0])
    assert np.isfinite(found).all()
    with pytest.raises(EdgesegError, match="already there"):
        judge_training.train_judge(cases, first)


def test_without_a_labelled_frame_nothing_is_trained(tmp_path):
    with pytest.raises(EdgesegError, match="no labelled frame"):
        judge_training.train_judge([], tmp_path / "a")
    with pytest.raises(EdgesegError, match="with labels of the LV"):
        judge_training.train_judge([clip_data.clip("a", 0, labelled=False)], tmp_path / "a")
    assert not (tmp_path / "a").exists()
