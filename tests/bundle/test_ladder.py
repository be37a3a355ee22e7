"""Each rung of the quantisation ladder is reached by a network made hard to quantise: real NNCF, real runtimes, Dice of
each INT8 file against the labels of the FP32 network."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg.bundle.ladder import climb
from edgeseg.bundle.quantise import Network, convert, ends, quantise_rung, read_ir
from edgeseg.bundle.recipe import RUNGS
from edgeseg.errors import EdgesegError
from edgeseg.measure.overlap import dice_per_class
from edgeseg.runtime.backends import BACKENDS, load_backend

LEVELS = np.array([0, 1, 2, 3], np.float32)
"""Grey levels of the four classes; each pixel belongs to the nearest."""
LIMIT = 0.95
SIDE = 32


def write_net(path: Path, *layers: tuple) -> Path:
    """ONNX of 1x1 convolutions: each layer is (weight [out, in], bias [out], activation or None)."""
    nodes, weights, tensor = [], [], "image"
    for k, (weight, bias, activation) in enumerate(layers):
        weights += [numpy_helper.from_array(np.asarray(weight, np.float32)[:, :, None, None], f"w{k}"),
                    numpy_helper.from_array(np.asarray(bias, np.float32), f"b{k}")]
        out = "logits" if k == len(layers) - 1 else f"conv_{k}"
        nodes.append(helper.make_node("Conv", [tensor, f"w{k}", f"b{k}"], [out], name=f"node_{k}"))
        tensor = out
        if activation == "relu":
            nodes.append(helper.make_node("Relu", [tensor], [f"act_{k}"], name=f"relu_{k}"))
        elif activation:
            low, high = np.float32(activation)
            weights += [numpy_helper.from_array(low, f"l{k}"), numpy_helper.from_array(high, f"h{k}")]
            nodes.append(helper.make_node("Clip", [tensor, f"l{k}", f"h{k}"], [f"act_{k}"], name=f"clip_{k}"))
        tensor = f"act_{k}" if activation else tensor
    graph = helper.make_graph(
        nodes, "hard", [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 1, SIDE, SIDE))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 4, SIDE, SIDE))], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    convert(path, path.with_suffix(".xml"))
    return path


def nearest_level(scale: float = 1.0) -> tuple:
    """The head: logits[k] = 2 L_k x - L_k^2, largest for the level nearest to x / scale."""
    return 2 * LEVELS[:, None] / scale, -(LEVELS**2), None


def frames(kind: str, count: int = 6) -> np.ndarray:
    rng = np.random.default_rng(5)
    grey = rng.integers(0, 4, (count, 1, SIDE, SIDE)) + rng.uniform(-0.3, 0.3, (count, 1, SIDE, SIDE))
    if kind == "bright spot":  # one pixel of a frame outshines the rest
        grey[:, :, 3, 7] = 4000
    if kind == "far apart":  # the four levels are a sliver of the full range, everywhere in between there are pixels
        grey = np.where(rng.random(grey.shape) < 0.5, 500 + grey, rng.uniform(0, 1000, grey.shape))
    return grey.astype(np.float32)


IDENTITY = [[1.0]], [0.0], None
SLIVER = [[1.0]], [-500.0], (-1.0, 4.0)
"""Takes the four levels out of a wide range: its input needs more than 8 bits, its output does not."""
ONES = 16


def spread_bias() -> tuple[tuple, tuple]:
    """An offset that the second layer adds up from 16 channels of constant 1 by weights that all round to zero, because
    a channel that is always zero has a large one; NNCF's fast correction shies away from so large a shift."""
    first = np.zeros((ONES + 2, 1)), np.ones(ONES + 2)
    first[0][0], first[1][0] = 1, 0  # grey level
    first[1][1] = -1  # dead behind the ReLU
    head = np.zeros((4, ONES + 2))
    head[:, 0], head[:, 1] = 2 * LEVELS, 300
    head[:, 2:] = -(LEVELS[:, None] ** 2) / ONES
    return (*first, "relu"), (head, np.full(4, 0.05), None)


HARD = {
    "post-training": ("levels", (IDENTITY, nearest_level())),
    "bias-correction": ("levels", spread_bias()),
    "range-percentile": ("bright spot", (([[1.0]], [0.0], "relu"), nearest_level())),
    "keep-ends": ("far apart", (SLIVER, IDENTITY, nearest_level())),
    "accuracy-control": ("far apart", (IDENTITY, SLIVER, IDENTITY, nearest_level())),
}


