"""Multi-task teachers: published sizes, both outputs, the folder they live in, prediction, refusals."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.teachers import open_teacher
from edgeseg.teachers.export import teacher_onnx
from edgeseg.teachers.multitask import MultiTaskTeacher, build_network, write_record
from edgeseg.teachers.multitask_unet import MultiTaskUNet, TransformerUNet

SCHEME = LabelScheme(("background", "liver", "spleen"), (0, 6, 1))
GRID = Preprocessing((32, 48), (1.5, 1.25), (Normalisation("ct", mean=40.0, std=60.0, low=-160.0, high=240.0),))
KINDS = ("multitask", "transformer")
each_kind = pytest.mark.parametrize("kind", KINDS)


def make_folder(folder, kind, scheme=SCHEME, grid=GRID, width=4):
    """A folder as training leaves it, with random weights and BatchNorm statistics."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    network = build_network(kind, len(grid.channels), len(scheme.names), width, grid.size)
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean, 0, 0.2)
        nn.init.uniform_(norm.running_var, 0.2, 1)
    write_record(folder, kind, width, scheme, grid, "tiny", {"dev": {"dice": 0.5, "epoch": 1}})
    save_file(network.state_dict(), folder / "teacher.safetensors")
    return network.eval()


@pytest.fixture(scope="module", params=KINDS)
def teacher(request, tmp_path_factory):
    """(folder, network that was saved, teacher that was read back)."""
    folder = tmp_path_factory.mktemp("a teacher") / request.param
    network = make_folder(folder, request.param)
    return folder, network, open_teacher(f"multitask:{folder}", bf16=False)


def case(shape, spacing=(1.5, 1.25), channels=1):
    rng = np.random.default_rng(3)
    return Case("a", "a", rng.uniform(-200, 300, (2, channels, *shape)).astype(np.float32), spacing)


def test_the_published_width_has_the_published_parameters():
    with torch.device("meta"):
        network = MultiTaskUNet(3, 2)
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    assert round(sum(sizes.values()) / 1e6, 2) == 43.24
    assert round(sum(n for k, n in sizes.items() if not k.startswith("reconstruction")) / 1e6, 2) == 31.04
    with torch.device("meta"):
        grey = MultiTaskUNet(1, 2)
    assert {name: p.numel() for name, p in grey.named_parameters()} == sizes


def test_every_pixel_of_the_map_at_a_sixteenth_is_a_token_with_a_place():
    network, seen = TransformerUNet(1, 2, 4, (64, 96)).eval(), {}
    tokens = network.bottleneck
    tokens.vit.blocks[0].register_forward_hook(lambda _module, _input, out: seen.update(shape=tuple(out.shape)))
    flat = torch.ones(1, 32, 4, 6)
    with torch.inference_mode():
        network(torch.randn(1, 1, 64, 96))
        assert seen["shape"] == (1, 4 * 6, 12 * 4)
        nn.init.normal_(tokens.vit.pos_embed)
        assert tokens(flat).std((2, 3)).max() > 1e-2
        nn.init.zeros_(tokens.vit.pos_embed)
        assert tokens(flat).std((2, 3)).max() < 1e-5


def test_a_token_sees_the_whole_image_and_a_convolution_does_not():
    torch.manual_seed(0)
    x = torch.randn(1, 1, 256, 256)
    other = x.clone()
    other[..., :16, :16] += 5  # the upper left corner changes: what is said of the lower right one?
    with torch.inference_mode():
        changes = [(n.encode(x)[-1] - n.encode(other)[-1])[..., -1, -1].abs().max()
                   for n in (MultiTaskUNet(1, 2, 4).eval(), TransformerUNet(1, 2, 4).eval())]
    assert changes[0] == 0
    assert changes[1] > 1e-6


@each_kind
def test_both_outputs_learn_from_one_pass_and_share_the_encoder(kind):
    network, x = build_network(kind, 2, 3, 4, (32, 32)).train(), torch.randn(2, 2, 32, 32)
    passes = []
    network.bottleneck.register_forward_hook(lambda *_: passes.append(1))
    logits, = network(x)
    assert logits.shape == (2, 3, 32, 32)
    logits.square().mean().backward(retain_graph=True)
    without = {n for n, p in network.named_parameters() if p.grad is None}
    assert without == {n for n, _ in network.named_parameters() if n.startswith("reconstruction")}
    before = network.encoder[0][0].weight.grad.clone()
    network.auxiliary_loss(x).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert not torch.equal(network.encoder[0][0].weight.grad, before)
    assert len(passes) == 1


