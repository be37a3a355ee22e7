import shutil

import numpy as np
import pytest
import tiny_bundle

from edgeseg.container import SUMS
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Speeds
from edgeseg.measure import turns
from edgeseg.measure.speed import ROUNDS, measure_speeds
from edgeseg.runtime import cpu
from edgeseg.runtime.cpu import cpu_class, native_bf16

INPUTS = [np.full((1, 32, 32), 100.0, np.float32), np.zeros((1, 32, 32), np.float32)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A bundle folder as it is while it is built: without its hashes."""
    path = tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny")
    (path / SUMS).unlink()
    return path


@pytest.fixture(scope="module")
def speeds(folder):
    return measure_speeds(folder, INPUTS, 0.1, threads=1)


def test_every_network_has_a_row_and_bf16_where_it_is_native(speeds):
    found = [(row.backend, row.precision) for row in speeds.rows]
    assert found == [("openvino", "fp32"), *[("openvino", "bf16")] * native_bf16(), ("openvino", "int8"),
                     ("onnxruntime", "fp32"), ("onnxruntime", "int8")]
    assert all(row.median_ms > 0 for row in speeds.rows)
    assert (speeds.threads, speeds.cpu_class) == (1, cpu_class())
    assert speeds.cpu


def test_ratios_are_to_fp32_of_the_same_runtime_paired_over_enough_rounds(speeds):
    for row in speeds.rows:
        if row.precision == "fp32":
            assert row.over_fp32 is None
        else:
            assert row.over_fp32.n == ROUNDS
            assert row.over_fp32.low <= row.over_fp32.value <= row.over_fp32.high


def test_a_slower_network_is_seen_as_slower(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "b")
    for end in ("xml", "bin"):
        (tmp_path / "b" / f"model.int8.{end}").unlink()
    for name in ("model.fp32.xml", "model.fp32.bin"):
        (tmp_path / "b" / name).unlink()
    tiny_bundle.write_network(tmp_path / "b" / "model.int8.onnx", (1, 1, 512, 512))
    fp32, int8 = measure_speeds(tmp_path / "b", INPUTS, 0.1, threads=1).rows
    assert int8.over_fp32.high < 1  # 256 times the pixels
    assert int8.median_ms > fp32.median_ms


def test_the_manifest_can_hold_it(speeds):
    assert Speeds.model_validate_json(speeds.model_dump_json()) == speeds


def test_without_native_bf16_there_is_no_such_row(folder, monkeypatch, tmp_path):
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "model.fp32.onnx").unlink()
    (tmp_path / "b" / "model.int8.onnx").unlink()
    monkeypatch.setattr(cpu, "isa_flags", lambda: ("avx2",))
    found = measure_speeds(tmp_path / "b", INPUTS, 0.02, threads=1)
    assert [(row.backend, row.precision) for row in found.rows] == [("openvino", "fp32"), ("openvino", "int8")]


def test_bf16_reaches_the_measuring_process(folder, tmp_path):
    if not native_bf16():
        pytest.skip("this CPU has no instructions for bf16")
    frames = turns.write_frames(tmp_path / "frames.npz", INPUTS, [(1.0, 1.0)] * 2, INPUTS)
    for precision, hint in (("bf16", "bfloat16"), ("fp32", "float32")):
        job = turns.Job("network", str(folder / "model.fp32.xml"), str(frames), "openvino", precision)
        with turns.Worker(job) as worker:
            assert hint in worker.ready["runtime"]["INFERENCE_PRECISION_HINT"]


@pytest.mark.parametrize(("seconds", "threads", "message"), [
    (0, 1, "must be above 0"), (float("nan"), 1, "must be above 0"), (1, 0, "at least 1"),
    (1, 10**5, "may use")])
def test_impossible_numbers_are_refused(folder, seconds, threads, message):
    with pytest.raises(EdgesegError, match=message):
        measure_speeds(folder, INPUTS, seconds, threads)


def test_nothing_to_measure_and_nothing_to_measure_with_are_one_line(folder, tmp_path):
    with pytest.raises(EdgesegError, match="there is no network to measure"):
        measure_speeds(tmp_path, INPUTS, 0.01)
    with pytest.raises(EdgesegError, match="no frame to measure with"):
        measure_speeds(folder, [], 0.01)
    shutil.copytree(folder, tmp_path / "b")
    (tmp_path / "b" / "model.int8.onnx").write_bytes(b"no network")
    with pytest.raises(EdgesegError, match=r"model\.int8\.onnx") as caught:
        measure_speeds(tmp_path / "b", INPUTS, 0.01)
    assert "\n" not in str(caught.value)