class Judge:
    """Mean Dice of the classes against the labels that FP32 gives; admitted from LIMIT on."""

    def __init__(self, onnx_file: Path, images: np.ndarray, limit: float = LIMIT) -> None:
        self.images, self.limit, self.judged = images, limit, []
        self.truth = self.labels(onnx_file, "onnxruntime")

    def labels(self, path: Path, backend: str) -> np.ndarray:
        net = load_backend(backend, path, threads=1)
        return np.concatenate([net(x[None]) for x in self.images]).argmax(axis=1)

    def __call__(self, path: Path, backend: str) -> tuple[float, tuple[str, ...]]:
        self.judged.append(path)
        dice = float(dice_per_class(self.labels(path, backend), self.truth, 4).mean())
        return dice, () if dice >= self.limit else ("mean Dice drop",)


SUFFIX = {"openvino": ".xml", "onnxruntime": ".onnx"}


def hard_network(folder: Path, rung: str) -> tuple[Path, np.ndarray]:
    kind, layers = HARD[rung]
    return write_net(folder / "model.fp32.onnx", *layers), frames(kind)


@pytest.mark.parametrize(("rung", "backend"), [
    *[(rung, "openvino") for rung in HARD],
    *[pytest.param(rung, "onnxruntime", marks=pytest.mark.soak) for rung in HARD]])
def test_each_rung_is_reached_by_a_network_for_which_those_before_miss_the_limit(tmp_path, rung, backend):
    fp32, images = hard_network(tmp_path, rung)
    judge, said = Judge(fp32, images), []
    out = tmp_path / f"model.int8{SUFFIX[backend]}"
    tried = climb(backend, fp32, out, images, RUNGS, judge, said.append)
    assert [r.rung for r in tried] == list(RUNGS[: RUNGS.index(rung) + 1])
    assert [r.failed for r in tried] == [("mean Dice drop",)] * (len(tried) - 1) + [()]
    assert judge(out, backend)[0] == tried[-1].dice
    assert len(said) == len(tried)
    assert said[-1].endswith("admitted")
    assert not list(tmp_path.glob(".*"))
    json.dumps([r.settings for r in tried])
    in_int8 = convolutions_of(out, fp32, images, backend)
    assert {name for name, int8 in in_int8.items() if not int8} == set(tried[-1].settings["left in FP32"])
    assert any(in_int8.values())


def convolutions_of(out: Path, fp32: Path, images: np.ndarray, backend: str) -> dict[str, bool]:
    return Network(backend, fp32, images).convolutions(read_ir(out) if backend == "openvino" else onnx.load(out))


def test_accuracy_control_leaves_out_what_harms_and_nothing_else(tmp_path):
    fp32, images = hard_network(tmp_path, "accuracy-control")
    judge = Judge(fp32, images)
    for backend in BACKENDS:
        settings = quantise_rung("accuracy-control", backend, fp32, tmp_path / f"int8{SUFFIX[backend]}", images,
                                 lambda path, backend=backend: judge(path, backend)[0])
        assert settings["left in FP32"] == ["node_0", "node_1"]  # what the sliver passes through, before it is cut out
        assert settings["dice"]["fp32"] == settings["dice"]["reached"] == 1
        assert settings["dice"]["all in INT8"] < LIMIT


def test_when_no_rung_is_admitted_the_best_stays(tmp_path):
    fp32, images = hard_network(tmp_path, "range-percentile")
    judge, said, out = Judge(fp32, images, limit=1.1), [], tmp_path / "model.int8.onnx"
    tried = climb("onnxruntime", fp32, out, images, ("range-percentile", "bias-correction", "keep-ends", "fine-tune"),
                  judge, said.append)
    assert [r.rung for r in tried] == ["range-percentile", "bias-correction"]  # fine-tune is not for here
    assert said[-1] == "onnxruntime keep-ends: would leave nothing in INT8"  # of two convolutions
    assert all(r.failed for r in tried)
    dice = [r.dice for r in tried]
    assert dice[0] > dice[1]  # so that it matters which one is kept
    assert judge(out, "onnxruntime")[0] == dice[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.fp32.bin", "model.fp32.onnx", "model.fp32.xml",
                                                          "model.int8.onnx"]