def test_the_auxiliary_loss_is_a_fifth_of_the_mean_squared_error_of_the_normalised_input():
    network, x = MultiTaskUNet(1, 2, 4).train(), torch.randn(2, 1, 32, 32)
    network(x)
    loss, made = network.auxiliary_loss(x), network.reconstruct(x)
    assert made.shape == (2, 3, 32, 32)
    assert torch.isclose(loss, 0.2 * (made - x).square().mean(), rtol=1e-5)


def test_grey_is_repeated_to_the_three_channels_of_the_published_network():
    grey, x = MultiTaskUNet(1, 2, 4).eval(), torch.randn(2, 1, 32, 32)
    with torch.inference_mode():
        assert torch.equal(grey(x), grey(x.repeat(1, 3, 1, 1)))
    assert MultiTaskUNet(2, 2, 4).encoder[0][0].in_channels == 2


def test_two_classes_are_one_logit_beside_a_zero():
    with torch.inference_mode():
        two, three = (MultiTaskUNet(1, k, 4).eval()(torch.randn(1, 1, 32, 32)) for k in (2, 3))
    assert (two[:, 0] == 0).all()
    assert two[:, 1].std() > 0
    assert three.shape[1] == 3
    assert (three.std((0, 2, 3)) > 0).all()


# ---- the folder

def test_weights_and_grid_come_back_from_the_folder(teacher):
    folder, network, read = teacher
    x = torch.randn(2, 1, 32, 48)
    with torch.no_grad():
        for again in (read.logits(x)[0], read.network()(x)):  # BatchNorm is folded: the same but for rounding
            torch.testing.assert_close(again, network(x), rtol=1e-4, atol=1e-5)
    assert not read.logits(x)[0].requires_grad
    assert (read.scheme, read.preprocessing, read.channels) == (SCHEME, GRID, ("channel 0",))
    assert (read.stride, read.mirror_axes, read.ignore, read.predict_only) == ((16, 16), (0, 1), None, False)
    total = sum(p.numel() for p in network.parameters())
    assert read.provenance["segmentation_parameters"] < read.provenance["parameters"] == total
    assert read.name == folder.name
    assert str(folder.parent) not in json.dumps(read.provenance)
    for name in ("encoder.0", "pools.1", "bottleneck", "decoder.0"):
        assert type(read.running.get_submodule(name)) is type(read.network().get_submodule(name))
    seen = []
    handle = read.running.bottleneck.register_forward_hook(lambda *_: seen.append(1))
    read.logits(x)
    handle.remove()
    assert seen == [1]


def test_bfloat16_says_nearly_the_same(teacher):
    x = torch.randn(1, 1, 32, 48)
    exact = teacher[2].logits(x)[0]
    rounded = MultiTaskTeacher.open(teacher[0], bf16=True).logits(x)[0]
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.std() + 0.05


def test_a_prediction_is_the_networks_where_the_grids_agree(teacher):
    _, network, read = teacher
    image = case((32, 48))
    labels, p = read.predict(image, "none")
    with torch.no_grad():
        wanted = network(torch.from_numpy(GRID.normalise(image.frames))).softmax(1).numpy()
    np.testing.assert_allclose(p, wanted, atol=1e-5)
    assert np.array_equal(labels, p.argmax(1))
    assert labels.dtype == np.uint8
    assert p.dtype == np.float32


@pytest.mark.parametrize(("tta", "turn"), [("mirror", lambda a: a[..., ::-1]), ("mirror", lambda a: a[..., ::-1, :]),
                                           ("mirror+rotate", lambda a: np.rot90(a, 1, (-2, -1)))])
def test_test_time_augmentation_makes_the_prediction_follow_the_image(tmp_path, tta, turn):
    square = Preprocessing((32, 32), (1.5, 1.5))
    make_folder(tmp_path / "t", "multitask", grid=square)
    read = MultiTaskTeacher.open(tmp_path / "t", bf16=False)
    image = case((32, 32), (1.5, 1.5))
    turned = Case("b", "b", np.ascontiguousarray(turn(image.frames)), (1.5, 1.5))
    np.testing.assert_allclose(turn(read.predict(image, tta)[1]), read.predict(turned, tta)[1], atol=1e-4)
    plain = [read.predict(c, "none")[1] for c in (image, turned)]
    assert np.abs(turn(plain[0]) - plain[1]).max() > 1e-3


