"""Ceilings: how fast each network of a bench could be on this CPU at best, to hold a measured latency against.

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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeseg import child
from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import one_line
from edgeseg.measure.graph_cost import Cost, Layer, input_shape, network_cost
from edgeseg.measure.probe import Peak, bandwidth, compute_peak
from edgeseg.runtime.backends import CANDIDATES, model_file
from edgeseg.runtime.cpu import native_bf16
from edgeseg.runtime.threads import checked_threads

TIMEOUT = 600.0
STUDENT = "student"
METHOD = ("Peaks are measured on this CPU with each number of threads, not taken from a data sheet: the best call of "
          "compute-bound convolutions through OpenVINO, and of copying or adding arrays that no cache holds. A row is "
          "held against the peak of the machine in the row's precision, measured through OpenVINO, also where another "
          "runtime computes it. Its MACs are those of its network; its bytes are what the layers that OpenVINO "
          "executes read and write, as if each passed through main memory: what stays in a cache is faster than "
          "that, so only the time of the arithmetic is a strict bound. Layers are profiled at the most threads.")


@dataclass(frozen=True)
class Floor:
    """The roofline of one image through one network with `threads` threads.

    Attributes:
        compute_ms: its MACs at the measured peak of its precision. memory_ms: its bytes at the measured bandwidth.
        ms: the longer of the two, which `bound` names.
    """

    threads: int
    compute_ms: float
    memory_ms: float
    ms: float
    bound: str


@dataclass(frozen=True)
class Ceiling:
    """What one image through one network in one precision asks of the machine, and its floor for each thread count.

    Attributes:
        network: STUDENT, or the name of a teacher. bytes: weights and activations.
    """

    network: str
    precision: str
    macs: int
    bytes: int
    floors: tuple[Floor, ...]
    cost: Cost


@dataclass(frozen=True)
class Reached:
    """What a measured latency reaches of its ceiling.

    Attributes:
        gmacs: 10^9 MACs of the network a second.
        of_peak: share of the machine's arithmetic peak, 0..1.
        of_roofline: floor / latency: 1 is on the roofline. Above 1 where activations stay in a cache: the memory's
            side of the floor takes every byte from main memory, which is no strict bound.
    """

    precision: str
    threads: int
    gmacs: float
    of_peak: float
    of_roofline: float


@dataclass(frozen=True)
class Ceilings:
    """The peaks of the machine, fewest threads first, and a ceiling for each network and precision."""

    peaks: tuple[Peak, ...]
    rows: tuple[Ceiling, ...]
    method: str = METHOD

    def of(self, precision: str, network: str = STUDENT) -> Ceiling | None:
        return next((row for row in self.rows if (row.network, row.precision) == (network, precision)), None)

    def reached(self, network: str, precision: str, threads: int, ms: float | None) -> Reached | None:
        """What a row of any runtime reaches with its latency of `ms` (of the network alone).

        None for a network, a precision or a thread count that was not measured, and without a latency.
        """
        row = self.of(precision, network)
        floor = next((f for f in row.floors if f.threads == threads), None) if row else None
        if row is None or floor is None or not ms:
            return None
        return Reached(precision, threads, row.macs / ms / 1e6, floor.compute_ms / ms, floor.ms / ms)


def measure_ceilings(bundle: Bundle, counts: Sequence[int], teachers: Mapping[str, Path] = MappingProxyType({}),
                     seconds_per_probe: float = 0.5) -> Ceilings:
    """Probe the machine, count and profile the networks of the bundle and the teachers, in a child process.

    Args:
        counts: of threads, each of which has a peak; the networks are profiled with the largest. Empty: the default.
        teachers: name -> ONNX file, computed in FP32 on the first golden frame in its own input shape. A file of
            several names is profiled once.
        seconds_per_probe: of each peak, of each bandwidth and of each network's profile (a slow one takes longer).

    Raises:
        EdgesegError: bad numbers, no frame or network in the bundle, a network that does not load or takes other
            channels. Files of networks are named without their folders.
    """
    threads = sorted({checked_threads(count) for count in counts or (None,)})
    if not 0 < seconds_per_probe < math.inf:
        raise EdgesegError(f"seconds_per_probe {seconds_per_probe:g} must be above 0 and finite")
    student = [(STUDENT, p, str(bundle.file(name))) for p in CANDIDATES
               if (name := model_file("openvino", p)) in bundle.files and (p != "bf16" or native_bf16())]
    if not student:
        raise EdgesegError(f"{bundle.path}: there is no OpenVINO network to measure: export it again")
    wanted = [*student, *((name, "fp32", str(path)) for name, path in teachers.items())]
    networks = list(dict.fromkeys((precision, path) for _, precision, path in wanted))
    with tempfile.TemporaryDirectory(prefix="edgeseg-ceilings-") as scratch:
        np.save(canvas := Path(scratch) / "canvas.npy", golden_canvas(bundle))
        question = {"networks": networks, "counts": threads, "seconds": seconds_per_probe, "canvas": str(canvas)}
        done = child.run_module("edgeseg.measure.ceilings", question=one_line(question), timeout=TIMEOUT)
    lines = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(lines[-1]) if lines and not done.returncode else {
            "error": child.last_words(done.returncode, done.stderr or done.stdout)}
    if "error" in found:
        reason = without_folders(found["error"], [str(canvas), *(path for _, path in networks)])[:300]
        raise EdgesegError(f"{bundle.path}: the ceilings cannot be measured: {reason}")
    peaks = tuple(Peak(**peak) for peak in found["peaks"])
    costs = dict(zip(networks, map(read_cost, found["costs"]), strict=True))
    return Ceilings(peaks, tuple(ceiling(name, p, costs[p, path], peaks) for name, p, path in wanted))


def ceiling(network: str, precision: str, cost: Cost, peaks: Iterable[Peak]) -> Ceiling:
    """The roofline arithmetic; the `peaks` must have this precision."""
    moved = cost.weight_bytes + cost.activation_bytes
    floors = []
    for peak in peaks:
        gmacs = peak.gmacs(precision)
        assert gmacs is not None
        compute_ms, memory_ms = cost.macs / gmacs / 1e6, moved / peak.bandwidth_gb_s / 1e6
        floors.append(Floor(peak.threads, compute_ms, memory_ms, max(compute_ms, memory_ms),
                            "compute" if compute_ms >= memory_ms else "memory"))
    return Ceiling(network, precision, cost.macs, moved, tuple(floors), cost)


def read_cost(stored: dict[str, Any]) -> Cost:
    return Cost(**stored | {"layers": tuple(Layer(**layer) for layer in stored["layers"])})


def without_folders(text: str, paths: Iterable[str]) -> str:
    """One line of `text` with files by their names: a folder may be temporary, and a result tells of no folder."""
    for path in paths:
        text = text.replace(path, Path(path).name)
    return " ".join(text.split())


def golden_canvas(bundle: Bundle) -> np.ndarray:
    """The bundle's first golden frame, normalised at its spacing, [C, h, w]; EdgesegError without one."""
    from edgeseg.runtime.golden import load_golden

    golden = load_golden(bundle.file("golden.npz"))
    if not golden:
        raise EdgesegError(f"{bundle.path}: no frame to measure with: its golden.npz is empty; export it again")
    return bundle.preprocessing.to_canvas(golden[0].frame[None], golden[0].spacing)[0]


