"""The whole bench: rows that take turns, and around them what else an integrator asks.

The rows come first (measure/bench.py). Then, one after the other on a machine that does nothing else: time to the first
mask, a paced stream, a whole exam, the ceilings of this CPU, openvino's own benchmark, the teacher's own pipeline.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeseg.container import Bundle, open_bundle
from edgeseg.distill.against import PipelineRow, against_rows, measure_pipeline, teacher_folder
from edgeseg.errors import EdgesegError
from edgeseg.measure import bench
from edgeseg.measure.bench import Bench, Row, RowSpec, allowed_threads, stored_frames
from edgeseg.measure.ceilings import Ceilings, measure_ceilings
from edgeseg.measure.cross_check import CrossCheck, cross_check
from edgeseg.measure.exam import Exam, measure_exam
from edgeseg.measure.first_frame import FirstFrame, first_frame
from edgeseg.measure.paced import Paced, check_paced, measure_paced
from edgeseg.measure.turns import Job, WorkerError
from edgeseg.report.bench_parts import SAY, shares
from edgeseg.runtime.throughput import checked_streams


@dataclass(frozen=True)
class Wanted:
    """What is asked of a bench.

    Attributes:
        against: runs, X.onnx, nnunet:DIR. threads: of every row, once for each count; empty: what is allowed.
        seconds: counted time of each row and mode. target: images per second.
        rate: frames per second of a paced stream of `rate_seconds`, beside `stress` busy processes and under `quota`
            CPUs. streams: of a whole exam, 0 for as many as are fastest.
        starts: warm starts of each row's first frame, 0 for none. ceilings: probe this CPU and profile the network.
    """

    against: tuple[str, ...] = ()
    threads: tuple[int, ...] = ()
    seconds: float = 5.0
    target: float = 10.0
    seed: int = 0
    rate: float | None = None
    rate_seconds: float = 60.0
    stress: int = 0
    quota: float | None = None
    streams: int | None = None
    starts: int = 3
    ceilings: bool = True
    cross_check: bool = False

    def check(self) -> None:
        """Raise EdgesegError for what cannot be: before anything is measured, not after a minute of it."""
        counts = [allowed_threads(t) for t in self.threads]
        if not (0 < self.seconds < math.inf and 0 < self.target < math.inf):
            raise EdgesegError(f"--seconds {self.seconds:g} and --target {self.target:g} must be above 0 and finite")
        if len(set(counts)) < len(counts):
            raise EdgesegError(f"--threads {','.join(map(str, counts))}: names a number twice")
        if self.rate is not None:
            check_paced(self.rate, self.rate_seconds, self.stress, self.quota)
        elif self.stress or self.quota is not None:
            raise EdgesegError("--stress and --quota are for a paced stream: add --rate, for example --rate 50")
        if self.streams:
            checked_streams(self.streams, max(counts, default=None))
        if self.starts < 0:
            raise EdgesegError(f"--starts {self.starts}: 0 or more")


@dataclass
class FullBench:
    """The result: the rows, and each further part that was measured (else None, and `missing` says why)."""

    rows: Bench
    first_frames: dict[str, FirstFrame] | None = None
    paced: Paced | None = None
    exam: Exam | None = None
    ceilings: Ceilings | None = None
    cross_check: CrossCheck | None = None
    pipeline: tuple[PipelineRow, ...] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    dice: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        parts = (self.paced, self.exam, *(self.pipeline or ()))
        return self.rows.complete and not self.missing and all(p is None or p.complete for p in parts)

    def document(self) -> dict[str, Any]:
        return {**self.rows.document(), "complete": self.complete, "missing": self.missing, "dice": self.dice,
                **{name: getattr(self, name) for name in SAY},
                "reached": None if self.ceilings is None else shares(self.ceilings, self.rows)}


def full_bench(path: Path, wanted: Wanted, on_step: Callable[[str, int], None] = lambda text, total: None) -> FullBench:
    """Measure `path` as `wanted` says; Ctrl-C ends it with what there is.

    Args:
        on_step: called after each step with what it was, and the number of steps of this part.

    Raises:
        EdgesegError: bad input, found before anything is measured. KeyboardInterrupt: before the first block.
    """
    wanted.check()
    bundle = open_bundle(path)
    with tempfile.TemporaryDirectory(prefix="edgeseg-bench-") as scratch:
        most = max(allowed_threads(t) for t in wanted.threads or (None,))
        extra = extra_rows(wanted.against, bundle, most, Path(scratch))
        result = FullBench(bench.bench_bundle(
            path, extra, wanted.threads, wanted.seconds, wanted.target, wanted.seed,
            lambda block, total: on_step(f"{block.row}, {block.mode}", total)), dice=dice_of(bundle))
        ended = result.rows.interrupted
        for name, measure in parts(bundle, wanted, result.rows, Path(scratch), on_step):
            try:
                if ended:
                    raise KeyboardInterrupt
                setattr(result, name, measure())
            except KeyboardInterrupt:
                ended, result.missing[name] = True, "the run was ended"
            except (EdgesegError, WorkerError) as error:
                result.missing[name] = str(error)
    return result


def parts(bundle: Bundle, wanted: Wanted, rows: Bench, scratch: Path,
          on_step: Callable[[str, int], None]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The wanted parts after the rows, by the name of their field."""
    default, frames = rows.default, stored_frames(bundle, scratch)
    threads = default.threads

    def job(row: Row) -> Job:
        return Job("bundle", str(bundle.path), frames, row.backend, row.precision, row.threads)

    if wanted.starts:
        own = [r for r in rows.rows if r.role == "student" and r.backend in bench.RUNTIMES and r.threads == threads]
        yield "first_frames", lambda: first_frames({r.name: job(r) for r in own}, wanted.starts, on_step)
    if wanted.rate is not None:
        rate = wanted.rate
        yield "paced", lambda: measure_paced(
            job(default), rate, wanted.rate_seconds, wanted.stress, wanted.quota,
            lambda done, of: on_step(f"{rate:g} frames a second, {done} of {of}", math.ceil(wanted.rate_seconds)))
    if wanted.streams is not None:
        yield "exam", lambda: measure_exam(bundle, wanted.streams or None, threads,
                                           on_block=lambda b: on_step(f"exam, {b.row}", 20))
    if wanted.ceilings:
        yield "ceilings", lambda: measure_ceilings(bundle, threads)
    if wanted.cross_check:
        yield "cross_check", lambda: cross_check(bundle, default.precision, threads)
    if teachers := [folder for spec in wanted.against if (folder := teacher_folder(spec))]:
        yield "pipeline", lambda: measure_pipeline(teachers[0], bundle, threads, on_step=on_step)


