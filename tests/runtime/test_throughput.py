import shutil
import threading

import nibabel as nib
import numpy as np
import pytest
import tiny_bundle

from edgeseg.container import MANIFEST, write_sums
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Manifest
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.runtime import throughput
from edgeseg.runtime.cpu import native_bf16
from edgeseg.runtime.predict import predict
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.runtime.threads import allowed_cpus
from edgeseg.runtime.throughput import Throughput, checked_streams

CPUS = len(allowed_cpus())
STREAMS = min(2, CPUS)
SPACING = (1.31, 1.7)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg")


@pytest.fixture(scope="module")
def streams(bundle):
    return Throughput(bundle, "fp32", STREAMS)


@pytest.fixture(scope="module")
def segmenter(bundle):
    return Segmenter(bundle, precision="fp32", threads=1)


def noisy(count, shape, seed=0):
    """Label images under noise, so that a frame in another's place or another statistic changes the labels."""
    rng = np.random.default_rng(seed)
    clean = np.stack([tiny_bundle.LEVELS[tiny_bundle.label_image(i, shape)] for i in range(count)])
    return clean + rng.normal(0, 60, clean.shape).astype(np.float32)


def assert_same(found, expected):
    assert found.status == expected.status
    assert found.labels.dtype == expected.labels.dtype
    np.testing.assert_array_equal(found.labels, expected.labels)


@pytest.mark.parametrize("shape", [(30, 28), (90, 70)], ids=["one window", "tiles"])
@pytest.mark.parametrize("count", [1, 23], ids=["one frame", "more frames than requests"])
def test_labels_are_those_of_the_segmenter(streams, segmenter, shape, count):
    frames = noisy(count, shape)
    canvas = segmenter.preprocessing.to_canvas(frames[:, None], SPACING)
    assert (len(segmenter.preprocessing.starts(canvas.shape[-2:])) > 1) == (shape[0] == 90)
    expected = segmenter.segment_volume(frames, SPACING)
    assert len(np.unique(expected.labels)) == 4
    assert_same(streams.segment_volume(frames, SPACING), expected)
    assert_same(streams.segment_volume(frames[:, None].astype(np.float64), SPACING), expected)


@pytest.mark.parametrize("precision", ["int8", *["bf16"] * native_bf16()])
def test_every_precision_gives_the_labels_of_its_segmenter(bundle, precision):
    frames = noisy(9, (40, 36))
    expected = Segmenter(bundle, precision=precision, threads=1).segment_volume(frames, SPACING)
    assert_same(Throughput(bundle, precision, STREAMS).segment_volume(frames, SPACING), expected)


@pytest.mark.parametrize("window", ["centre", "tiles"])
def test_intensities_are_normalised_on_the_whole_volume(bundle, tmp_path, window):
    grid = Preprocessing((32, 32), (1.5, 1.5), (Normalisation("zscore"),), window=window)
    folder = tmp_path / "zscore.edgeseg"
    shutil.copytree(bundle, folder)
    manifest = Manifest.read(folder / MANIFEST)
    manifest.model_copy(update={"preprocessing": tiny_bundle.grid_of(grid)}).write(folder / MANIFEST)
    tiny_bundle.write_network(folder / "model.fp32.onnx", levels=np.array([-0.5, 0, 1, 2], np.float32))
    import openvino as ov

    ov.save_model(ov.convert_model(folder / "model.fp32.onnx"), folder / "model.fp32.xml", compress_to_fp16=False)
    write_sums(folder)
    frames = noisy(7, (70, 50)) * np.arange(1, 8)[:, None, None]
    segmenter, streams = Segmenter(folder, precision="fp32", threads=1), Throughput(folder, "fp32", STREAMS)
    expected = segmenter.segment_volume(frames, SPACING)
    assert_same(streams.segment_volume(frames, SPACING), expected)
    assert not np.array_equal(segmenter.segment(frames[0], SPACING).labels, expected.labels[0])


def test_volumes_come_back_in_their_order_whatever_their_size(streams, segmenter):
    volumes = [(noisy(n, shape, n), SPACING) for n, shape in ((9, (40, 36)), (1, (90, 70)), (4, (31, 60)), (2, (9, 9)))]
    volumes.insert(2, (np.full((3, 8, 9), np.nan), SPACING))  # one that is refused does not disturb its neighbours
    found = list(streams.segment_volumes(iter(volumes)))
    assert len(found) == len(volumes)
    for one, (frames, spacing) in zip(found, volumes, strict=True):
        assert_same(one, segmenter.segment_volume(frames, spacing))


