"""Streams on a real recurrent bundle: what a network remembers, and what becomes of it when frames do not come."""

import subprocess
import sys

import numpy as np
import pytest
import tiny_bundle
import tiny_clips

from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.runtime.backends import BACKENDS, load_backend, model_file
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.runtime.stream import GAP, Stream
from edgeseg.runtime.throughput import Throughput

FRAMES = tiny_clips.clip(7, 8)[0]
EVERY = pytest.mark.parametrize("backend", BACKENDS)


@pytest.fixture(scope="module")
def shared(stream_bundle):
    return Stream(stream_bundle, "onnxruntime", "fp32", threads=1)


@pytest.fixture
def stream(shared):
    shared.reset()
    shared.frame_time = None
    return shared


def labels(stream, frames):
    return np.stack([stream.push(f).labels for f in frames])


@pytest.fixture(scope="module")
def expected(stream_bundle):
    """Labels of FRAMES as one clip."""
    found = Segmenter(stream_bundle, "onnxruntime", "fp32", 1).segment_volume(FRAMES, (1.0, 1.0))
    assert found.ok
    return found.labels


@EVERY
def test_two_hundred_steps_are_the_whole_clip_in_torch(stream_bundle, clip_run, backend):
    import torch

    clip = tiny_clips.clip(3, 200)[0] / 255
    with torch.inference_mode():
        whole = clip_run.student()(torch.from_numpy(clip[None]))[0].numpy()
    network = load_backend(backend, stream_bundle.file(model_file(backend, "fp32")), 1)
    for _ in range(2):  # as often as it is reset
        network.reset()
        steps = np.concatenate([network(x[None]) for x in clip])
        assert np.abs(steps - whole).max() < 1e-4
    assert np.abs(whole[100:] - whole[:100]).max() > 1e-2


@EVERY
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_stream_segments_as_the_clip_of_its_frames(stream_bundle, backend, precision):
    whole = Segmenter(stream_bundle, backend, precision, 1).segment_volume(FRAMES, (1.0, 1.0)).labels
    stream = Stream(stream_bundle, backend, precision, threads=1)
    np.testing.assert_array_equal(labels(stream, FRAMES), whole)
    assert 0.1 < whole.mean() < 0.9


def test_what_came_before_matters(stream_bundle, expected):
    alone = Segmenter(stream_bundle, "onnxruntime", "fp32", 1)
    single = np.stack([alone.segment(f, (1.0, 1.0)).labels for f in FRAMES])
    np.testing.assert_array_equal(single[0], expected[0])
    assert all((a != b).any() for a, b in zip(single[1:], expected[1:], strict=True))


def test_frames_are_numbered_and_a_reset_begins_anew(stream, expected):
    for _ in range(2):
        results = [stream.push(f) for f in FRAMES]
        assert [(r.frame, r.remembered, r.status) for r in results] == [(i, i, "ok") for i in range(len(FRAMES))]
        np.testing.assert_array_equal(np.stack([r.labels for r in results]), expected)
        stream.reset()


BAD = {"NaN": np.where(np.arange(40) == 3, np.nan, FRAMES[0]), "constant": np.full((1, 32, 40), 9.0),
       "channel": np.zeros((2, 32, 40)), "numbers": np.full((1, 32, 40), "x"), "expected": np.float32(3)}


@pytest.mark.parametrize("named", BAD)
def test_a_bad_frame_is_flagged_background_and_leaves_a_clean_state(stream, expected, named):
    labels(stream, FRAMES[:3])
    found = stream.push(BAD[named])
    assert named in found.status
    assert not found.ok
    assert not found.labels.any()
    assert found.labels.dtype == np.uint8
    assert (found.frame, found.remembered) == (3, 0)
    np.testing.assert_array_equal(labels(stream, FRAMES), expected)


def test_another_size_is_flagged_background_and_the_stream_goes_on_in_it(stream, stream_bundle):
    labels(stream, FRAMES[:3])
    larger = np.pad(FRAMES, ((0, 0), (0, 0), (6, 6), (4, 4)), mode="reflect")
    found = stream.push(larger[0])
    assert found.status.startswith("size")
    assert found.labels.shape == (44, 48)
    assert not found.labels.any()
    whole = Segmenter(stream_bundle, "onnxruntime", "fp32", 1).segment_volume(larger[1:], (1.0, 1.0)).labels
    np.testing.assert_array_equal(labels(stream, larger[1:]), whole)


