import os
import subprocess
import sys

import numpy as np
import pytest
import tiny_bundle

from edgeseg.container import MANIFEST, open_bundle, write_sums
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


def test_auto_is_int8_only_where_it_was_measured_to_agree(bundle, tmp_path):
    measured = open_bundle(bundle).manifest.measured
    poor = measured.model_copy(update={"checks": tuple(
        c.model_copy(update={"label_agreement": 0.9}) if c.precision == "int8" and c.backend == "onnxruntime" else c
        for c in measured.checks)})
    other = changed(bundle, tmp_path / "b.edgeseg", measured=poor)
    assert Segmenter(other, "openvino", threads=1).precision == "int8"
    assert Segmenter(other, "onnxruntime", threads=1).precision == "fp32"
    assert Segmenter(other, "onnxruntime", "int8", threads=1).precision == "int8"


def test_wrong_choices_and_a_grid_that_does_not_fit_are_refused(bundle, tmp_path):
    fp32 = tiny_bundle.make_bundle(tmp_path / "fp32.edgeseg", precisions=("fp32",))
    grid = Manifest.read(bundle / MANIFEST).preprocessing.model_copy(update={"size": (64, 64)})
    other = changed(bundle, tmp_path / "other.edgeseg", preprocessing=grid)
    for arguments, message in (
        ((bundle, "cuda"), "openvino, onnxruntime"), ((bundle, "openvino", "bf16"), "auto, fp32"),
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