def test_volumes_are_read_only_a_few_ahead(streams):
    read = []

    def volumes():
        for i in range(20):
            read.append(i)
            yield noisy(1, (40, 36)), SPACING

    found = streams.segment_volumes(volumes())
    next(found)
    assert len(read) <= throughput.VOLUMES + 1
    assert len(list(found)) == 19
    assert read == list(range(20))


def test_an_error_of_the_reader_is_the_callers(streams):
    def volumes():
        yield noisy(1, (40, 36)), SPACING
        raise EdgesegError("truncated")

    with pytest.raises(EdgesegError, match="truncated"):
        list(streams.segment_volumes(volumes()))


def test_several_threads_may_share_it(streams, segmenter):
    volumes = [noisy(12, (70, 50), seed) for seed in range(4)]
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: streams.segment_volume(volumes[i], SPACING)}))
               for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    for i, frames in enumerate(volumes):
        assert_same(found[i], segmenter.segment_volume(frames, SPACING))


@pytest.mark.parametrize(("frames", "spacing"), [
    (np.full((2, 8, 9), np.nan), (1, 1)), (np.full((2, 8, 9), 7), (1, 1)), (np.zeros((0, 8, 9)), (1, 1)),
    (np.zeros((2, 3, 8, 9)), (1, 1)), (np.float32(3), (1, 1)), (np.eye(4)[None], (0, 1)),
    (np.eye(400)[None], (1e6, 1e6)),
])
def test_bad_pixels_are_the_same_status(streams, segmenter, frames, spacing):
    found = streams.segment_volume(frames, spacing)
    assert not found.ok
    assert_same(found, segmenter.segment_volume(frames, spacing))


def test_single_frames_cases_and_batches_are_as_with_a_segmenter(streams, segmenter):
    frame = noisy(1, (40, 36))[0]
    assert_same(streams.segment(frame, SPACING), segmenter.segment(frame, SPACING))
    x = np.random.default_rng(0).normal(size=(7, 1, 32, 32)).astype(np.float32)
    np.testing.assert_array_equal(streams.net(x), segmenter.net(x))
    streams.warm_up()


def test_a_request_without_an_answer_is_a_status(bundle, monkeypatch):
    monkeypatch.setattr(throughput, "PATIENCE", 0.1)
    streams = Throughput(bundle, "fp32", 1, 1)
    streams._queue._requests.set_callback(lambda request, found: None)
    found = streams.segment_volume(noisy(5, (40, 36)), SPACING)
    assert "no answer for 0.1 s" in found.status
    assert found.labels.shape == (5, 40, 36)
    assert not found.labels.any()


def test_it_runs_with_the_numbers_of_the_single_stream_backend(streams, segmenter):
    assert streams.precision == segmenter.precision == "fp32"
    ours, theirs = streams._queue.compiled, segmenter._network.compiled
    for name in ("INFERENCE_PRECISION_HINT", "CPU_DENORMALS_OPTIMIZATION"):
        assert ours.get_property(name) == theirs.get_property(name)
    assert ours.get_property("NUM_STREAMS") == streams.streams == STREAMS


def test_streams_take_one_thread_each_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr(throughput, "allowed_cpus", lambda: set(range(8)))
    monkeypatch.setattr(throughput, "cpu_quota", lambda: None)
    assert checked_streams("auto", 4) == (4, 4)
    assert checked_streams(2, 4) == (2, 4)
    assert checked_streams(8, None) == (8, max(8, throughput.checked_threads(None)))
    monkeypatch.setattr(throughput, "cpu_quota", lambda: 2.5)
    with pytest.raises(EdgesegError, match="4 streams: this process may use 3 CPUs"):
        checked_streams(4, 4)


@pytest.mark.parametrize(("streams", "threads", "message"), [
    (0, None, "at least 1, not 0"), (-1, 1, "at least 1"), ("many", 1, "auto or at least 1, not many"),
    (CPUS + 1, None, f"may use {CPUS} CPUs"), ("auto", 0, "threads must be at least 1"),
    (1, 0, "threads must be at least 1"),
    *([(2, 1, r"2 streams share 1 thread\(s\)")] if CPUS > 1 else []),
])
def test_impossible_streams_are_one_line(bundle, streams, threads, message):
    with pytest.raises(EdgesegError, match=message) as caught:
        Throughput(bundle, "fp32", streams, threads)
    assert "\n" not in str(caught.value)


