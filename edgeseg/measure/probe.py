"""What this CPU can do at best, measured: multiply-accumulates a second through OpenVINO, and bytes a second of memory.

A probe, not a data sheet: the best call of the best of a few compute-bound convolutions, with the same runtime,
settings and threads as the networks that are held against it. A machine that is busy shows less than it has.

`compute_peak` needs openvino, so it runs in the child process of ceilings.py.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.measure import environment
from edgeseg.runtime import threads as cpus

SHAPES = ((128, 16, 3, 2), (128, 32, 3, 4), (256, 28, 3, 2), (512, 28, 1, 4))
"""Channels, side of the image, side of the kernel and number of layers of the probe's networks: all do far more than
ten products for each byte they move. The first call is short enough to slip between the interruptions of a busy
machine, the others are long enough for many threads."""
CACHES = Path("/sys/devices/system/cpu")
UNKNOWN_CACHE = 64 * 2**20
UNKNOWN_MEMORY = 2**31
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Peak:
    """Measured peaks of this CPU with `threads` threads.

    Attributes:
        fp32_gmacs, bf16_gmacs, int8_gmacs: 10^9 multiply-accumulates a second (bf16 None where it is not native).
        bandwidth_gb_s: 10^9 bytes a second to and from main memory.
        kernels: precision -> what OpenVINO computed it with.
    """

    fp32_gmacs: float
    bf16_gmacs: float | None
    int8_gmacs: float
    bandwidth_gb_s: float
    threads: int
    kernels: dict[str, str]

    def gmacs(self, precision: str) -> float | None:
        return {"fp32": self.fp32_gmacs, "bf16": self.bf16_gmacs, "int8": self.int8_gmacs}[precision]


def compute_peak(precision: str, threads: int, seconds: float) -> tuple[float, str]:
    """10^9 MACs a second, and the kernel that reached them; the shapes take turns for `seconds`."""
    import openvino as ov

    from edgeseg.measure.graph_cost import executed_nodes, model_macs, settings

    core, rng = ov.Core(), np.random.default_rng(0)
    calls: list[tuple[Callable[[], Any], int, str]] = []
    best: list[tuple[float, str]] = []
    for shape in SHAPES:
        model = probe_network(*shape, quantised=precision == "int8", rng=rng)
        compiled = core.compile_model(model, "CPU", settings(precision, threads) | {"PERF_COUNT": True})
        request = compiled.create_infer_request()
        x = rng.random(model.inputs[0].shape, np.float32)
        request.infer({0: x})
        macs = model_macs(model)
        kernel = next(n.kernel for n in executed_nodes(compiled.get_runtime_model()) if set(n.originals) & set(macs))
        calls.append((partial(request.infer, {0: x}, share_inputs=True), sum(macs.values()), kernel))
    end = time.monotonic() + seconds
    while not best or time.monotonic() < end:
        best += [(macs / fastest(call, 3) / 1e9, kernel) for call, macs, kernel in calls]
    return max(best)


def probe_network(channels: int, side: int, kernel: int, depth: int, quantised: bool, rng: np.random.Generator) -> Any:
    """`depth` convolutions with ReLU in a row, as an `openvino.Model`; quantised: fake quantisation before each."""
    import openvino as ov
    from openvino import opset13 as op

    def quantise(x: Any, low: float, high: float, levels: int) -> Any:
        ends = [op.constant(np.float32(v)) for v in (low, high, low, high)]
        return op.fake_quantize(x, *ends, levels=levels) if quantised else x

    x = image = op.parameter([1, channels, side, side], np.float32)
    for _ in range(depth):
        scale = 1 / (kernel * channels**0.5)  # keeps the size of the activations
        weights = op.constant(rng.standard_normal((channels, channels, kernel, kernel), np.float32) * scale)
        pads = [kernel // 2] * 2
        x = op.relu(op.convolution(quantise(x, 0.0, 4.0, 256), quantise(weights, -4 * scale, 4 * scale, 255),
                                   [1, 1], pads, pads, [1, 1]))
    return ov.Model([x], [image])


def bandwidth(threads: int, seconds: float, cache: int | None = None) -> float:
    """10^9 bytes a second of copying (one read, one write) or adding (two reads, one write) arrays that no cache holds,
    each thread a part of them; the better of the two. As in STREAM, what a write reads first is not counted.

    Args:
        cache: bytes of the last-level caches of the CPUs that this process may use; default: what the system says.
    """
    memory = environment.available_memory()
    size = array_length(cache or last_level_cache(), UNKNOWN_MEMORY if memory is None else memory)
    a, b, c = np.ones(size), np.ones(size), np.ones(size)
    parts = [slice(i * size // threads, (i + 1) * size // threads) for i in range(threads)]
    best, end = 0.0, time.monotonic() + seconds
    with ThreadPoolExecutor(threads) as pool:  # NumPy holds no lock while it copies or adds

        def copy() -> None:
            list(pool.map(lambda s: np.copyto(c[s], a[s]), parts))

        def add() -> None:
            list(pool.map(lambda s: np.add(a[s], b[s], out=c[s]), parts))

        while not best or time.monotonic() < end:
            best = max(best, 2 * a.nbytes / fastest(copy, 1) / 1e9, 3 * a.nbytes / fastest(add, 1) / 1e9)
    return best


def array_length(cache: int, memory: int) -> int:
    """Doubles in each of three arrays: four times the `cache`, but together no more than a quarter of the `memory` that
    is left (both in bytes), even if a cache then holds a part of them."""
    return max(1, min(4 * cache, memory // 12) // 8)


def fastest(call: Callable[[], Any], times: int) -> float:
    """Seconds of the fastest of some calls."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def last_level_cache(root: Path = CACHES, allowed: set[int] | None = None) -> int:
    """Bytes of the caches of the highest level behind the `allowed` CPUs (default: those of this process), each counted
    once; UNKNOWN_CACHE where the system does not say."""
    found: dict[tuple[int, str], int] = {}
    try:
        for cpu in cpus.allowed_cpus() if allowed is None else allowed:
            for folder in (root / f"cpu{cpu}" / "cache").glob("index[0-9]*"):
                level, size = int((folder / "level").read_text()), (folder / "size").read_text().strip()
                shared = (folder / "shared_cpu_list").read_text()
                found[level, shared] = int(size.rstrip("KMG")) * UNITS.get(size[-1], 1)
    except (OSError, ValueError):
        return UNKNOWN_CACHE
    top = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == top) or UNKNOWN_CACHE
