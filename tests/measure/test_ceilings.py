import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import tiny_bundle
from openvino import opset13 as op

from edgeseg.container import open_bundle, write_sums
from edgeseg.errors import EdgesegError
from edgeseg.measure import probe
from edgeseg.measure.ceilings import golden_input, measure_ceilings
from edgeseg.measure.graph_cost import (
    COSTLIEST,
    bytes_of,
    executed_nodes,
    model_macs,
    network_cost,
    settings,
)
from edgeseg.runtime.cpu import native_bf16

PAD = [1, 1]
WHOLE = """
import json, sys
from pathlib import Path
from edgeseg.container import open_bundle
from edgeseg.measure.ceilings import measure_ceilings
from edgeseg.measure.document import one_line
found = measure_ceilings(open_bundle(Path(sys.argv[1])), (1,), seconds_per_probe=0.02)
print(json.dumps({"clean": "openvino" not in sys.modules, "found": json.loads(one_line(found))}))
"""


def weights(*shape):
    return op.constant(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def small_network():
    """Every kind of layer that multiplies, once, and some that do not."""
    image = op.parameter([1, 3, 16, 12], np.float32)
    x = op.relu(op.convolution(image, weights(8, 3, 3, 3), [2, 2], PAD, PAD, [1, 1], name="conv"))  # 8 x 8 x 6
    x = op.group_convolution(x, weights(8, 1, 1, 3, 3), [1, 1], PAD, PAD, [1, 1], name="depthwise")
    x = op.convolution_backprop_data(x, weights(8, 4, 2, 2), [2, 2], name="up")  # 4 x 16 x 12
    x = op.group_convolution_backprop_data(x, weights(2, 2, 3, 2, 2), [2, 2], name="up2")  # 6 x 32 x 24
    x = op.matmul(op.max_pool(x, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2]).output(0), weights(5, 12), False, True,
                  name="product")  # 6 x 16 x 5
    return ov.Model([x], [image], "small")


HAND = {"conv": 8 * 8 * 6 * 3 * 9, "depthwise": 8 * 8 * 6 * 9, "up": 8 * 8 * 6 * 4 * 4, "up2": 4 * 16 * 12 * 3 * 4,
        "product": 6 * 16 * 5 * 12}


def nodes_of(model, precision="fp32"):
    compiled = ov.Core().compile_model(model, "CPU", settings(precision, 1) | {"PERF_COUNT": True})
    compiled.create_infer_request().infer({0: np.ones(compiled.inputs[0].shape, np.float32)})
    return executed_nodes(compiled.get_runtime_model())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg", frames=1)