def extra_rows(against: tuple[str, ...], bundle: Bundle, threads: int, scratch: Path) -> list[RowSpec]:
    """The rows of all that is named; a name that comes again carries what it is of."""
    found: dict[str, RowSpec] = {}
    for number, spec in enumerate(against):
        (folder := scratch / str(number)).mkdir()
        rows = against_rows(spec, bundle.path, threads, folder)
        new = {r.name: f"{r.name} ({Path(spec.rstrip('/')).name})" if r.name in found else r.name for r in rows}
        found |= {new[r.name]: replace(r, name=new[r.name], faster_than=tuple(new[n] for n in r.faster_than))
                  for r in rows}
    return list(found.values())


def first_frames(jobs: dict[str, Job], starts: int, on_step: Callable[[str, int], None]) -> dict[str, FirstFrame]:
    found = {}
    for name, job in jobs.items():
        found[name] = first_frame(job, starts)
        on_step(f"first frame, {name}", len(jobs))
    return found


def dice_of(bundle: Bundle) -> dict[str, Any]:
    """Mean Dice of each row as the bundle's manifest has it, on val where that was measured, else on dev."""
    scores = bundle.manifest.measured.scores
    split = "val" if any(s.split == "val" for s in scores) else "dev"
    named = {f"student {bench.RUNTIMES[s.backend]} {s.precision.upper()}": s for s in scores if s.split == split}
    return {"split": split, "rows": {name: s.dice["mean"].model_dump() for name, s in named.items()}}
