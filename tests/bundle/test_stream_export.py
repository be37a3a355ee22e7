"""The bundle of a recurrent student: one step with its states outside, in FP32 and INT8, and the evidence for both."""

from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
import torch

from edgeseg.bundle.calibrate import draw_frames
from edgeseg.bundle.export import export_bundle
from edgeseg.bundle.graph import parse_protocol
from edgeseg.bundle.quantise import Network, read_ir
from edgeseg.bundle.stream_export import trajectories
from edgeseg.bundle.stream_gate import drift_gate, play
from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE
from edgeseg.measure.drift import LIMIT
from edgeseg.onnx_file import OPSET
from edgeseg.preprocess import Normalisation
from edgeseg.runtime.backends import BACKENDS, load_backend, model_file
from edgeseg.runtime.golden import label_agreement, load_golden
from edgeseg.runtime.stream import Stream

STATES = {"h0": (1, 6, 32, 40), "c0": (1, 6, 32, 40), "h1": (1, 12, 16, 20), "c1": (1, 12, 16, 20)}
NEXT = [f"{name}_next" for name in STATES]
PATH = {"Add", "Multiply", "Mul", "Sigmoid", "Tanh"}
"""Operators of a cell's update."""


@pytest.fixture(scope="module")
def int8(stream_bundle):
    return {"openvino": read_ir(stream_bundle.file("model.int8.xml")),
            "onnxruntime": onnx.load(stream_bundle.file("model.int8.onnx"))}


def test_the_manifest_names_the_states_and_the_graph_takes_them(stream_bundle):
    assert stream_bundle.manifest.stream.states == STATES
    model = onnx.load(stream_bundle.file("model.fp32.onnx"))
    assert [i.name for i in model.graph.input] == ["x", *STATES]
    assert [o.name for o in model.graph.output] == ["y", *NEXT]
    shapes = {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in model.graph.input}
    assert shapes == {"x": (1, 1, 32, 40), **STATES}
    assert model.opset_import[0].version == OPSET
    assert not any(n.metadata_props or n.doc_string for n in model.graph.node)


def test_heads_that_only_train_are_not_exported(stream_bundle, clip_run):
    weights = sum(int(np.prod(t.dims)) for t in onnx.load(stream_bundle.file("model.fp32.onnx")).graph.initializer)
    every = sum(p.numel() for p in clip_run.student().parameters())
    assert weights < every + 4 * 18  # folded: statistics of the two BatchNorms that stay take no more than this


def test_every_file_was_run_over_200_frames_against_the_whole_clip_in_torch(stream_bundle):
    measured = stream_bundle.manifest.measured
    assert measured.frames == 200
    assert {(c.backend, c.precision) for c in measured.checks} == {(b, p) for b in BACKENDS for p in ("fp32", "int8")}
    for check in measured.checks:
        assert check.max_logit_difference < 1e-4 if check.precision == "fp32" else check.relative_error > 1e-4


def before_openvino(model, name):
    """Types of the nodes that lead to an output, as far back as the convolutions."""
    found, todo = set(), [model.output(name).get_node().input_value(0).get_node()]
    while todo:
        node = todo.pop()
        found.add(node.get_type_name())
        if node.get_type_name() not in ("Convolution", "Parameter", "Constant"):
            todo += [v.get_node() for v in node.input_values()]
    return found


def before_onnx(model, name):
    made, found, todo = {o: n for n in model.graph.node for o in n.output}, set(), [name]
    while todo:
        node = made.get(todo.pop())
        if node is not None:
            found.add(node.op_type)
            todo += [] if node.op_type == "Conv" else list(node.input)
    return found


