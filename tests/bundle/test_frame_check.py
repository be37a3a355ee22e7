"""The gate on frame graphs, with real graphs around the smallest network there is: sound ones and damaged ones."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny_bundle

from edgeseg import geometry
from edgeseg.bundle.frame_check import FRAMES, check_frame_graph, protocol_frames
from edgeseg.bundle.graph import parse_protocol, write_frame_graphs
from edgeseg.bundle.score import score_label_return, score_streaming
from edgeseg.case import Case
from edgeseg.errors import EdgesegError, GateFailed
from edgeseg.measure.evaluate import evaluate
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.readers import open_data
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.runtime.backends import BACKENDS, PRECISIONS, SUFFIX, load_backend
from edgeseg.runtime.frame_graph import graph_file
from edgeseg.runtime.telemetry import telemetry_off

telemetry_off()  # as the build process does
VALUES = (0, 1, 2, 4)
GRID = Preprocessing((32, 32), (1.5, 1.5), (Normalisation("none"),), window="centre")
STRETCHED = replace(GRID, spacing=(1.45, 1.5))
FINE = "80x72@0.75"
"""Native pixels of half the grid's: here the two ways back give different labels."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return open_data(f"nnunet:{tiny_bundle.write_nnunet_data(tmp_path_factory.mktemp('a place') / 'Dataset001_Tiny')}")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Core files with the graphs of both ways back. ("int8" is FP32: only which limits it is held to counts here.)"""
    import openvino as ov

    folder = tmp_path_factory.mktemp("a bundle")
    for precision in PRECISIONS:
        network = tiny_bundle.write_network(folder / f"model.{precision}.onnx")
        ov.save_model(ov.convert_model(network), network.with_suffix(".xml"), compress_to_fp16=False)
    for back in ("logits", "labels"):
        write_frame_graphs(folder, GRID, VALUES, parse_protocol(FINE, "uint16", back))
    return folder


def other_graph(folder, backend, precision, preprocessing=GRID, values=VALUES, back="logits", made="logits"):
    """Put a graph that was made otherwise in the place of that of one runtime and precision."""
    scratch = folder.parent / "scratch"
    scratch.mkdir()
    for path in folder.glob("model.*"):
        shutil.copy(path, scratch)
    protocol, other = (parse_protocol(FINE, "uint16", b) for b in (back, made))
    write_frame_graphs(scratch, preprocessing, values, other)
    for suffix in {SUFFIX[backend], "bin" if backend == "openvino" else "onnx"}:
        (scratch / graph_file(other, backend, precision)).with_suffix(f".{suffix}").replace(
            (folder / graph_file(protocol, backend, precision)).with_suffix(f".{suffix}"))
    return protocol


def test_frame_graphs_of_one_precision_are_written_and_checked_alone(sound, data, tmp_path):
    for path in sound.glob("model.*"):
        shutil.copy(path, tmp_path)
    protocol = parse_protocol(FINE, "uint16")
    written = write_frame_graphs(tmp_path, GRID, VALUES, protocol, ("int8",))
    assert sorted(p.name for p in written) == ["int8.bin", "int8.onnx", "int8.xml"]
    assert all(p.read_bytes() == (sound / p.relative_to(tmp_path)).read_bytes() for p in written)
    assert {c.precision for c in check_frame_graph(tmp_path, protocol, data, GRID, VALUES)} == {"int8"}


@pytest.mark.parametrize("back", ["logits", "labels"])
def test_sound_graphs_pass_with_either_way_back(sound, data, back):
    found = check_frame_graph(sound, parse_protocol(FINE, "uint16", back), data, GRID, VALUES)
    assert [(c.backend, c.precision) for c in found] == [(b, p) for b in BACKENDS for p in PRECISIONS]
    assert all(c.agreement >= 0.995 and c.least_dice >= 0.98 for c in found)