@pytest.mark.parametrize("window", ["centre", "tiles"])
def test_images_of_another_size_and_spacing_get_probabilities_in_their_own_grid(tmp_path, window):
    grid = Preprocessing(GRID.size, GRID.spacing, GRID.channels, window=window)
    make_folder(tmp_path / "t", "transformer", grid=grid)
    labels, p = MultiTaskTeacher.open(tmp_path / "t").predict(case((100, 90), (0.8, 0.9)), "none")
    assert labels.shape == (2, 100, 90)
    assert p.shape == (2, 3, 100, 90)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    corner = p[:, :, 0, 0]
    assert (corner[:, 0] == 1).all() == (window == "centre")  # outside a centred window there is only background


def test_the_exported_network_is_the_teachers(tmp_path):
    make_folder(tmp_path / "t", "transformer")
    read = MultiTaskTeacher.open(tmp_path / "t", bf16=False)
    teacher_onnx(read, tmp_path / "teacher.onnx")
    x = np.random.default_rng(0).normal(size=read.input_shape).astype(np.float32)
    found, = onnxruntime.InferenceSession(tmp_path / "teacher.onnx").run(None, {"image": x})
    np.testing.assert_allclose(found, read.logits(torch.from_numpy(x))[0].numpy(), atol=1e-4)


# ---- refusals

@each_kind
@pytest.mark.parametrize("width", [0, -3])
def test_a_width_that_does_not_exist_is_refused(kind, width):
    with pytest.raises(EdgesegError, match=rf"width is the number of channels.*not {width}"):
        build_network(kind, 1, 2, width, (32, 32))


def test_a_size_that_cannot_be_halved_four_times_is_refused_with_one_that_can():
    with pytest.raises(EdgesegError, match=r"40 x 32 pixels cannot be halved 4 times.*such as 32 x 32"):
        MultiTaskUNet(1, 2, 4)(torch.zeros(1, 1, 40, 32))
    with pytest.raises(EdgesegError, match=r"100 x 64 pixels cannot be halved 4 times.*such as 96 x 64"):
        TransformerUNet(1, 2, 4, (100, 64))


def test_a_case_with_other_channels_is_refused(teacher):
    with pytest.raises(EdgesegError, match="2 channels, but the teacher"):
        teacher[2].predict(case((32, 48), channels=2))


def no_folder(folder):
    folder.rename(folder.with_name("elsewhere"))


def a_file(folder):
    no_folder(folder)
    folder.write_text("a file")


def no_weights(folder):
    (folder / "teacher.safetensors").unlink()


def half_the_weights(folder):
    path = folder / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def others_weights(folder):
    save_file(MultiTaskUNet(1, 3, 8).state_dict(), folder / "teacher.safetensors")


def fewer_weights(folder):
    state = load_file(folder / "teacher.safetensors")
    state.pop("head.weight")
    save_file(state, folder / "teacher.safetensors")


def record(**changes):
    def change(folder):
        path = folder / "teacher.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return change


def not_json(folder):
    (folder / "teacher.json").write_text("{")


@pytest.mark.parametrize(("break_it", "said"), [
    (no_folder, "not the folder of a multi-task teacher"), (a_file, "not the folder of a multi-task teacher"),
    (no_weights, "training is not finished.*--resume"), (half_the_weights, "not a readable safetensors"),
    (others_weights, "not the weights of the network"), (fewer_weights, "not the weights of the network"),
    (not_json, "not a readable record"), (record(version=2), "version 2 is newer"),
    (record(network={"kind": "multitask"}), "not a readable record"), (record(scheme=3), "not a readable record"),
    (record(network={"kind": "mamba", "channels": 1, "classes": 3, "width": 4, "size": [32, 48]}), "'mamba'")])
def test_a_folder_that_is_not_one_is_refused_in_one_line(tmp_path, break_it, said):
    make_folder(tmp_path / "t", "multitask")
    break_it(tmp_path / "t")
    with pytest.raises(EdgesegError, match=said) as error:
        open_teacher(f"multitask:{tmp_path / 't'}")
    assert "\n" not in str(error.value)