def golden_input(bundle: Bundle) -> np.ndarray:
    """The bundle's first golden frame as its network takes it, float32 [1, C, H, W]; EdgesegError without one."""
    grid = bundle.preprocessing
    return windowed(golden_canvas(bundle), (1, len(grid.channels), *grid.size), str(bundle.path))


def windowed(canvas: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """What a row of the bench gives a network of input `shape`, float32; EdgesegError for one that takes no frame."""
    from edgeseg.measure.worker import network_input

    return network_input(canvas, shape, name).astype(np.float32)


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """What the child says: the cost of each network, and the peaks for each number of threads."""
    from edgeseg.runtime.telemetry import telemetry_off

    telemetry_off()
    seconds, counts, canvas = question["seconds"], question["counts"], np.load(question["canvas"])
    costs = []
    for precision, path in question["networks"]:
        try:
            x = windowed(canvas, input_shape(Path(path)), path)
            costs.append(network_cost(Path(path), precision, max(counts), x, seconds))
        except RuntimeError as error:  # not every one names the network
            raise EdgesegError(f"{path} in {precision.upper()}: {error}") from None
    return {"costs": costs, "peaks": [measured_peak(threads, seconds) for threads in counts]}


def measured_peak(threads: int, seconds: float) -> Peak:
    peaks = {p: compute_peak(p, threads, seconds) for p in CANDIDATES if p != "bf16" or native_bf16()}
    gmacs = {p: rate for p, (rate, _) in peaks.items()}
    return Peak(gmacs["fp32"], gmacs.get("bf16"), gmacs["int8"], bandwidth(threads, seconds), threads,
                {p: kernel for p, (_, kernel) in peaks.items()})


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not follow the answer
    try:
        reply: dict[str, Any] = answer(json.loads(sys.stdin.read()))
    except (EdgesegError, RuntimeError, MemoryError) as error:  # the parent says it: a traceback on a pipe helps nobody
        reply = {"error": str(error).strip() or type(error).__name__}
    out.write(one_line(reply) + "\n")


if __name__ == "__main__":
    main()