AGAIN = """
import hashlib, json, sys
from pathlib import Path
sys.modules["torch"] = None
out = sys.stdout
sys.stdout = sys.stderr
import test_ladder as t
folder, found = Path(sys.argv[1]), []
fp32, images = t.hard_network(folder, "accuracy-control")
judge = t.Judge(fp32, images)
def hashing(path, backend):
    files = [path, path.with_suffix(".bin")] if backend == "openvino" else [path]
    found.append([hashlib.sha256(f.read_bytes()).hexdigest() for f in files])
    return judge(path, backend)
for backend in t.BACKENDS:
    t.climb(backend, fp32, folder / ("model.int8" + t.SUFFIX[backend]), images, t.RUNGS[2:], hashing, str)
out.write(json.dumps(found))
"""


@pytest.mark.soak
def test_the_upper_rungs_give_the_same_bytes_in_every_fresh_process(tmp_path):
    processes = []
    for name in ("here", "somewhere else"):
        (tmp_path / name).mkdir()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        processes.append(subprocess.Popen([sys.executable, "-c", AGAIN, str(tmp_path / name)], env=environment,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    (first, _), (second, errors) = (p.communicate(timeout=300) for p in processes)
    assert processes[1].returncode == 0, errors
    assert len(json.loads(first)) == 2 * (3 + 1 + 1 + 4 + 1)  # candidates on the way too
    assert first == second


def test_the_ends_are_found_from_the_structure(tmp_path):
    """Two inputs' worth of branches and a skip: named against their order, with other nodes before and behind."""
    def conv(source, out, name):
        return helper.make_node("Conv", [source, "w"], [out], name=name)

    nodes = [helper.make_node("Relu", ["image"], ["r"], name="a"), conv("r", "b0", "z_first"), conv("b0", "b1", "m"),
             helper.make_node("Add", ["b0", "b1"], ["sum"], name="skip"), conv("sum", "high", "a_head"),
             conv("sum", "low", "b_head"), helper.make_node("Relu", ["high"], ["logits"], name="o")]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 1, 4, 4)) for n in ("image", "logits", "low")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:],
                              [numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w")])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    assert ends(tmp_path / "model.onnx") == ("z_first", "a_head", "b_head")


def one_line(call, match: str) -> None:
    with pytest.raises(EdgesegError, match=match) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_an_unknown_operator_and_garbage_are_one_line(tmp_path):
    node = helper.make_node("Quixotic", ["image"], ["logits"], domain="org.example")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, (1, 1, 4, 4)) for n in ("image", "logits")]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]),
                              opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("org.example", 1)])
    onnx.save(model, tmp_path / "odd.onnx")
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)) * 9)
    before = sorted(tmp_path.iterdir())
    images = np.zeros((2, 1, 4, 4), np.float32)
    for path, word in ((tmp_path / "odd.onnx", "Quixotic"), (tmp_path / "noise.onnx", "")):
        one_line(partial(convert, path, tmp_path / "out.xml"), f"{path.name}: OpenVINO cannot.*{word}")
        for backend in BACKENDS:
            one_line(partial(load_backend, backend, path), f"{path.name}: .*cannot load")
            out = tmp_path / f"out{SUFFIX[backend]}"
            one_line(partial(quantise_rung, "post-training", backend, path, out, images, None), path.name)
    assert sorted(tmp_path.iterdir()) == before


def test_an_ir_without_its_weights_is_one_line(tmp_path):
    fp32, images = hard_network(tmp_path, "post-training")
    fp32.with_suffix(".bin").unlink()
    one_line(lambda: load_backend("openvino", fp32.with_suffix(".xml")), r"model\.fp32\.xml")
    one_line(lambda: quantise_rung("post-training", "openvino", fp32, tmp_path / "out.xml", images, None),
             r"model\.fp32\.bin are missing")
    assert not (tmp_path / "out.xml").exists()


def test_accuracy_control_without_anything_to_score_with_says_so(tmp_path):
    fp32, images = hard_network(tmp_path, "post-training")
    one_line(lambda: quantise_rung("accuracy-control", "onnxruntime", fp32, tmp_path / "out.onnx", images,
                                   lambda path: float("nan")), "needs labelled dev cases")
    one_line(lambda: quantise_rung("fine-tune", "onnxruntime", fp32, tmp_path / "out.onnx", images, None), "fine-tune")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".bin", ".onnx", ".xml"]
