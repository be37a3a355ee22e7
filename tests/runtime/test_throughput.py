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
