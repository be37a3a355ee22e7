import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_bundle

from edgeseg.container import MANIFEST, write_sums
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Manifest
from edgeseg.runtime.backends import BACKENDS, PRECISIONS
from edgeseg.runtime.segmenter import Segmenter


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg")


@pytest.fixture(scope="module")
def segmenter(bundle):
    return Segmenter(bundle, threads=1)


def changed(bundle, out, **values):
    """A copy of the bundle whose manifest says something else."""
    import shutil

    shutil.copytree(bundle, out)
    Manifest.read(out / MANIFEST).model_copy(update=values).write(out / MANIFEST)
    write_sums(out)
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_pixels_come_back_labelled_in_their_own_grid(bundle, backend, precision):
    segmenter = Segmenter(bundle, backend, precision, threads=1)
    labels = tiny_bundle.label_image(1, (32, 30))
    found = segmenter.segment(tiny_bundle.LEVELS[labels], (1.5, 1.5))
    assert found.ok
    assert found.labels.dtype == np.uint8
    np.testing.assert_array_equal(found.labels, labels)


def test_an_image_larger_than_the_grid_is_covered_to_its_edges(segmenter):
    labels = np.zeros((90, 70), np.uint8)
    labels[:5, :5], labels[-5:, -5:], labels[40:50, 30:40] = 1, 2, 3
    found = segmenter.segment(tiny_bundle.LEVELS[labels], (1.5, 1.5))
    np.testing.assert_array_equal(found.labels, labels)


def test_volumes_channels_and_integer_pixels_are_taken_as_they_come(segmenter):
    volume = np.stack([tiny_bundle.label_image(i) for i in range(3)])
    pixels = (volume.astype(np.int16) * 100)
    for frames in (pixels, pixels[:, None], pixels.astype(np.float64)):
        np.testing.assert_array_equal(segmenter.segment_volume(frames, (1.5, 1.5)).labels, volume)
    np.testing.assert_array_equal(segmenter.segment(pixels[1][None], (1.5, 1.5)).labels, volume[1])


def test_labels_have_the_values_of_the_scheme_not_class_numbers(bundle, tmp_path):
    labels = Manifest.read(bundle / MANIFEST).labels.model_copy(update={"values": (0, 7, 2, 200)})
    segmenter = Segmenter(changed(bundle, tmp_path / "b.edgeseg", labels=labels), threads=1)
    classes = tiny_bundle.label_image(0)
    found = segmenter.segment(tiny_bundle.LEVELS[classes], (1.5, 1.5)).labels
    np.testing.assert_array_equal(found, np.array([0, 7, 2, 200], np.uint8)[classes])


@pytest.mark.parametrize(("frame", "spacing", "message"), [
    (np.full((8, 9), np.nan), (1, 1), "NaN"),
    (np.array([[1.0, np.inf], [2.0, 3.0]]), (1, 1), "infinite"),
    (np.full((8, 9), 7), (1, 1), "constant"),
    (np.zeros((0, 9)), (1, 1), "shape"),
    (np.zeros((3, 8, 9)), (1, 1), "1 channel"),
    (np.zeros(8), (1, 1), "shape"),
    (np.float32(3), (1, 1), "shape"),
    (np.array([["a", "b"]]), (1, 1), "numbers"),
    (np.eye(4, dtype=complex), (1, 1), "numbers"),
    (np.eye(4), (0, 1), "spacing"),
    (np.eye(4), (1, -2), "spacing"),
    (np.eye(4), (np.nan, 1), "spacing"),
    (np.eye(400), (1e6, 1e6), "spacing"),
])
def test_bad_pixels_are_a_status_and_never_an_exception(segmenter, frame, spacing, message):
    found = segmenter.segment(frame, spacing)
    assert not found.ok
    assert message in found.status
    assert not found.labels.any()
    if np.ndim(frame) == 2:
        assert found.labels.shape == frame.shape


def test_extreme_but_finite_pixels_are_segmented(segmenter):
    for scale in (1e-30, 3e37):
        frame = tiny_bundle.LEVELS[tiny_bundle.label_image(0)] * np.float32(scale / 300)
        assert segmenter.segment(frame, (1.5, 1.5)).ok


