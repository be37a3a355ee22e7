"""Speed of a bundle's networks on this CPU, as the manifest and the record of `edgeseg verify` keep it.

Every runtime and precision in one interleaved run, as in bench.py: each in its own process without torch, in turns,
ratios paired by round. So a row may be trusted against its neighbours even when the machine as a whole was slow.
"""

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError, Interrupted
from edgeseg.manifest import Estimate, Speed, Speeds
from edgeseg.measure import bench, environment, turns
from edgeseg.measure.statistics import Interval
from edgeseg.measure.turns import BLOCK_SECONDS, Job
from edgeseg.runtime.backends import BACKENDS, CANDIDATES, model_file
from edgeseg.runtime.cpu import cpu_class, native_bf16

ROUNDS = 10
"""At least so many pairs a ratio: a bootstrap over fewer blocks gives an interval that is too narrow."""


def measure_speeds(folder: Path, inputs: Sequence[np.ndarray], seconds: float, threads: int | None = None) -> Speeds:
    """Measure the networks of a bundle folder, which needs no SHA256SUMS yet.

    Args:
        inputs: network inputs float32 [C, gh, gw], taken in turn.
        seconds: counted time of each row. threads: of each row; default: what affinity and quota allow.

    Raises:
        EdgesegError: no network, no input, one that does not load or fails, bad numbers.
            Interrupted: by Ctrl-C.
    """
    if not 0 < seconds < math.inf:
        raise EdgesegError(f"--seconds {seconds:g} must be above 0 and finite")
    threads = bench.allowed_threads(threads)
    wanted = [(b, p) for b in BACKENDS for p in CANDIDATES
              if (folder / model_file(b, p)).is_file() and (p != "bf16" or (b == "openvino" and native_bf16()))]
    if not wanted:
        raise EdgesegError(f"{folder}: there is no network to measure: export it again")
    with tempfile.TemporaryDirectory(prefix="edgeseg-speed-") as scratch:
        frames = str(turns.write_frames(Path(scratch) / "frames.npz", inputs, [(1.0, 1.0)] * len(inputs), inputs))
        specs = [bench.RowSpec(f"{b} {p}", "student", Job("network", str(folder / model_file(b, p)), frames, b, p,
                                                         threads),
                               (f"{b} fp32",) if p != "fp32" and (b, "fp32") in wanted else ()) for b, p in wanted]
        found = bench.measure(specs, seconds, math.inf, block=min(BLOCK_SECONDS, seconds / ROUNDS), together=True)
    if failed := [f"{row.name}: {row.failed}" for row in found.rows if row.failed]:
        raise EdgesegError(f"{folder}: {failed[0]}")
    if not found.complete:
        raise Interrupted("interrupted while the speed was measured: nothing was written")
    return Speeds(cpu_class=cpu_class(), cpu=environment.cpu_name(), threads=threads, busy=found.load["busy"],
                  rows=tuple(Speed(backend=b, precision=p,
                                   median_ms=float(np.median(found.latencies[spec.name, "network"])),
                                   over_fp32=estimate(next(iter(row.speed_up.values()), None)))
                             for (b, p), spec, row in zip(wanted, specs, found.rows, strict=True)))


def estimate(found: Interval | None) -> Estimate | None:
    """An interval as the manifest keeps it; one block has no ends."""
    if found is None or not found.n:
        return None
    low, high = (x if math.isfinite(x) else None for x in (found.low, found.high))
    return Estimate(value=found.value, low=low, high=high, n=found.n)
