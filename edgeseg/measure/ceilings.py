"""Ceilings: how fast each network of a bundle could be on this CPU at best, to hold a measured latency against.

The roofline (Williams, Waterman and Patterson 2009, https://doi.org/10.1145/1498765.1498785): a network takes at least
the time of its arithmetic at the CPU's peak, and of its bytes at the bandwidth of the memory, whichever is longer. Both
peaks are measured (probe.py), arithmetic and bytes are those of the executed graph (graph_cost.py).

`python -P -m edgeseg.measure.ceilings` is the child process that all of it runs in: the question comes on its standard
input and the answer is its last line, both JSON.
"""

import json
import math
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg import child
from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import one_line
from edgeseg.measure.graph_cost import Cost, Layer, network_cost
from edgeseg.measure.probe import Peak, bandwidth, compute_peak
from edgeseg.runtime.backends import CANDIDATES, model_file
from edgeseg.runtime.cpu import native_bf16
from edgeseg.runtime.threads import checked_threads

TIMEOUT = 600.0
METHOD = ("Peaks are measured on this CPU, not taken from a data sheet: the best call of compute-bound convolutions "
          "through OpenVINO, and of copying or adding arrays that no cache holds. Bytes are those that the executed "
          "layers read and write, as if each passed through main memory: what stays in a cache is faster than that, "
          "so only the time of the arithmetic is a strict bound.")


@dataclass(frozen=True)
class Ceiling:
    """The roofline of one image through one network.

    Attributes:
        bytes: weights and activations. compute_ms: macs at the measured peak of this precision. memory_ms: bytes at
            the measured bandwidth. floor_ms: the longer of the two, which `bound` names.
    """

    precision: str
    macs: int
    bytes: int
    compute_ms: float
    memory_ms: float
    floor_ms: float
    bound: str
    cost: Cost

    def gmacs_at(self, ms: float) -> float:
        """10^9 MACs a second of a network that takes `ms`."""
        return self.macs / ms / 1e6

    def share_of_peak(self, ms: float) -> float:
        """Of the arithmetic peak, 0..1, that a latency of `ms` reaches."""
        return self.compute_ms / ms

    def share_of_floor(self, ms: float) -> float:
        """How near a latency of `ms` is to the roofline: 1 is on it; above 1 where activations stay in a cache."""
        return self.floor_ms / ms


@dataclass(frozen=True)
class Ceilings:
    """The peaks of the machine, and a ceiling for each precision that the bundle has for OpenVINO."""

    peak: Peak
    rows: tuple[Ceiling, ...]
    method: str = METHOD

    def of(self, precision: str) -> Ceiling | None:
        return next((row for row in self.rows if row.precision == precision), None)


def measure_ceilings(bundle: Bundle, threads: int, seconds_per_probe: float = 0.5) -> Ceilings:
    """Probe the machine and count and profile each OpenVINO network of the bundle, in a child process.

    Args:
        threads: of the runtime, and of the memory probe.
        seconds_per_probe: of each precision's peak, of the bandwidth and of each network's profile.

    Raises:
        EdgesegError: bad numbers, no frame or network in the bundle, a network that does not load.
    """
    threads = checked_threads(threads)
    if not 0 < seconds_per_probe < math.inf:
        raise EdgesegError(f"seconds_per_probe {seconds_per_probe:g} must be above 0 and finite")
    networks = {p: str(bundle.file(name)) for p in CANDIDATES if (name := model_file("openvino", p)) in bundle.files
                and (p != "bf16" or native_bf16())}
    if not networks:
        raise EdgesegError(f"{bundle.path}: there is no OpenVINO network to measure: export it again")
    with tempfile.TemporaryDirectory(prefix="edgeseg-ceilings-") as scratch:
        np.save(Path(scratch) / "input.npy", golden_input(bundle))
        question = {"networks": networks, "threads": threads, "seconds": seconds_per_probe,
                    "input": str(Path(scratch) / "input.npy")}
        done = child.run_module("edgeseg.measure.ceilings", question=one_line(question), timeout=TIMEOUT)
    lines = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines and not done.returncode else {
            "error": child.last_words(done.returncode, done.stderr or done.stdout)}
    if "error" in found:
        raise EdgesegError(f"{bundle.path}: the ceilings cannot be measured: {found['error']}")
    peak = Peak(**found["peak"])
    return Ceilings(peak, tuple(ceiling(p, read_cost(found["costs"][p]), peak) for p in networks))


def ceiling(precision: str, cost: Cost, peak: Peak) -> Ceiling:
    """The roofline arithmetic; `peak` must have this precision."""
    gmacs, moved = peak.gmacs(precision), cost.weight_bytes + cost.activation_bytes
    assert gmacs is not None
    compute_ms, memory_ms = cost.macs / gmacs / 1e6, moved / peak.bandwidth_gb_s / 1e6
    return Ceiling(precision, cost.macs, moved, compute_ms, memory_ms, max(compute_ms, memory_ms),
                   "compute" if compute_ms >= memory_ms else "memory", cost)


def read_cost(stored: dict[str, Any]) -> Cost:
    return Cost(**stored | {"layers": tuple(Layer(**layer) for layer in stored["layers"])})


def golden_input(bundle: Bundle) -> np.ndarray:
    """The bundle's first golden frame as its network takes it, float32 [1, C, H, W]; EdgesegError without one."""
    from edgeseg.measure.worker import network_input
    from edgeseg.runtime.golden import load_golden

    golden, grid = load_golden(bundle.file("golden.npz")), bundle.preprocessing
    if not golden:
        raise EdgesegError(f"{bundle.path}: no frame to measure with: its golden.npz is empty; export it again")
    canvas = grid.to_canvas(golden[0].frame[None], golden[0].spacing)[0]
    return network_input(canvas, (1, len(grid.channels), *grid.size), str(bundle.path)).astype(np.float32)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What the child says: the peaks, and the cost of each network."""
    from edgeseg.runtime.telemetry import telemetry_off

    telemetry_off()
    threads, seconds, x = question["threads"], question["seconds"], np.load(question["input"])
    costs = {p: network_cost(Path(path), p, threads, x, seconds) for p, path in question["networks"].items()}
    peaks = {p: compute_peak(p, threads, seconds) for p in CANDIDATES if p != "bf16" or native_bf16()}
    gmacs = {p: rate for p, (rate, _) in peaks.items()}
    return {"costs": costs,
            "peak": Peak(gmacs["fp32"], gmacs.get("bf16"), gmacs["int8"], bandwidth(threads, seconds), threads,
                         {p: kernel for p, (_, kernel) in peaks.items()})}


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not follow the answer
    try:
        reply: dict[str, Any] = answer(json.loads(sys.stdin.read()))
    except (EdgesegError, RuntimeError, MemoryError) as error:  # the parent says it: a traceback on a pipe helps nobody
        reply = {"error": " ".join(str(error).split())[:300] or type(error).__name__}
    out.write(one_line(reply) + "\n")


if __name__ == "__main__":
    main()
