"""The end of a core that a frame graph leaves out, on networks of torch that end as the students do."""

import io
import shutil
from functools import cache, partial

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from edgeseg.bundle import graph
from edgeseg.bundle.frame_tail import Tail, before_tail_ir, drop_tail
from edgeseg.bundle.golden import phantom_frames
from edgeseg.bundle.graph import parse_protocol, write_frame_graphs
from edgeseg.bundle.quantise import Network, convert, quiet
from edgeseg.onnx_file import write_onnx
from edgeseg.preprocess import Preprocessing
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, SUFFIX, load_backend
from edgeseg.runtime.frame_graph import bring, graph_file
from edgeseg.runtime.golden import label_agreement

SIZE = (96, 80)
GRID = Preprocessing(SIZE, (2.5, 2.5), window="centre")
PROTOCOL = parse_protocol("128x108@2.8125", "uint16")
VALUES = (0, 1, 2, 3)
HEADS = {"sub-pixel": ["DepthToSpace", "Pad"], "bilinear": ["Resize", "Pad"], "background first": ["Pad", "Resize"]}
load = partial(load_backend, threads=1)


class Student(nn.Module):
    """A stem of stride 2 and a head that ends as HEADS[kind]; logits of a phantom have mean 0 and deviation 1."""

    def __init__(self, kind):
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.stem = nn.Conv2d(1, 16, 5, 2, 2)
        self.head = nn.Conv2d(16, 12 if kind == "sub-pixel" else 3, 3, 1, 1)
        with torch.no_grad():
            logits = self.head(F.relu(self.stem(torch.from_numpy(windows()))))
            mean, std = (f(logits, dim=(0, 2, 3)) for f in (torch.mean, torch.std))
            self.head.weight /= std[:, None, None, None]
            self.head.bias.copy_((self.head.bias - mean) / std)

    def forward(self, x):
        x, background = self.head(F.relu(self.stem(x))), (0, 0, 0, 0, 1, 0)
        if self.kind == "sub-pixel":
            return F.pad(F.pixel_shuffle(x, 2), background)
        up = partial(F.interpolate, scale_factor=2.0, mode="bilinear", align_corners=False)
        return F.pad(up(x), background) if self.kind == "bilinear" else up(F.pad(x, background))


@cache
def frames():
    return [bring(f.astype(np.float32), spacing, PROTOCOL) for f, spacing in phantom_frames(1, 3)[:3]]


@cache
def windows():
    from edgeseg import geometry

    canvas = GRID.to_canvas(np.stack(frames()).astype(np.float32), PROTOCOL.spacing)
    return geometry.take_window(canvas, geometry.centre_start(canvas.shape[-2:], SIZE), SIZE)


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    """The folder of a kind of student: its core in both precisions for both runtimes, and its frame graphs."""
    quiet()

    @cache
    def written(kind):
        folder = tmp_path_factory.mktemp(kind)
        write_onnx(Student(kind).eval(), (1, 1, *SIZE), folder / "model.fp32.onnx")
        assert [n.op_type for n in onnx.load(folder / "model.fp32.onnx").graph.node][-2:] == HEADS[kind]
        convert(folder / "model.fp32.onnx", folder / "model.fp32.xml")
        for backend in BACKENDS:
            network = Network(backend, folder / "model.fp32.onnx", windows())
            network.quantise(folder / f"model.int8.{SUFFIX[backend]}")
        write_frame_graphs(folder, GRID, VALUES, PROTOCOL)
        return folder
    return written


def labels(folder, backend, precision):
    network = load(backend, folder / graph_file(PROTOCOL, backend, precision))
    return np.concatenate([network(f[None]) for f in frames()])


def kinds(path):
    """How often each operation is in a model file."""
    names = ([n.op_type for n in onnx.load(path).graph.node] if path.suffix == ".onnx"
             else [op.get_type_name() for op in ov.Core().read_model(path).get_ops()])
    return {name: names.count(name) for name in names}


@pytest.mark.parametrize("kind", ["sub-pixel", "bilinear"])
def test_the_tail_is_gone_and_the_labels_are_those_of_the_numpy_pipeline(students, kind):
    for backend in BACKENDS:
        for precision in PRECISIONS:
            path = students(kind) / graph_file(PROTOCOL, backend, precision)
            found = kinds(path)
            assert not {"DepthToSpace", "Resize", "Interpolate", "Slice", "StridedSlice"} & found.keys()
            assert found["Pad"] == 1, "that of the labels"
            core = load(backend, students(kind) / f"model.{precision}.{SUFFIX[backend]}")
            expected = np.concatenate([GRID.segment(f[None].astype(np.float32), PROTOCOL.spacing, core)
                                       for f in frames()])
            assert len(np.unique(expected)) == 4
            mine = labels(students(kind), backend, precision)
            assert label_agreement(mine, expected) >= (0.995 if precision == "fp32" else 0.99)


