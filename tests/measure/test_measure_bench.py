import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundle

from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import FrameProtocol
from edgeseg.measure import bench as bench_module
from edgeseg.measure.bench import RowSpec, bench_bundle, scanner_frames
from edgeseg.measure.document import one_line
from edgeseg.measure.turns import Job
from edgeseg.runtime.cpu import cpu_class, native_bf16
from edgeseg.runtime.segmenter import Segmenter

BF16 = ["student OpenVINO BF16"] * native_bf16()
STUDENTS = ["student OpenVINO FP32", *BF16, "student OpenVINO INT8", "student ONNX Runtime FP32",
            "student ONNX Runtime INT8"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    admitted = tiny_bundle.speeds(cpu_class(), {"openvino int8": 1.2})
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg", speeds=admitted,
                                   admission=tiny_bundle.admission())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tiny_bundle.write_network(tmp_path_factory.mktemp("net") / "teacher.onnx", (1, 1, 192, 192))
    return RowSpec("teacher OpenVINO FP32", "teacher", Job("network", str(path), ""))


@pytest.fixture(scope="module")
def result(bundle, teacher):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_module, "BLOCK_SECONDS", 0.03)
        return bench_bundle(bundle, [teacher, RowSpec("harness", "harness", Job("empty", "", ""))], [1], 0.15)


def test_every_runtime_and_precision_has_a_row_next_to_the_teacher(result):
    assert [r.name for r in result.rows] == [*STUDENTS, "teacher OpenVINO FP32", "harness"]
    assert result.complete
    assert not any(r.torch for r in result.rows)
    assert result.frames == 3


def test_students_are_measured_end_to_end_and_a_bare_network_is_not(result):
    for name in STUDENTS:
        row = result.row(name)
        assert row.shape == (1, 1, 32, 32)
        assert row.end_to_end.n >= 5  # rounds
        assert {b["round"] for b in row.blocks["network"]} == set(range(5))
    teacher = result.row("teacher OpenVINO FP32")
    assert teacher.end_to_end is None
    assert teacher.shape == (1, 1, 192, 192)


def test_ratios_are_paired_by_round_and_carry_an_interval(result):
    row = result.row("student OpenVINO INT8")
    assert set(row.speed_up) == {"student OpenVINO FP32", "teacher OpenVINO FP32"}
    ratio = row.speed_up["teacher OpenVINO FP32"]
    mine, theirs = (np.array([b["median_ms"] for b in r.blocks["network"]])
                    for r in (row, result.row("teacher OpenVINO FP32")))
    assert ratio.value == pytest.approx(np.exp(np.log(theirs / mine).mean()))
    assert ratio.n == 5
    assert ratio.low <= ratio.value <= ratio.high
    assert result.row("student OpenVINO FP32").speed_up.keys() == {"teacher OpenVINO FP32"}
    for name in BF16:
        assert set(result.row(name).speed_up) == {"student OpenVINO FP32", "teacher OpenVINO FP32"}


def test_bf16_is_computed_in_bf16(result):
    for name in BF16:
        assert "bfloat16" in result.row(name).settings["INFERENCE_PRECISION_HINT"]
    for name in set(STUDENTS[:3]) - set(BF16):
        assert "float32" in result.row(name).settings["INFERENCE_PRECISION_HINT"] or "ONNX" in name


def test_the_verdict_is_that_of_the_row_a_user_gets(result, bundle):
    taken = Segmenter(bundle, threads=1).precision  # INT8 was measured with all cores, of fewer nothing is known
    assert taken == ("int8" if cpu_class().cores == 1 else "fp32")
    assert result.default_row == f"student OpenVINO {taken.upper()}"
    row = result.row(result.default_row)
    assert result.target_met == row.target_met == (row.end_to_end.images_per_second >= 10.0)


def test_several_thread_counts_are_rows_compared_within_each(bundle, teacher, monkeypatch):
    monkeypatch.setattr(bench_module, "BLOCK_SECONDS", 0.01)
    monkeypatch.setattr(bench_module.limits, "allowed_cpus", lambda: {0, 1})
    result = bench_bundle(bundle, [teacher], [2, 1], 0.01)
    assert {r.threads for r in result.rows} == {1, 2}
    assert len(result.rows) == 2 * (len(STUDENTS) + 1)
    row = result.row("student OpenVINO INT8, 1 thread")
    assert set(row.speed_up) == {"student OpenVINO FP32, 1 thread", "teacher OpenVINO FP32, 1 thread"}
    assert row.settings["INFERENCE_NUM_THREADS"] == "1"
    assert result.default_row.endswith(", 2 threads")
    assert result.default.threads == 2


