"""Bench: latency of a bundle on this CPU, every runtime and precision in one interleaved run, with its verdict.

Method: each row in its own process, without torch unless it is the row's runtime, on the bundle's golden frames
(phantoms, never zeros) as its scanner would send them; single stream (the next frame when the last is done); turns of
at least half a second in an order drawn anew each round, the first five calls of each not counted. A speed-up is
the geometric mean over rounds of the ratio of block medians, with a bootstrap interval over the rounds: a machine that
drifts favours nobody.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.measure import environment, latency, turns
from edgeseg.measure.rows import Row, RowSpec, joined, summarise
from edgeseg.measure.turns import BLOCK_SECONDS, DISCARD, Job, Worker, WorkerError
from edgeseg.runtime import threads as limits
from edgeseg.runtime.backends import CANDIDATES, model_file
from edgeseg.runtime.cpu import native_bf16
from edgeseg.runtime.frame_graph import bring

SCHEMA = "edgeseg.bench/2"
RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}


@dataclass
class Bench:
    """The result.

    Attributes:
        default_row: the row that `Segmenter(bundle)` is, whose end-to-end rate meets the target or does not.
        interrupted: by Ctrl-C, which is the other way than a failed row not to be complete.
        latencies: (row, mode) -> counted latencies in ms, for plots.
    """

    rows: list[Row]
    target: float
    seconds: float
    frames: int
    default_row: str
    complete: bool
    interrupted: bool
    machine: dict[str, Any]
    load: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    latencies: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)

    @property
    def target_met(self) -> bool | None:
        """Whether the row that a user gets by default reaches the target; None when it was not measured."""
        return next((r.target_met for r in self.rows if r.name == self.default_row), None)

    def row(self, name: str) -> Row:
        return next(r for r in self.rows if r.name == name)

    @property
    def default(self) -> Row:
        """The row that `Segmenter(bundle)` is."""
        return self.row(self.default_row)

    def document(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "complete": self.complete, "device": "cpu", **self.about,
                "target_images_per_second": self.target, "default_row": self.default_row, "target_met": self.target_met,
                "method": {"seconds_per_row_and_mode": self.seconds, "block_seconds": min(self.seconds, BLOCK_SECONDS),
                           "discarded_calls_per_block": DISCARD, "frames": self.frames,
                           "percentile_confidence": latency.CONFIDENCE},
                "load": self.load, "machine": self.machine, "rows": self.rows}


def bench_bundle(path: Path, extra: Sequence[RowSpec] = (), threads: Sequence[int] = (), seconds: float = 5.0,
                 target: float = 10.0, seed: int = 0,
                 on_block: Callable[[turns.Block, int], None] | None = None) -> Bench:
    """Measure all runtimes and precisions of the bundle at `path` and the `extra` rows, in one run.

    Args:
        extra: further rows, such as the teacher's (their `frames` and `threads` are filled in); every student row is
            compared to them.
        threads: of the rows; with several counts every row is measured with each. Default: what affinity and quota
            allow.
        seconds: counted time of each row and mode. target: images per second.
        on_block: called after each block with it and the number of blocks in all.

    Raises:
        EdgesegError: a bundle that fails its hashes or has no frames, a network that does not load, bad numbers.
    """
    from edgeseg.container import open_bundle
    from edgeseg.runtime.precision import choose_precision

    if not (0 < seconds < math.inf and 0 < target < math.inf):
        raise EdgesegError(f"--seconds {seconds:g} and --target {target:g} must be above 0 and finite")
    counts = sorted({allowed_threads(t) for t in threads or (None,)})
    bundle = open_bundle(path)
    with tempfile.TemporaryDirectory(prefix="edgeseg-bench-") as scratch:
        stored = stored_frames(bundle, Path(scratch))
        specs = [spec for count in counts
                 for spec in with_threads([*bundle_rows(bundle, stored), *extra], stored, count, len(counts) > 1)]
        result = measure(specs, seconds, target, seed, on_block)
    names = [s.name for s in specs]
    chosen = labelled(f"student OpenVINO {choose_precision(bundle, 'openvino', counts[-1]).upper()}", counts[-1],
                      len(counts) > 1)
    result.default_row = chosen if chosen in names else names[0]
    raw, _, what = scanner_frames(bundle)
    result.frames = len(raw)
    result.about = {"bundle": bundle.path.name, "input": f"phantom frames: {what}", "threads": counts, "seed": seed,
                    "against": sorted({Path(s.job.path).name for s in extra}) or None}
    return result


def stored_frames(bundle: Any, folder: Path) -> str:
    """The input file of every worker: the bundle's own phantom frames, raw and as its network takes them."""
    frames, spacings, _ = scanner_frames(bundle)
    canvases = [bundle.preprocessing.to_canvas(np.asarray(f[None], np.float32), s)[0]
                for f, s in zip(frames, spacings, strict=True)]
    return str(turns.write_frames(folder / "frames.npz", frames, spacings, canvases))