def test_a_network_that_fails_is_a_status(bundle):
    segmenter = Segmenter(bundle, threads=1)
    segmenter._network = lambda x: 1 / 0
    found = segmenter.segment(np.eye(40), (1.5, 1.5))
    assert "ZeroDivisionError" in found.status
    assert found.labels.shape == (40, 40)


def test_segmenting_changes_neither_the_frame_nor_later_answers(segmenter):
    frame = tiny_bundle.LEVELS[tiny_bundle.label_image(2)]
    before = frame.copy()
    first = segmenter.segment(frame, (1.5, 1.5)).labels
    segmenter.warm_up()
    segmenter.segment(np.full((9, 9), np.nan), (1, 1))
    np.testing.assert_array_equal(frame, before)
    np.testing.assert_array_equal(segmenter.segment(frame, (1.5, 1.5)).labels, first)


def test_the_network_takes_batches(segmenter):
    x = np.random.default_rng(0).normal(size=(3, 1, 32, 32)).astype(np.float32)
    np.testing.assert_array_equal(segmenter.net(x), np.concatenate([segmenter.net(x[i : i + 1]) for i in range(3)]))


def test_auto_is_fp32_where_nothing_is_proven_and_an_explicit_choice_stands(bundle):
    assert Segmenter(bundle, threads=1).precision == "fp32"
    assert Segmenter(bundle, "onnxruntime", "int8", threads=1).precision == "int8"


PROTOCOLS = ("32x30@1.5", "uint16", "logits"), ("32x30@1.5", "float32", "logits"), ("24x30@1.4x1.6", "uint16", "labels")


@pytest.fixture(scope="module")
def with_graphs(bundle, tmp_path_factory):
    """The bundle with frame graphs for PROTOCOLS, of FP32 only."""
    import shutil

    from edgeseg.bundle.graph import parse_protocol, write_frame_graphs

    folder, protocols = tmp_path_factory.mktemp("a place") / "graphs.edgeseg", [parse_protocol(*p) for p in PROTOCOLS]
    shutil.copytree(bundle, folder)
    for protocol in protocols:
        write_frame_graphs(folder, tiny_bundle.GRID, (0, 1, 2, 3), protocol)
    for path in folder.glob("frames/*/int8.*"):
        path.unlink()
    Manifest.read(folder / MANIFEST).model_copy(update={"frames": tuple(protocols)}).write(folder / MANIFEST)
    write_sums(folder)
    return folder


def broken(*unused):
    raise RuntimeError("the core network ran")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frame_of_a_protocol_runs_in_its_graph_and_gives_the_same_labels(bundle, with_graphs, backend):
    graphs, plain = (Segmenter(b, backend, "fp32", threads=1) for b in (with_graphs, bundle))
    graphs._network = broken
    for shape, dtype, spacing in (((32, 30), np.uint16, (1.5, 1.5)), ((32, 30), np.float32, (1.5 * 1.00009, 1.5))):
        frame = tiny_bundle.LEVELS[tiny_bundle.label_image(1, shape)].astype(dtype)
        for pixels in (frame, frame[None], frame.T.copy().T):  # the last is not contiguous
            found = graphs.segment(pixels, spacing)
            assert found.ok, found.status
            assert found.labels.dtype == np.uint8
            np.testing.assert_array_equal(found.labels, plain.segment(pixels, spacing).labels)


def test_any_other_frame_or_precision_takes_the_numpy_path(with_graphs):
    segmenter = Segmenter(with_graphs, "openvino", "fp32", threads=1)
    segmenter._graphs.load = broken
    for shape, dtype, spacing in (((32, 31), np.uint16, (1.5, 1.5)), ((32, 30), np.int16, (1.5, 1.5)),
                                  ((32, 30), ">u2", (1.5, 1.5)), ((32, 30), np.uint16, (1.5, 1.5002)),
                                  ((24, 30), np.uint16, (1.6, 1.4)), ((30, 32), np.uint16, (1.5, 1.5))):
        labels = tiny_bundle.label_image(0, shape)
        found = segmenter.segment(tiny_bundle.LEVELS[labels].astype(dtype), spacing)
        assert found.ok, found.status
        assert found.labels.any()
    volume = tiny_bundle.LEVELS[np.stack([tiny_bundle.label_image(0, (32, 30))] * 2)].astype(np.uint16)
    assert segmenter.segment_volume(volume, (1.5, 1.5)).labels.any()  # statistics of a volume are not in a graph
    assert segmenter.segment_volume(volume[:1], (1.5, 1.5)).labels.any()
    assert not segmenter.segment(volume[0], (1.5, 1.5)).ok  # this one does match
    int8 = Segmenter(with_graphs, "openvino", "int8", threads=1)
    int8._graphs.load = broken
    assert int8.segment(volume[0], (1.5, 1.5)).ok


