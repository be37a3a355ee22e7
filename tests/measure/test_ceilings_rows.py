"""Ceilings of every row of a bench: each network, each precision, each number of threads."""

import json
import shutil
import tempfile

import numpy as np
import openvino as ov
import pytest
import tiny_bundle

from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure.ceilings import STUDENT, Ceilings, Reached, ceiling, measure_ceilings
from edgeseg.measure.document import one_line
from edgeseg.measure.graph_cost import MIN_CALLS, WARM_UP_CALLS, Cost, input_shape, network_cost
from edgeseg.measure.probe import Peak

COST = Cost(100_000_000, 2_000_000, 8_000_000, 1, 1.0, ())
PEAKS = (Peak(fp32_gmacs=50, bf16_gmacs=None, int8_gmacs=200, bandwidth_gb_s=10, threads=1, kernels={}),
         Peak(fp32_gmacs=100, bf16_gmacs=None, int8_gmacs=400, bandwidth_gb_s=8, threads=2, kernels={}))
FAST = {"seconds_per_probe": 0.02}
TEACHER = "teacher OpenVINO FP32"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("a place") / "tiny.edgeseg"
    return open_bundle(tiny_bundle.make_bundle(path, frames=1, precisions=("fp32",)))


@pytest.fixture(scope="module")
def found(bundle, tmp_path_factory):
    """With 1 and 2 threads, and a teacher that takes a larger image, under two names."""
    path = tiny_bundle.write_network(tmp_path_factory.mktemp("scratch") / "teacher.onnx", (1, 1, 48, 64))
    return measure_ceilings(bundle, (2, 1, 2), {TEACHER: path, "teacher PyTorch FP32": path}, **FAST)


def made():
    return Ceilings(PEAKS, (ceiling(STUDENT, "fp32", COST, PEAKS), ceiling(STUDENT, "int8", COST, PEAKS)))


def test_a_row_is_held_against_the_peak_of_its_precision_and_threads():
    one, two = made().of("fp32").floors
    assert (one.threads, one.compute_ms, one.memory_ms, one.ms, one.bound) == (1, 2.0, 1.0, 2.0, "compute")
    assert (two.threads, two.compute_ms, two.memory_ms, two.ms, two.bound) == (2, 1.0, 1.25, 1.25, "memory")
    assert made().reached(STUDENT, "fp32", 1, 4.0) == Reached("fp32", 1, 25.0, 0.5, 0.5)
    assert made().reached(STUDENT, "fp32", 2, 4.0) == Reached("fp32", 2, 25.0, 0.25, 0.3125)
    assert made().reached(STUDENT, "int8", 1, 2.0) == Reached("int8", 1, 50.0, 0.25, 0.5)


def test_a_network_whose_activations_stay_in_a_cache_is_above_the_roofline_but_not_above_the_peak():
    reached = made().reached(STUDENT, "int8", 1, 0.8)
    assert reached.of_roofline == pytest.approx(1.25)
    assert reached.of_peak == pytest.approx(0.625)


@pytest.mark.parametrize(("network", "precision", "threads", "ms"), [
    ("teacher", "fp32", 1, 1.0), (STUDENT, "bf16", 1, 1.0), (STUDENT, "fp32", 3, 1.0), (STUDENT, "fp32", 1, None)])
def test_what_was_not_measured_reaches_nothing(network, precision, threads, ms):
    assert made().reached(network, precision, threads, ms) is None


def test_each_number_of_threads_has_its_own_peak(found):
    assert [peak.threads for peak in found.peaks] == [1, 2]
    for row in found.rows:
        assert [floor.threads for floor in row.floors] == [1, 2]
        for peak, floor in zip(found.peaks, row.floors, strict=True):
            assert floor.compute_ms == pytest.approx(row.macs / peak.gmacs(row.precision) / 1e6)
            assert floor.memory_ms == pytest.approx(row.bytes / peak.bandwidth_gb_s / 1e6)
            assert found.reached(row.network, row.precision, peak.threads, floor.ms).of_roofline == pytest.approx(1)


def test_a_teacher_is_counted_in_its_own_input_shape(found):
    assert found.of("fp32").macs == 4 * 32 * 32
    teacher = found.of("fp32", TEACHER)
    assert teacher.macs == 4 * 48 * 64
    assert teacher.cost.activation_bytes >= (1 + 4) * 48 * 64 * 4
    assert teacher.cost.layers
    assert found.of("int8", TEACHER) is None


def test_one_file_under_two_names_is_measured_once(found):
    assert found.of("fp32", "teacher PyTorch FP32").cost == found.of("fp32", TEACHER).cost


def test_the_document_says_what_other_runtimes_are_held_against_and_names_no_folder(found):
    document = one_line(found)
    assert "also where another runtime computes it" in json.loads(document)["method"]
    assert tempfile.gettempdir() not in document


@pytest.mark.parametrize(("name", "shape", "reason"), [
    ("absent.onnx", None, "absent.onnx"),
    ("colour.onnx", (1, 3, 32, 32), "colour.onnx: takes 3 channels"),
    ("free.onnx", (1, 1, "h", 32), "free.onnx: expected one image input of fixed shape"),
])
def test_a_teacher_that_cannot_be_measured_is_named_without_its_folder(bundle, tmp_path, name, shape, reason):
    path = tmp_path / name
    if shape:
        tiny_bundle.write_network(path, shape)
    with pytest.raises(EdgesegError, match=f"cannot be measured: .*{reason}") as caught:
        measure_ceilings(bundle, (1,), {TEACHER: path}, **FAST)
    assert "\n" not in str(caught.value)
    assert tempfile.gettempdir() not in str(caught.value).removeprefix(str(bundle.path))


def test_a_damaged_student_is_named_without_its_folder(bundle, tmp_path):
    shutil.copytree(bundle.path, tmp_path / "broken.edgeseg")
    (tmp_path / "broken.edgeseg" / "model.fp32.xml").write_text("no network")
    broken = type(bundle)(tmp_path / "broken.edgeseg", bundle.manifest, bundle.files)
    with pytest.raises(EdgesegError, match=r"model\.fp32\.xml in FP32: ") as caught:
        measure_ceilings(broken, (1,), **FAST)
    assert str(caught.value).count(tempfile.gettempdir()) == 1


@pytest.mark.parametrize(("seconds", "calls"), [(1e-9, 2 * MIN_CALLS), (0.2, 2 * WARM_UP_CALLS)])
def test_a_network_is_called_as_often_as_the_time_allows(tmp_path, monkeypatch, seconds, calls):
    path, counted, infer = tiny_bundle.write_network(tmp_path / "one.onnx"), [], ov.InferRequest.infer
    monkeypatch.setattr(ov.InferRequest, "infer", lambda *args, **kw: counted.append(1) or infer(*args, **kw))
    found = network_cost(path, "fp32", 1, np.zeros(input_shape(path), np.float32), seconds)
    assert found.layers
    assert len(counted) == calls if seconds < 1e-3 else len(counted) > calls