def with_threads(specs: Sequence[RowSpec], frames: str, threads: int, several: bool) -> list[RowSpec]:
    """The rows with their input and one number of threads, each compared within it to FP32 and to the extra rows."""
    others = tuple(s.name for s in specs if s.role == "teacher")
    return [replace(s, name=labelled(s.name, threads, several), job=replace(s.job, frames=frames, threads=threads),
                    faster_than=tuple(labelled(n, threads, several) for n in
                                      (*s.faster_than, *(others if s.role == "student" else ()))))
            for s in specs]


def labelled(name: str, threads: int, several: bool) -> str:
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}" if several else name


def allowed_threads(threads: int | None) -> int:
    """`threads`, or the runtime's default; never more than affinity and quota give."""
    quota = limits.cpu_quota()
    most = min(len(limits.allowed_cpus()), math.ceil(quota) if quota is not None else sys.maxsize)
    if threads is not None and threads > most:
        raise EdgesegError(f"--threads {threads}: this process may use {most} CPUs (affinity and quota); ask for fewer")
    return limits.checked_threads(threads)


def bundle_rows(bundle: Any, frames: str) -> list[RowSpec]:
    """A row for each runtime and precision that the bundle has files for; bf16 where OpenVINO has it natively."""
    rows = []
    for backend, label in RUNTIMES.items():
        for precision in CANDIDATES:
            if model_file(backend, precision) not in bundle.files:
                continue
            if precision == "bf16" and not (backend == "openvino" and native_bf16()):
                continue
            fp32 = (f"student {label} FP32",) if precision != "fp32" else ()
            rows.append(RowSpec(f"student {label} {precision.upper()}", "student",
                                Job("bundle", str(bundle.path), frames, backend, precision), fp32))
    return rows


def scanner_frames(bundle: Any) -> tuple[list[np.ndarray], list[tuple[float, float]], str]:
    """Raw frames [C, H, W] as they come to this bundle, their spacings in mm, and what they are.

    Its phantom frames, brought to the first protocol that it has a frame graph for: that is what its scanner sends.
    Without one in their own grids.
    """
    frames, spacings = golden_frames(bundle.file("golden.npz"))
    if not bundle.manifest.frames:
        return frames, spacings, "native grids, resampled outside the network"
    protocol = bundle.manifest.frames[0]
    brought = [bring(f, s, protocol) for f, s in zip(frames, spacings, strict=True)]
    return brought, [protocol.spacing] * len(brought), f"{protocol.name}, in its frame graph where there is one"


def golden_frames(path: Path) -> tuple[list[np.ndarray], list[tuple[float, float]]]:
    """The bundle's own raw phantom frames [C, H, W] in their native grid, with their spacings in mm."""
    from edgeseg.runtime.golden import load_golden

    found = load_golden(path)
    return [g.frame for g in found], [g.spacing for g in found]


def measure(specs: Sequence[RowSpec], seconds: float, target: float, seed: int = 0,
            on_block: Callable[[turns.Block, int], None] | None = None, block: float | None = None,
            together: bool = False) -> Bench:
    """Start a process a row, let them take turns, and summarise.

    Args:
        block: length of a turn in s; default BLOCK_SECONDS. together: see `start_workers`.

    Raises:
        EdgesegError: a row's network does not load.
    """
    length = min(seconds, block or BLOCK_SECONDS)
    rounds = math.ceil(seconds / length)
    before = environment.load_before()
    with ExitStack() as stack:
        workers = start_workers(specs, stack, together)
        total = rounds * sum(len(w.ready["modes"]) for w in workers.values())
        start, own = environment.snapshot(), time.process_time()
        taken = turns.take_turns(workers, rounds, length, DISCARD, seed,
                                 (lambda b: on_block(b, total)) if on_block else None)
        own = time.process_time() - own + sum(b.cpu_s for b in taken.blocks)
        during = environment.foreign_share(start, environment.snapshot(), own)
        rows = [summarise(spec, workers[spec.name].ready, taken, target) for spec in specs]
    load = {"others_before": before, "others_during": during, "busy_above": environment.BUSY_SHARE,
            "busy": environment.is_busy(before, during)}
    return Bench(rows, target, seconds, 0, "", taken.complete, taken.interrupted, environment.describe(), load,
                 latencies={(b.row, b.mode): joined(taken, b.row, b.mode) for b in taken.blocks})


def start_workers(specs: Sequence[RowSpec], stack: ExitStack, together: bool) -> dict[str, Worker]:
    """A worker a row, each closed with `stack`. What a user names is most likely to be wrong, so it comes first.

    Args:
        together: as many at once as there are CPUs: quicker, but what they say of their own start is then too long.

    Raises:
        EdgesegError: a row's network does not load.
    """
    ordered = sorted(specs, key=lambda s: s.role == "student")

    def one(spec: RowSpec) -> Worker:
        try:
            return stack.enter_context(Worker(spec.job))
        except WorkerError as error:
            raise EdgesegError(f"{spec.job.path}: {spec.name} does not start: {error}") from None

    with ThreadPoolExecutor(len(limits.allowed_cpus()) if together else 1) as pool:
        return dict(zip([s.name for s in ordered], pool.map(one, ordered), strict=True))