@pytest.fixture(scope="module")
def whole(bundle):
    done = subprocess.run([sys.executable, "-P", "-c", WHOLE, str(bundle)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_macs_are_those_counted_by_hand():
    assert model_macs(small_network()) == HAND


def test_the_transposed_matrix_of_a_product_counts_the_axis_that_vanishes():
    image = op.parameter([7, 5], np.float32)
    model = ov.Model([op.matmul(image, weights(7, 3), True, False, name="product")], [image], "one")
    assert model_macs(model) == {"product": 5 * 3 * 7}


def test_bytes_of_one_convolution_are_those_counted_by_hand(tmp_path):
    model = ov.Core().read_model(tiny_bundle.write_network(tmp_path / "one.onnx"))
    (node,) = [n for n in nodes_of(model) if n.type == "Convolution"]
    assert node.weight_bytes == (4 * 1 + 4) * 4  # weights and bias
    assert node.activation_bytes == (1 + 4) * 32 * 32 * 4
    if native_bf16():
        (node,) = [n for n in nodes_of(model, "bf16") if n.type == "Convolution"]
        assert (node.weight_bytes, node.activation_bytes) == ((4 * 1 + 4) * 2, (1 + 4) * 32 * 32 * 2)


def test_what_is_fused_is_not_counted_again():
    image = op.parameter([1, 16, 8, 8], np.float32)

    def layer(x):
        return op.convolution(x, weights(16, 16, 1, 1), [1, 1], [0, 0], [0, 0], [1, 1])

    x = op.relu(layer(image))
    x = layer(op.add(x, layer(op.relu(layer(x)))))
    nodes = [n for n in nodes_of(ov.Model([x], [image], "fused")) if n.type != "Reorder"]
    if [n.type for n in nodes] != ["Convolution"] * 4:
        pytest.skip("OpenVINO does not fuse an addition into a convolution on this CPU")
    size = 16 * 8 * 8 * 4
    assert [n.activation_bytes for n in nodes] == [2 * size, 2 * size, 3 * size, 2 * size]  # the third adds x
    assert [n.weight_bytes for n in nodes] == [16 * 16 * 4] * 4


def test_quantised_weights_take_a_byte_each():
    nodes = [n for n in nodes_of(probe.probe_network(16, 8, 3, 2, True, np.random.default_rng(0)), "int8")
             if n.type == "Convolution"]
    assert len(nodes) == 2
    if not all(n.precision in ("i8", "u8") for n in nodes):
        pytest.skip("OpenVINO does not compute in INT8 on this CPU")
    assert [n.weight_bytes // (16 * 16 * 9) for n in nodes] == [1, 1]
    assert bytes_of("u8") == bytes_of("boolean") == 1
    assert (bytes_of("f32"), bytes_of("bf16"), bytes_of("i64")) == (4, 2, 8)


def test_the_five_costliest_layers_are_layers_of_the_graph(tmp_path):
    ov.save_model(small_network(), tmp_path / "small.xml", compress_to_fp16=False)
    found = network_cost(tmp_path / "small.xml", "fp32", 1, np.ones((1, 3, 16, 12), np.float32), 0.01)
    nodes = nodes_of(ov.Core().read_model(tmp_path / "small.xml"))
    executed = {(n.name, n.type, n.kernel) for n in nodes}
    assert found.executed == len(executed) > COSTLIEST
    assert len(found.layers) == COSTLIEST
    assert {(n.name, n.type, n.kernel) for n in found.layers} <= executed
    assert [n.ms for n in found.layers] == sorted((n.ms for n in found.layers), reverse=True)
    assert sum(n.share for n in found.layers) <= 1 + 1e-9
    assert all(n.share == pytest.approx(n.ms / found.profiled_ms) for n in found.layers)
    assert found.macs == sum(HAND.values())
    assert {name for n in nodes for name in n.originals} >= set(HAND)


def test_a_bundle_has_a_ceiling_for_each_precision_and_the_parent_stays_clean(whole):
    assert whole["clean"]
    found = whole["found"]
    peak, = found["peaks"]
    assert [row["precision"] for row in found["rows"]] == ["fp32", *["bf16"] * native_bf16(), "int8"]
    for row in found["rows"]:
        assert row["macs"] == row["cost"]["macs"] == 4 * 32 * 32
        floor, = row["floors"]
        assert floor["compute_ms"] == pytest.approx(row["macs"] / peak[f"{row['precision']}_gmacs"] / 1e6)
        assert floor["memory_ms"] == pytest.approx(row["bytes"] / peak["bandwidth_gb_s"] / 1e6)
        assert row["cost"]["layers"]
    assert set(peak["kernels"]) == {row["precision"] for row in found["rows"]}
    assert (peak["bf16_gmacs"] is not None) == native_bf16()
    assert "data sheet" in found["method"]


def test_bandwidth_is_a_number_above_nothing_with_any_number_of_threads():
    for threads in (1, 3):
        assert 0 < probe.bandwidth(threads, 0.01, cache=2**18) < 1e5


def test_the_last_level_caches_are_added_up_and_counted_once(tmp_path):
    for cpu in range(4):
        for index, level, size, shared in ((0, 1, "32K", str(cpu)), (3, 3, "16M", "0-1" if cpu < 2 else "2-3")):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (folder / name).write_text(f"{text}\n")
    def found(*allowed):
        return probe.last_level_cache(tmp_path, set(allowed)) // 2**20

    assert found(0, 1, 2, 3) == 32
    assert (found(0), found(0, 1), found(2, 3), found(1, 2)) == (16, 16, 16, 32)  # only what is behind allowed CPUs
    assert found(7) == probe.UNKNOWN_CACHE // 2**20
    assert probe.last_level_cache(tmp_path / "absent") == probe.UNKNOWN_CACHE


def test_the_caches_are_those_of_the_cpus_of_this_process(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(probe.cpus, "allowed_cpus", lambda: asked.append("allowed") or {5})
    folder = tmp_path / "cpu5" / "cache" / "index2"
    folder.mkdir(parents=True)
    for name, text in (("level", "2"), ("size", "512K"), ("shared_cpu_list", "5")):
        (folder / name).write_text(text)
    assert (probe.last_level_cache(tmp_path), asked) == (512 * 2**10, ["allowed"])


def test_arrays_are_larger_than_the_cache_and_never_more_than_a_quarter_of_the_memory():
    assert probe.array_length(2**20, 2**34) == 4 * 2**20 // 8
    assert probe.array_length(2**28, 12 * 2**20) == 2**20 // 8
    for cache, memory in ((2**20, 2**34), (2**28, 10**9), (2**30, 123_456_789)):
        assert 3 * 8 * probe.array_length(cache, memory) <= memory / 4
    assert probe.array_length(2**20, 0) == 1


@pytest.mark.parametrize(("available", "length"), [(12 * 8 * 1000, 1000), (None, 4 * 2**18 // 8)])
def test_bandwidth_takes_no_more_than_the_memory_that_is_left(monkeypatch, available, length):
    taken, ones = [], np.ones
    monkeypatch.setattr(probe.environment, "available_memory", lambda: available)
    monkeypatch.setattr(probe.np, "ones", lambda size: taken.append(size) or ones(size))
    assert probe.bandwidth(2, 0.001, cache=2**18) > 0
    assert taken == [length] * 3


def test_the_input_is_a_golden_frame_in_the_networks_grid(bundle):
    x = golden_input(open_bundle(bundle))
    assert (x.shape, x.dtype) == ((1, 1, 32, 32), np.float32)
    assert set(np.unique(x)) >= set(tiny_bundle.LEVELS)


@pytest.mark.parametrize(("threads", "seconds", "message"), [
    (0, 0.1, "at least 1"),
    (1, 0, "must be above 0 and finite"),
    (1, float("nan"), "must be above 0 and finite"),
    (1, float("inf"), "must be above 0 and finite"),
])
def test_impossible_numbers_are_refused(bundle, threads, seconds, message):
    with pytest.raises(EdgesegError, match=message):
        measure_ceilings(open_bundle(bundle), (threads,), seconds_per_probe=seconds)


def test_a_bundle_without_frames_is_refused(tmp_path):
    path = tiny_bundle.make_bundle(tmp_path / "empty.edgeseg", frames=0, precisions=("fp32",))
    with pytest.raises(EdgesegError, match=r"golden\.npz is empty"):
        measure_ceilings(open_bundle(path), (1,))


def test_a_network_that_does_not_load_is_one_line(tmp_path):
    path = tiny_bundle.make_bundle(tmp_path / "broken.edgeseg", frames=1, precisions=("fp32",))
    Path(path / "model.fp32.xml").write_text("no network")
    write_sums(path)
    with pytest.raises(EdgesegError, match=r"broken\.edgeseg: the ceilings cannot be measured") as caught:
        measure_ceilings(open_bundle(path), (1,), seconds_per_probe=0.01)
    assert "\n" not in str(caught.value)