@pytest.mark.parametrize("name", NEXT)
def test_nothing_is_quantised_between_a_convolution_and_the_state_that_it_makes(int8, name):
    for found in (before_openvino(int8["openvino"], name), before_onnx(int8["onnxruntime"], name)):
        assert found & PATH
        assert found & {"Convolution", "Conv"}
        assert not found & {"FakeQuantize", "QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_convolutions_are_in_int8(stream_bundle, int8, backend):
    network = Network(backend, stream_bundle.file("model.fp32.onnx"), {"x": np.zeros((1, 1)), "h0": np.zeros((1, 1))})
    found = network.convolutions(int8[backend])
    assert len(found) == 4
    assert all(found.values())


def test_calibration_has_the_states_that_frames_really_meet(clip_run):
    data, pre, model = clip_run.dataset().select("train"), clip_run.preprocessing, clip_run.student()
    frames = draw_frames(data, pre, 4, 0)
    samples = trajectories(model, frames, pre)
    assert list(samples) == ["x", *STATES]
    assert {len(v) for v in samples.values()} == {4}
    for x, *states in zip(*samples.values(), strict=True):
        frame = next(f for f in frames if np.array_equal(f.window, x))
        windows = torch.from_numpy(frame.case.load().frames / 255)
        state = None
        with torch.inference_mode():
            for t in range(frame.index):
                _, state = model.step(windows[t : t + 1], state)
        wanted = state or [torch.zeros(s) for s in STATES.values()]
        for found, expected in zip(states, wanted, strict=True):
            np.testing.assert_allclose(found, expected[0].numpy(), atol=1e-6)
    assert np.abs(samples["c0"]).max() > 0.01


def test_int8_is_held_against_fp32_for_drift_in_both_runtimes(stream_bundle):
    gates = [g for g in stream_bundle.manifest.measured.admission.gates if g.name == "drift of Dice"]
    assert {"openvino int8", "onnxruntime int8"} <= {g.subject for g in gates}
    assert {(g.kind, g.limit, g.relation, g.tested) for g in gates} == {("accuracy", LIMIT, ">=", "value")}
    assert all(g.estimate.n > 0 for g in gates)


def test_a_file_that_gets_worse_with_time_misses_the_gate(stream_bundle, clip_run):
    data = clip_run.dataset().select("dev")
    fp32 = play(stream_bundle.file(model_file("onnxruntime", "fp32")), "onnxruntime", "fp32", data,
                clip_run.preprocessing, 1)
    worse = [np.where((np.arange(200) > 150)[:, None, None], np.roll(labels, 5, axis=2), labels) for labels in fp32]
    cases = [ref.load() for ref in data.refs]
    bare = [replace(case, labels=np.full_like(case.labels, IGNORE)) for case in cases]
    refs = (replace(ref, load=partial(bare.__getitem__, i)) for i, ref in enumerate(data.refs))
    unlabelled = replace(data, refs=tuple(refs))
    assert drift_gate("s", fp32, fp32, unlabelled, clip_run.scheme).passed
    missed = drift_gate("s", worse, fp32, unlabelled, clip_run.scheme)  # FP32's labels take the place of the truth
    assert not missed.passed
    assert missed.estimate.value < 10 * LIMIT
    assert drift_gate("s", fp32, fp32, data, clip_run.scheme).estimate.value == 0


def test_a_normalisation_by_the_clip_and_frame_graphs_are_refused_before_anything_is_written(clip_run, tmp_path):
    by_clip = replace(clip_run, preprocessing=replace(clip_run.preprocessing, channels=(Normalisation("zscore"),)))
    with pytest.raises(EdgesegError, match="zscore"):
        export_bundle(by_clip, tmp_path / "a.edgeseg")
    with pytest.raises(EdgesegError, match="--frame"):
        export_bundle(clip_run, tmp_path / "a.edgeseg", protocols=(parse_protocol("32x40@1.0", "uint8"),))
    assert list(tmp_path.iterdir()) == []


def test_the_card_and_the_metadata_speak_of_a_stream(stream_bundle):
    assert "Recurrent" in stream_bundle.file("MODEL_CARD.md").read_text()
    assert '"name": "x"' in stream_bundle.file("metadata.json").read_text()


def test_its_golden_frames_are_a_clip_and_their_labels_those_of_the_stream(stream_bundle):
    golden = load_golden(stream_bundle.file("golden.npz"))
    assert len({g.frame.tobytes() for g in golden}) == len(golden) == 16
    stream = Stream(stream_bundle, precision="fp32", spacing=golden[0].spacing)
    for item in golden:
        assert np.array_equal(stream.push(item.frame).labels, stream_bundle.scheme.decode(item.labels["openvino fp32"]))


def test_verify_finds_a_state_that_is_not_carried_on(stream_bundle):
    """A runtime that began each frame anew would give these labels."""
    golden = load_golden(stream_bundle.file("golden.npz"))
    network = load_backend("openvino", stream_bundle.file("model.fp32.xml"))
    alone = [stream_bundle.preprocessing.segment(g.frame[None], g.spacing, network)[0] for g in golden]
    assert label_agreement(np.stack(alone), np.stack([g.labels["openvino fp32"] for g in golden])) < 0.999