def test_masks_of_an_exam_are_the_same_files(streams, segmenter, tmp_path):
    exam = noisy(12, (40, 36)).reshape(4, 3, 40, 36).astype(np.int16)  # phases, slices
    path = tmp_path / "an exam.nii.gz"
    nib.save(nib.Nifti1Image(exam.T, np.diag([1.5, 1.5, 8, 1])), path)
    masks = []
    for name, who in (("a", segmenter), ("b", streams)):
        (result,) = predict(who, [path], tmp_path / name)
        assert result.error == ""
        assert result.frames == 12
        masks.append(np.asarray(nib.load(result.mask).dataobj))
    np.testing.assert_array_equal(*masks)
    assert masks[0].shape == (36, 40, 3, 4)
    assert masks[0].any()


def test_an_exam_with_a_bad_phase_is_an_error_and_no_mask(streams, tmp_path):
    exam = noisy(12, (40, 36)).reshape(4, 3, 40, 36).astype(np.int16)
    exam[2] = 5
    nib.save(nib.Nifti1Image(exam.T, np.diag([1.5, 1.5, 8, 1])), tmp_path / "exam.nii.gz")
    (result,) = predict(streams, [tmp_path / "exam.nii.gz"], tmp_path / "out")
    assert "constant" in result.error
    assert not (tmp_path / "out").exists()


PROTOCOLS = ("32x30@1.5", "uint16", "logits"), ("40x36@1.31", "float32", "logits"), ("24x30@1.4x1.6", "int16", "labels")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """A bundle of z-scored frames with a frame graph for each of PROTOCOLS."""
    import openvino as ov

    from edgeseg.bundle.graph import parse_protocol, write_frame_graphs

    folder = tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "graphs.edgeseg", precisions=("fp32",))
    grid = Preprocessing((32, 32), (1.5, 1.5), (Normalisation("zscore"),), window="centre")
    tiny_bundle.write_network(folder / "model.fp32.onnx", levels=np.array([-0.5, 0, 1, 2], np.float32))
    ov.save_model(ov.convert_model(folder / "model.fp32.onnx"), folder / "model.fp32.xml", compress_to_fp16=False)
    protocols = [parse_protocol(*p) for p in PROTOCOLS]
    for protocol in protocols:
        write_frame_graphs(folder, grid, (0, 1, 2, 3), protocol)
    Manifest.read(folder / MANIFEST).model_copy(update={
        "frames": tuple(protocols), "preprocessing": tiny_bundle.grid_of(grid)}).write(folder / MANIFEST)
    write_sums(folder)
    return folder


@pytest.fixture(scope="module")
def frame_streams(graphs):
    return Throughput(graphs, "fp32", STREAMS)


@pytest.fixture(scope="module")
def frame_segmenter(graphs):
    return Segmenter(graphs, precision="fp32", threads=1)


def raw(protocol, count=23):
    """Frames of a protocol, each brighter than the last, and their spacing."""
    size, dtype = tuple(map(int, protocol[0].split("@")[0].split("x"))), protocol[1]
    mm = [float(v) for v in protocol[0].split("@")[1].split("x")]
    frames = np.clip(noisy(count, size) + 100, 0, None) * np.arange(1, count + 1)[:, None, None]
    return list(frames.astype(dtype)), (mm[0], mm[-1])


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=[p[1] for p in PROTOCOLS])
def test_frames_come_back_in_order_with_the_labels_of_segment(frame_streams, frame_segmenter, protocol, monkeypatch):
    frames, spacing = raw(protocol)
    expected = [frame_segmenter.segment(f, spacing) for f in frames]
    assert len({e.labels.tobytes() for e in expected}) == len(frames)
    monkeypatch.setattr(frame_streams, "segment", None)  # every frame goes through the graph
    for given in (frames, [f[None] for f in frames], [f.T.copy().T for f in frames]):
        found = list(frame_streams.segment_frames(iter(given), spacing))
        assert len(found) == len(frames)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_a_bad_frame_is_its_status_and_does_not_disturb_its_neighbours(frame_streams, frame_segmenter):
    (good, spacing), (floats, _) = raw(PROTOCOLS[0], 6), raw(PROTOCOLS[1], 2)
    holes = floats[0].copy()
    holes[3, 4], floats[1][5, 5] = np.nan, np.inf
    dot, frame = np.full_like(good[0], 7), np.zeros_like(good[0])
    dot[20, 3], frame[16, :] = 9, 5  # corner and centre are the same, and are not
    frames = [np.full_like(good[0], 7), good[0], good[1], np.zeros_like(good[0]), np.float32(3), good[2], holes, dot,
              frame, floats[0], floats[1], np.stack([good[0]] * 2), good[0][None, None], good[3],
              np.zeros((0, 30), np.uint16), good[0].astype(complex), good[4]]
    for where in (spacing, (1.31, 1.31), (0, 1), (np.nan, 1), (1,), (1e6, 1e6)):
        found = list(frame_streams.segment_frames(frames, where))
        for one, frame in zip(found, frames, strict=True):
            assert_same(one, frame_segmenter.segment(frame, where))
    found = list(frame_streams.segment_frames(frames, spacing))
    assert [f.ok for f in found[:6]] == [False, True, True, False, False, True]


