"""What a network costs on the CPU: its arithmetic, the bytes that its layers move, and which of them take the time.

Arithmetic is counted in the network as it is stored, bytes and times in the graph that OpenVINO really executes
(`get_runtime_model`), where an activation or an addition that was fused into a convolution is no layer of its own and
a layer that was removed or runs in place moves nothing.

MACs: multiply-accumulates of convolutions (transposed and grouped too) and matrix products, those that meet padding
    included, as is usual. Interpolation, activations and quantisation are not counted.
Weights: every constant that an executed layer takes, once; the weights of a layer in the precision it computes in
    (bf16 from the FP32 file takes two bytes). What is fused into a layer (scales of a quantisation) is not visible.
Activations: each executed layer reads its inputs and writes its outputs, at the precision these have at runtime.

Everything here needs openvino, so it runs in the child process of ceilings.py.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.runtime.backends import check_shape
from edgeseg.runtime.openvino_backend import settings

MAC_TYPES = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
COSTLIEST = 5
WARM_UP_CALLS = 20
"""At least, of a network that is fast enough for them; of any other MIN_CALLS, as it has less to warm up in a call."""
MIN_CALLS = 3


@dataclass(frozen=True)
class Layer:
    """An executed layer.

    Attributes:
        type: as the runtime calls it. precision, kernel: what it was computed in and with.
        ms: mean over the profiled calls. share: of the time of all layers, 0..1.
        macs: of the stored layers that were fused into it.
    """

    name: str
    type: str
    precision: str
    kernel: str
    ms: float
    share: float
    macs: int


@dataclass(frozen=True)
class Cost:
    """One image through one network in one precision.

    Attributes:
        executed: number of layers that the runtime executes. layers: those that take most time, the costliest first.
        profiled_ms: sum of all layers; profiling adds to it, so it is no latency.
    """

    macs: int
    weight_bytes: int
    activation_bytes: int
    executed: int
    profiled_ms: float
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class Node:
    """An executed layer of the runtime graph; `originals`: the stored layers that were fused into it."""

    name: str
    type: str
    precision: str
    kernel: str
    originals: tuple[str, ...]
    weight_bytes: int
    activation_bytes: int


def input_shape(path: Path) -> tuple[int, ...]:
    """[1, C, H, W] of the input of a stored network; EdgesegError when a size is left open."""
    import openvino as ov

    sizes = ov.Core().read_model(path).inputs[0].partial_shape
    return check_shape(path, tuple(d.get_length() if d.is_static else None for d in sizes))


def network_cost(path: Path, precision: str, threads: int, x: np.ndarray, seconds: float) -> Cost:
    """Compile the network at `path` as a row of the bench does, but with timers on its layers, and call it.

    Args:
        x: its input, float32 [1, C, H, W]. seconds: of profiled calls, after a warm-up that is not counted; a slow
            network is called for longer than that, MIN_CALLS times in each.
    """
    import openvino as ov

    core = ov.Core()
    model = core.read_model(path)
    compiled = core.compile_model(model, "CPU", settings(precision, threads) | {"PERF_COUNT": True})
    request = compiled.create_infer_request()
    request.infer({0: x}, share_inputs=True)
    nodes = executed_nodes(compiled.get_runtime_model())
    warm, end = 1, time.monotonic() + seconds
    while warm < MIN_CALLS or (warm < WARM_UP_CALLS and time.monotonic() < end):
        request.infer({0: x}, share_inputs=True)
        warm += 1
    before, calls, end = mean_us(compiled.get_runtime_model()), warm, time.monotonic() + seconds
    while calls < 2 * warm or time.monotonic() < end:
        request.infer({0: x}, share_inputs=True)
        calls += 1
    after = mean_us(compiled.get_runtime_model())
    # the runtime gives means over all calls since it was compiled: the cold ones at the start are taken out again
    ms = [max(0.0, (calls * after.get(n.name, 0) - warm * before.get(n.name, 0)) / (calls - warm)) / 1000
          for n in nodes]
    return cost(model_macs(model), nodes, ms)


def cost(macs: dict[str, int], nodes: Sequence[Node], ms: Sequence[float]) -> Cost:
    """Sum up.

    Args:
        macs: of each stored layer, by its name. ms: time of each node.
    """
    whole = math.fsum(ms)
    layers = [Layer(n.name, n.type, n.precision, n.kernel, t, t / whole if whole else 0.0,
                    sum(macs.get(name, 0) for name in n.originals)) for n, t in zip(nodes, ms, strict=True)]
    return Cost(sum(macs.values()), sum(n.weight_bytes for n in nodes), sum(n.activation_bytes for n in nodes),
                len(nodes), whole, tuple(sorted(layers, key=lambda x: -x.ms)[:COSTLIEST]))


def model_macs(model: Any) -> dict[str, int]:
    """MACs of each layer of an `openvino.Model` of static shapes that has any."""
    counts = {op.get_friendly_name(): layer_macs(op) for op in model.get_ordered_ops()}
    return {name: count for name, count in counts.items() if count}


def layer_macs(op: Any) -> int:
    """MACs of one operation, 0 for a type that does no such arithmetic.

    Weights are [O, I, *k] of a convolution and [I, O, *k] of a transposed one; grouped ones have G in front, and O and
    I are then those of a group. Each output of a convolution takes I x k products; each input of a transposed
    convolution gives O x k; each output of a matrix product takes the length of the axis that vanishes.
    """
    kind = op.get_type_name()
    if kind not in MAC_TYPES:
        return 0
    data, weights, result = (list(x.get_shape()) for x in (op.input(0), op.input(1), op.output(0)))
    if kind == "MatMul":
        return math.prod(result) * data[-2 if op.get_attributes()["transpose_a"] else -1]
    per_element = math.prod(weights[2 if kind.startswith("Group") else 1:])
    return math.prod(data if kind.endswith("BackpropData") else result) * per_element


def executed_nodes(runtime_model: Any) -> list[Node]:
    """The layers that do something in a call, of the runtime graph of a network compiled with PERF_COUNT.

    To be asked for after the first call: a layer whose mean time has fallen below a microsecond looks as if it were
    never executed.
    """
    executed = mean_us(runtime_model)
    constant: set[str] = set()
    nodes = []
    for op in runtime_model.get_ordered_ops():
        name, info = op.get_friendly_name(), {key: str(v.value) for key, v in op.get_rt_info().items()}
        sources = [i.get_source_output() for i in op.inputs()]
        fixed = [s.get_node().get_friendly_name() in constant for s in sources]
        if info.get("layerType") == "Const" or (sources and all(fixed)):
            constant.add(name)  # also what is made of constants: done once, when the network is compiled
        elif name in executed:
            read = [math.prod(s.get_partial_shape().to_shape()) * precision_bytes(s) for s in sources]
            if len(read) > 1 and fixed[1]:  # its weights, which it keeps in the precision it computes in
                read[1] = min(read[1], math.prod(sources[1].get_partial_shape().to_shape())
                              * bytes_of(info["runtimePrecision"]))
            written = sum(math.prod(o.get_partial_shape().to_shape()) * precision_bytes(o) for o in op.outputs())
            weights = sum(b for b, f in zip(read, fixed, strict=True) if f)
            nodes.append(Node(name, info["layerType"], info["runtimePrecision"], info["primitiveType"],
                              tuple(info["originalLayersNames"].split(",")), weights,
                              sum(read) - weights + written))
    return nodes


def mean_us(runtime_model: Any) -> dict[str, int]:
    """Name of each executed layer -> its mean time over all calls so far in whole microseconds, never 0."""
    times = {op.get_friendly_name(): str(op.get_rt_info()["execTimeMcs"].value)
             for op in runtime_model.get_ordered_ops() if "execTimeMcs" in op.get_rt_info()}
    return {name: int(us) for name, us in times.items() if us != "not_executed"}


def precision_bytes(output: Any) -> int:
    """Bytes of an element of one output of a runtime layer."""
    names = str(output.get_node().get_rt_info()["outputPrecisions"].value).split(",")
    return bytes_of(names[min(output.get_index(), len(names) - 1)])


def bytes_of(precision: str) -> int:
    """Bytes of an element: f32 4, bf16 2, u8 1, boolean 1."""
    return max(1, int("".join(filter(str.isdigit, precision)) or 8) // 8)