@pytest.mark.parametrize(("times", "named"), [
    ([0, 0.02, 0.04, 0.04 + 0.02 * GAP * 1.1], "gap"), ([5, 5.02, 5.04, 5.04], "time"), ([5, 5.02, 5.04, 4], "time"),
    ([0, 0.02, 0.04, np.nan], "time")])
def test_a_gap_or_a_clock_that_stands_resets_and_segments_the_frame_as_a_first_one(stream, expected, times, named):
    results = [stream.push(f, t) for f, t in zip([*FRAMES[4:7], FRAMES[0]], times, strict=True)]
    assert [r.status for r in results[:3]] == ["ok"] * 3
    assert results[3].status.startswith(named)
    assert results[3].remembered == 0
    after = [stream.push(f, 5.1 + 0.02 * i) for i, f in enumerate(FRAMES[1:])] if named == "time" else []
    np.testing.assert_array_equal(results[3].labels, expected[0])
    if times[3] == 5.04:  # 0.06 s later: no gap
        assert [r.status for r in after] == ["ok"] * len(after)
        np.testing.assert_array_equal(np.stack([r.labels for r in after]), expected[1:])


def test_a_pause_within_the_limit_is_no_gap(stream, expected):
    times = np.cumsum([0, 0.02, 0.02, 0.02 * GAP * 0.9, 0.02, 0.02, 0.02, 0.02])
    results = [stream.push(f, t) for f, t in zip(FRAMES, times, strict=True)]
    assert all(r.ok for r in results)
    np.testing.assert_array_equal(np.stack([r.labels for r in results]), expected)


def test_a_known_frame_time_tells_a_gap_from_the_second_frame_on(stream):
    stream.frame_time = 0.02
    assert stream.push(FRAMES[0], 0).ok
    assert stream.push(FRAMES[1], 1.0).status.startswith("gap")


def test_a_stalled_source_gets_the_same_labels_and_the_state_waits(stream, expected):
    first = labels(stream, FRAMES[:3])
    for _ in range(3):
        stalled = stream.push(FRAMES[2])
        assert stalled.status.startswith("stall")
        np.testing.assert_array_equal(stalled.labels, first[-1])
    np.testing.assert_array_equal(labels(stream, FRAMES[3:]), expected[3:])


def test_a_result_is_the_callers_own(stream, expected):
    stream.push(FRAMES[0]).labels[...] = 7
    np.testing.assert_array_equal(stream.push(FRAMES[0]).labels, expected[0])


def test_each_tile_of_a_large_frame_has_its_own_memory(stream_bundle, tmp_path):
    wide = np.concatenate([FRAMES, 255 - FRAMES], axis=-1)
    tiled = tiny_bundle.copy_bundle(stream_bundle.path, tmp_path / "tiled.edgeseg")
    text = (tiled / "manifest.json").read_text()
    assert '"window": "centre"' in text
    (tiled / "manifest.json").write_text(text.replace('"window": "centre"', '"window": "tiles"'))
    tiny_bundle.write_sums(tiled)
    whole = Segmenter(tiled, "onnxruntime", "fp32", 1).segment_volume(wide, (1.0, 1.0)).labels
    np.testing.assert_array_equal(labels(Stream(tiled, "onnxruntime", "fp32", 1), wide), whole)
    assert whole[:, :, 44:].any()


def test_a_bundle_without_states_streams_as_its_segmenter(tmp_path):
    bundle = open_bundle(tiny_bundle.make_bundle(tmp_path / "plain.edgeseg", precisions=("fp32",)))
    stream, segmenter = Stream(bundle, precision="fp32", spacing=(1.5, 1.5)), Segmenter(bundle, precision="fp32")
    assert bundle.manifest.stream is None
    for i, time in enumerate([0, 0.02, 9, 1]):
        frame = tiny_bundle.frame(i % 3)
        found = stream.push(frame, time)
        assert (found.status, found.frame) == ("ok", i)
        np.testing.assert_array_equal(found.labels, segmenter.segment(frame, (1.5, 1.5)).labels)
    assert not stream.push(np.full((32, 32), np.nan)).ok


def test_several_streams_at_once_are_refused_for_a_network_with_states(stream_bundle):
    with pytest.raises(EdgesegError, match="one after the other"):
        Throughput(stream_bundle, "fp32", 1, 1)


def test_a_spacing_that_is_none_is_refused(stream_bundle):
    with pytest.raises(EdgesegError, match="spacing"):
        Stream(stream_bundle, "onnxruntime", "fp32", spacing=(0.0, 1.0))


def test_streaming_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", "import edgeseg, sys; edgeseg.Stream; print('torch' in sys.modules)"],
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