def test_frames_of_no_protocol_are_segmented_too(frame_streams, frame_segmenter):
    frames = list(noisy(9, (41, 36)))
    for one, frame in zip(frame_streams.segment_frames(frames, SPACING), frames, strict=True):
        assert_same(one, frame_segmenter.segment(frame, SPACING))


def test_frames_are_read_a_few_ahead_and_may_share_one_buffer(frame_streams, frame_segmenter):
    frames, spacing = raw(PROTOCOLS[0], 40)
    read, buffer = [], np.empty_like(frames[0])

    def scanner():
        for i, frame in enumerate(frames):
            read.append(i)
            buffer[...] = frame
            yield buffer

    found = frame_streams.segment_frames(scanner(), spacing)
    first = next(found)
    assert len(read) == throughput.REQUESTS_PER_STREAM * STREAMS * throughput.FRAMES_PER_REQUEST + 1
    for one, frame in zip([first, *found], frames, strict=True):
        assert_same(one, frame_segmenter.segment(frame, spacing))


def test_whoever_wants_no_more_frames_just_stops(frame_streams, frame_segmenter):
    frames, spacing = raw(PROTOCOLS[0])
    for _ in range(20):
        assert_same(next(frame_streams.segment_frames(frames, spacing)), frame_segmenter.segment(frames[0], spacing))


def test_several_threads_may_send_frames(frame_streams, frame_segmenter):
    sent = {i: raw(protocol) for i, protocol in enumerate((*PROTOCOLS, PROTOCOLS[0]))}
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: list(frame_streams.segment_frames(*sent[i]))}))
               for i in sent]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    for i, (frames, spacing) in sent.items():
        for one, frame in zip(found[i], frames, strict=True):
            assert_same(one, frame_segmenter.segment(frame, spacing))


def test_a_frame_without_an_answer_is_a_status(graphs, monkeypatch):
    (frames, spacing), labels = raw(PROTOCOLS[0], 9), throughput.FrameRequest.labels
    broken = iter([False, True] * 9)
    monkeypatch.setattr(throughput.FrameRequest, "labels",
                        lambda request, slot: 1 / 0 if next(broken) else labels(request, slot))
    found = list(Throughput(graphs, "fp32", STREAMS).segment_frames(frames, spacing))
    assert [f.ok for f in found] == [True, False] * 4 + [True]
    assert found[1].status == "failed: ZeroDivisionError: division by zero"
    assert found[1].labels.shape == frames[1].shape
    assert not found[1].labels.any()


def test_a_graph_of_one_frame_at_a_time_gives_the_same(graphs, frame_segmenter, tmp_path):
    import openvino as ov
    from openvino import opset13 as ops

    folder = tmp_path / "one.edgeseg"
    shutil.copytree(graphs, folder)
    path = folder / "frames" / "32x30@1.5-uint16" / "fp32.xml"
    model = ov.Core().read_model(graphs / path.relative_to(folder))
    frame = model.get_parameters()[0]
    users = list(frame.output(0).get_target_inputs())
    fixed = ops.reshape(frame, ops.constant(np.array([1, 1, 32, 30])), special_zero=False)
    for user in users:
        user.replace_source_output(fixed.output(0))
    ov.save_model(model, path, compress_to_fp16=False)
    write_sums(folder)
    (frames, spacing), streams = raw(PROTOCOLS[0], 9), Throughput(folder, "fp32", STREAMS)
    assert streams._frame_model(streams._graphs.protocols[0]).inputs[0].shape[0] == 1
    for one, frame in zip(streams.segment_frames(frames, spacing), frames, strict=True):
        assert_same(one, frame_segmenter.segment(frame, spacing))


def test_a_frame_graph_that_cannot_be_loaded_is_the_callers_error(graphs, tmp_path):
    folder = tmp_path / "broken.edgeseg"
    shutil.copytree(graphs, folder)
    (folder / "frames" / "32x30@1.5-uint16" / "fp32.xml").write_text("<net")
    write_sums(folder)
    frames, spacing = raw(PROTOCOLS[0], 2)
    with pytest.raises(EdgesegError, match="cannot load this network"):
        list(Throughput(folder, "fp32", STREAMS).segment_frames(frames, spacing))