def test_not_a_label_changes_with_the_tail_of_a_sub_pixel_head(students, tmp_path, monkeypatch):
    folder = students("sub-pixel")
    for path in folder.glob("model.*"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(graph, "drop_tail", lambda core: (core.graph.output[0].name, Tail(SIZE)))
    monkeypatch.setattr(graph, "before_tail_ir", lambda core: (core.get_results()[0].input_value(0), Tail(SIZE)))
    write_frame_graphs(tmp_path, GRID, VALUES, PROTOCOL)
    for backend in BACKENDS:
        for precision in PRECISIONS:
            assert "DepthToSpace" in kinds(tmp_path / graph_file(PROTOCOL, backend, precision))
            np.testing.assert_array_equal(labels(tmp_path, backend, precision), labels(folder, backend, precision))


def test_not_a_label_changes_with_the_background_of_a_bilinear_head(students):
    """A background of zeros that is resampled too, and subtracted, gives the same numbers."""
    first = students("background first")
    assert "Slice" in kinds(first / graph_file(PROTOCOL, "onnxruntime", "fp32"))
    for backend in BACKENDS:
        np.testing.assert_array_equal(labels(first, backend, "fp32"), labels(students("bilinear"), backend, "fp32"))


def core_of(*ends):
    """An ONNX core "image" [1, 4, 6, 8] -> Relu -> `ends`, each (operation, further inputs, attributes)."""
    nodes, name = [helper.make_node("Relu", ["image"], ["r"])], "r"
    for i, (kind, inputs, options) in enumerate(ends):
        nodes.append(helper.make_node(kind, [name, *inputs], [f"v{i}"], **options))
        name = f"v{i}"
    numbers = {"front": np.array([0, 1, 0, 0, 0, 0, 0, 0]), "behind": np.array([0, 0, 0, 0, 0, 1, 0, 0]),
               "more": np.array([0, 1, 1, 0, 0, 0, 0, 0]), "one": np.float32(1), "zero": np.float32(0),
               "twice": np.array([1, 1, 2, 2], np.float32), "half more": np.array([1, 1, 1.5, 1.5], np.float32)}
    shape = onnx.shape_inference.infer_shapes(helper.make_model(helper.make_graph(
        nodes, "core", [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 4, 6, 8))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in numbers.items()]),
        opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    onnx.checker.check_model(shape)
    return shape


BEHIND_ALL = ("Pad", ["front"], {})
SHUFFLE = ("DepthToSpace", [], {"blocksize": 2, "mode": "CRD"})
LINEAR = ("Resize", ["", "twice"], {"mode": "linear"})


@pytest.mark.parametrize(("ends", "tail", "left"), [
    ([SHUFFLE, BEHIND_ALL], Tail((6, 8), 2, True), 1),
    ([SHUFFLE, ("Pad", ["front", "zero"], {"mode": "constant"})], Tail((6, 8), 2, True), 1),
    ([LINEAR, BEHIND_ALL], Tail((6, 8), 1, True), 1),
    ([LINEAR], Tail((6, 8)), 1),
    ([BEHIND_ALL], Tail((6, 8), 1, True), 1),
    ([("Relu", [], {}), BEHIND_ALL], Tail((6, 8), 1, True), 2),
    ([], Tail((6, 8)), 1),
    ([SHUFFLE], Tail((12, 16)), 2),  # the background must be subtracted from pixels of their places
    ([("DepthToSpace", [], {"blocksize": 2, "mode": "DCR"}), BEHIND_ALL], Tail((12, 16), 1, True), 2),
    ([SHUFFLE, ("Pad", ["front", "one"], {})], Tail((12, 16)), 3),
    ([SHUFFLE, ("Pad", ["behind"], {})], Tail((12, 16)), 3),
    ([SHUFFLE, ("Pad", ["more"], {})], Tail((13, 16)), 3),
    ([("Pad", ["front"], {"mode": "edge"})], Tail((6, 8)), 2),
    ([("Resize", ["", "twice"], {"mode": "nearest"}), BEHIND_ALL], Tail((12, 16), 1, True), 2),
    ([("Resize", ["", "half more"], {"mode": "linear"}), BEHIND_ALL], Tail((9, 12), 1, True), 2),
])
def test_only_what_the_way_back_can_do_is_left_out(ends, tail, left):
    model = core_of(*ends)
    ir = ov.convert_model(io.BytesIO(model.SerializeToString()))
    logits, found = before_tail_ir(ir)
    assert found == tail
    assert tuple(logits.shape)[2:] == tail.size
    name, found = drop_tail(model)
    assert found == tail
    assert len(model.graph.node) == left
    assert name in model.graph.node[-1].output