def test_a_graph_gets_no_bad_pixels_and_its_failure_is_a_status(with_graphs):
    segmenter = Segmenter(with_graphs, "onnxruntime", "fp32", threads=1)
    assert "constant" in segmenter.segment(np.full((32, 30), 5, np.uint16), (1.5, 1.5)).status
    frame = np.full((32, 30), np.nan, np.float32)
    assert "NaN" in segmenter.segment(frame, (1.5, 1.5)).status
    segmenter._graphs.load = broken
    found = segmenter.segment(tiny_bundle.LEVELS[tiny_bundle.label_image(0, (32, 30))], (1.5, 1.5))
    assert "the core network ran" in found.status
    assert found.labels.shape == (32, 30)
    assert not found.labels.any()


def test_warming_up_loads_every_graph_and_a_first_frame_only_its_own(with_graphs):
    segmenter = Segmenter(with_graphs, "openvino", "fp32", threads=1)
    frame = tiny_bundle.LEVELS[tiny_bundle.label_image(0, (32, 30))].astype(np.uint16)
    assert segmenter._graphs._loaded == {}
    segmenter.segment(frame, (1.5, 1.5))
    assert list(segmenter._graphs._loaded) == ["32x30@1.5-uint16"]
    segmenter.warm_up()
    assert len(segmenter._graphs._loaded) == 3


def test_a_graph_for_other_frames_than_the_manifest_says_is_refused(with_graphs, tmp_path):
    frames = [p.model_copy(update={"size": (30, 32)}) for p in Manifest.read(with_graphs / MANIFEST).frames]
    segmenter = Segmenter(changed(with_graphs, tmp_path / "b.edgeseg", frames=tuple(frames)), "openvino", "fp32",
                          threads=1)
    frame = tiny_bundle.LEVELS[tiny_bundle.label_image(0, (30, 32))].astype(np.uint16)
    assert "the manifest says uint16 (1, 1, 30, 32)" in segmenter.segment(frame, (1.5, 1.5)).status
    with pytest.raises(EdgesegError, match="export the bundle again"):
        segmenter.warm_up()


def test_wrong_choices_and_a_grid_that_does_not_fit_are_refused(bundle, tmp_path):
    fp32 = tiny_bundle.make_bundle(tmp_path / "fp32.edgeseg", precisions=("fp32",))
    grid = Manifest.read(bundle / MANIFEST).preprocessing.model_copy(update={"size": (64, 64)})
    other = changed(bundle, tmp_path / "other.edgeseg", preprocessing=grid)
    for arguments, message in (
        ((bundle, "cuda"), "openvino, onnxruntime"),
        ((bundle, "openvino", "fp16"), "auto, fp32, bf16, int8"), ((bundle, "onnxruntime", "bf16"), "bf16"),
        ((fp32, "openvino", "int8"), r"no model\.int8\.xml"), ((other,), r"takes \(1, 1, 32, 32\)"),
    ):
        with pytest.raises(EdgesegError, match=message):
            Segmenter(*arguments, threads=1)
    with pytest.raises(EdgesegError, match="threads"):
        Segmenter(bundle, threads=0)


def test_a_fresh_process_needs_no_torch_no_network_and_no_home(bundle, tmp_path):
    code = f"""
import sys, numpy as np, edgeseg
for backend in ("openvino", "onnxruntime"):
    s = edgeseg.Segmenter({str(bundle)!r}, backend=backend, threads=1)
    s.warm_up()
    assert s.segment(np.eye(40), (1.5, 1.5)).ok
loaded = {{m.split(".")[0] for m in sys.modules if sys.modules[m]}}
heavy = loaded & {{"torch", "onnx", "nncf", "lightning", "nibabel", "matplotlib", "scipy", "openvino_telemetry"}}
assert not heavy, heavy
"""
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "HOME": str(home)})
    assert done.returncode == 0, done.stderr
    assert not list(home.rglob("*"))  # both runtimes would leave the identifier of their telemetry there