@pytest.mark.parametrize(("backend", "precision", "back", "damage"), [
    ("openvino", "fp32", "logits", {"preprocessing": STRETCHED}),
    ("onnxruntime", "int8", "logits", {"preprocessing": STRETCHED}),
    ("onnxruntime", "fp32", "labels", {"preprocessing": STRETCHED}),
    ("openvino", "int8", "labels", {"preprocessing": STRETCHED}),
    ("onnxruntime", "int8", "labels", {"values": (0, 1, 4, 2)}),
    ("onnxruntime", "fp32", "labels", {"made": "logits"}),  # nearly the same labels, but not those asked for
    ("openvino", "int8", "labels", {"made": "logits"}),
    ("openvino", "int8", "logits", {"made": "labels"}),
])
def test_one_damaged_graph_is_refused_by_name(sound, data, tmp_path, backend, precision, back, damage):
    folder = shutil.copytree(sound, tmp_path / "bundle")
    protocol = other_graph(folder, backend, precision, **{"back": back, "made": back, **damage})
    with pytest.raises(GateFailed, match=f"{protocol.name}, {backend} {precision}: differs from the NumPy") as error:
        check_frame_graph(folder, protocol, data, GRID, VALUES)
    assert "\n" not in str(error.value)


def test_only_graphs_that_are_there_are_checked(sound, data, tmp_path):
    folder = shutil.copytree(sound, tmp_path / "bundle")
    protocol = parse_protocol(FINE, "uint16")
    for precision in PRECISIONS:
        (folder / graph_file(protocol, "openvino", precision)).unlink()
    (folder / graph_file(protocol, "onnxruntime", "int8")).unlink()
    found = check_frame_graph(folder, protocol, data, GRID, VALUES)
    assert [(c.backend, c.precision) for c in found] == [("onnxruntime", "fp32")]


def hidden(count):
    """Cases whose only bright pixel lies in a corner, which a small frame does not reach."""
    frames = np.zeros((2, 1, 40, 36), np.float32)
    frames[:, :, 0, 0] = 900
    refs = tuple(CaseRef(f"c{i}", f"p{i}", "dev", None, None, None,
                         lambda i=i: Case(f"c{i}", f"p{i}", frames, (1.5, 1.5))) for i in range(count))
    return Dataset("hidden", "test:hidden", refs, None, "none")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_data_without_any_contrast_in_the_frame_is_one_line(sound, count):
    protocol = parse_protocol("20x20@1.5", "uint16")
    with pytest.raises(EdgesegError, match=r"20x20@1\.5-uint16: no frame of test:hidden has any contrast") as error:
        check_frame_graph(sound, protocol, hidden(count), GRID, VALUES)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_frames_come_from_every_case_as_the_protocol_says(data):
    protocol = parse_protocol("30x28@2", "uint8")
    found = protocol_frames(data, protocol)
    assert len(found) == sum(len(case.frames) for case in data) < FRAMES
    assert all(f.shape == (1, 30, 28) and f.dtype == np.uint8 and f.max() == 255 for f in found)  # 300 is scaled
    assert len(protocol_frames(data, protocol, 2)) == 2


def test_the_score_of_the_label_return_is_that_of_the_arg_max_on_the_grid(sound, data):
    net = load_backend("onnxruntime", sound / "model.fp32.onnx", 1)
    same = [score(net, data, GRID, data.scheme).patient_dice() for score in (score_label_return, score_streaming)]
    assert same[0] == same[1]  # frames of the grid's spacing have no way to go
    coarse = replace(GRID, spacing=(3.1, 3.1))
    found = score_label_return(net, data, coarse, data.scheme)

    def step_by_step(case):
        canvas = coarse.to_canvas(case.frames, case.spacing)
        labels = np.concatenate([net(geometry.take_window(c[None], geometry.centre_start(c.shape[-2:], (32, 32)),
                                                          (32, 32))) for c in canvas]).argmax(axis=1)
        start = geometry.centre_start((32, 32), canvas.shape[-2:])
        small = geometry.take_window(labels.astype(np.uint8), start, canvas.shape[-2:])
        return geometry.resize_labels(small, case.frames.shape[-2:])

    assert found.patient_dice() == evaluate(step_by_step, data, data.scheme, None).patient_dice()
    assert found.patient_dice() != score_streaming(net, data, coarse, data.scheme).patient_dice()