def test_frames_come_as_the_scanner_of_the_bundles_protocol_sends_them(bundle):
    opened = open_bundle(bundle)
    frames, _, what = scanner_frames(opened)
    assert [f.dtype for f in frames] == [np.float32] * 3
    assert "native grids" in what
    protocol = FrameProtocol(name="60x50@1.2-uint16", size=(60, 50), spacing=(1.2, 1.2), dtype="uint16", back="logits")
    with_protocol = SimpleNamespace(manifest=SimpleNamespace(frames=(protocol,)), file=opened.file)
    brought, grids, what = scanner_frames(with_protocol)
    assert [(f.shape, f.dtype.name) for f in brought] == [((1, 60, 50), "uint16")] * 3
    assert grids == [(1.2, 1.2)] * 3
    assert protocol.name in what
    assert all(f.any() for f in brought)


def test_memory_is_recorded_for_each_row(result):
    for row in result.rows:
        assert 0 < row.rss_mb <= row.peak_rss_mb


def test_the_document_has_its_schema_and_no_path(result, bundle):
    document = json.loads(one_line(result.document()))
    assert document["schema"] == "edgeseg.bench/2"
    assert set(document) >= {"complete", "device", "bundle", "threads", "seed", "against", "target_images_per_second",
                             "default_row", "target_met", "method", "load", "machine", "rows"}
    assert document["bundle"] == "tiny.edgeseg"
    assert document["threads"] == [1]
    for row in document["rows"]:
        assert set(row["network"]) >= {"n", "p50_ms", "p90_ms", "p99_ms", "max_ms", "images_per_second"}
        assert row["failed"] is None
    assert document["machine"]["torch_in_process"] in (True, False)
    assert set(document["load"]) >= {"others_before", "others_during", "busy"}
    assert str(bundle.parent) not in json.dumps(document)


def test_a_bundle_without_int8_is_measured_in_fp32(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_module, "BLOCK_SECONDS", 0.01)
    path = tiny_bundle.make_bundle(tmp_path / "plain.edgeseg", precisions=("fp32",))
    result = bench_bundle(path, threads=[1], seconds=0.01)
    assert [r.name for r in result.rows] == ["student OpenVINO FP32", *BF16, "student ONNX Runtime FP32"]
    assert result.default_row == "student OpenVINO FP32"  # nothing else is admitted
    assert result.about["against"] is None


@pytest.mark.parametrize(("options", "message"), [
    ({"seconds": 0}, "must be above 0"),
    ({"target": 0}, "must be above 0"),
    ({"seconds": float("nan")}, "must be above 0"),
    ({"seconds": float("inf")}, "must be above 0 and finite"),
    ({"threads": [0]}, "at least 1"),
    ({"threads": [1, 100_000]}, "--threads 100000: this process may use"),
])
def test_impossible_numbers_are_refused(bundle, options, message):
    with pytest.raises(EdgesegError, match=message):
        bench_bundle(bundle, **options)


def test_a_bundle_without_frames_is_refused(tmp_path):
    path = tiny_bundle.make_bundle(tmp_path / "empty.edgeseg", frames=0, precisions=("fp32",))
    with pytest.raises(EdgesegError, match="no frame to measure with"):
        bench_bundle(path)


def test_a_changed_bundle_is_refused_before_anything_runs(bundle, tmp_path):
    copy = tmp_path / "changed.edgeseg"
    shutil.copytree(bundle, copy)
    (copy / "extra.txt").write_text("x")
    with pytest.raises(EdgesegError, match=r"extra\.txt: does not belong"):
        bench_bundle(copy)


def test_a_damaged_teacher_is_one_line(bundle, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    with pytest.raises(EdgesegError, match=r"broken\.onnx") as caught:
        bench_bundle(bundle, [RowSpec("teacher", "teacher", Job("network", str(broken), ""))], seconds=0.01)
    assert "\n" not in str(caught.value)
