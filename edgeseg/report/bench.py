"""The whole bench: rows that take turns, and around them what else an integrator asks.

The rows come first (measure/bench.py). Then, one after the other on a machine that does nothing else: time to the first
mask, a paced stream, a whole exam, the ceilings of this CPU, openvino's own benchmark, the teacher's own pipeline.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgeseg.container import Bundle, open_bundle
from edgeseg.distill.against import against_rows, teacher_folder
from edgeseg.distill.pipeline import Pipeline, measure_pipeline
from edgeseg.errors import EdgesegError
from edgeseg.measure import bench, environment
from edgeseg.measure.bench import Bench, allowed_threads, stored_frames
from edgeseg.measure.ceilings import Ceilings, measure_ceilings
from edgeseg.measure.cross_check import CrossCheck, check_available, cross_check
from edgeseg.measure.exam import Exam, measure_exam
from edgeseg.measure.first_frame import FirstFrame, first_frame
from edgeseg.measure.paced import Paced, check_paced, measure_paced
from edgeseg.measure.rows import Row, RowSpec
from edgeseg.measure.turns import Job
from edgeseg.report.bench_parts import SAY, reached
from edgeseg.runtime.throughput import checked_streams


@dataclass(frozen=True)
class Wanted:
    """What is asked of a bench.

    Attributes:
        against: runs, X.onnx, nnunet:DIR. threads: of every row, once for each count; empty: what is allowed.
        seconds: counted time of each row and mode. target: images per second.
        rate: frames per second of a paced stream of `rate_seconds`, beside `stress` busy processes and under `quota`
            CPUs. streams: of a whole exam, 0 for one for each thread.
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
        counts = [allowed_threads(t) for t in self.threads or (None,)]
        if not (0 < self.seconds < math.inf and 0 < self.target < math.inf):
            raise EdgesegError(f"--seconds {self.seconds:g} and --target {self.target:g} must be above 0 and finite")
        if len(set(counts)) < len(counts):
            raise EdgesegError(f"--threads {','.join(map(str, counts))}: names a number twice")
        if self.seed < 0 or self.starts < 0:
            raise EdgesegError(f"--seed {self.seed} and --starts {self.starts} must be 0 or more")
        if self.rate is not None:
            check_paced(self.rate, self.rate_seconds, self.stress, self.quota)
        elif self.stress or self.quota is not None:
            raise EdgesegError("--stress and --quota are for a paced stream: add --rate, for example --rate 50")
        if self.streams:
            checked_streams(self.streams, max(counts))
        if self.cross_check:
            check_available()
        if len([spec for spec in self.against if teacher_folder(spec)]) > 1:
            raise EdgesegError("--against: one nnU-Net folder at a time; its full pipeline alone takes a minute")


@dataclass
class FullBench:
    """The result: the rows, and each further part that was measured.

    Attributes:
        missing: part that was asked for and not measured -> why. others: part -> share (0..1) of the CPUs that others
            used while it was measured. interrupted: the run was ended by the user.
        dice: mean Dice of the rows, from the manifest.
    """

    rows: Bench
    first_frames: dict[str, FirstFrame] | None = None
    paced: Paced | None = None
    exam: Exam | None = None
    ceilings: Ceilings | None = None
    cross_check: CrossCheck | None = None
    pipeline: Pipeline | None = None
    missing: dict[str, str] = field(default_factory=dict)
    others: dict[str, float | None] = field(default_factory=dict)
    interrupted: bool = False
    dice: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        return self.rows.complete and not self.interrupted and not self.missing and not self.failures

    @property
    def failures(self) -> list[str]:
        """What went wrong, a line each."""
        exam = [(r.name, r.failed) for r in self.exam.rows] if self.exam else []
        return [*(f"{name}: {why}" for name, why in [*((r.name, r.failed) for r in self.rows.rows), *exam] if why),
                *(f"{part.replace('_', ' ')}: {why}" for part, why in self.missing.items() if why != ENDED)]

    @property
    def busy(self) -> bool:
        """Whether others used the machine while anything of it was measured."""
        return self.rows.load["busy"] or environment.is_busy(*self.others.values())

    def take(self, name: str, measure: Callable[[], Any], private: str) -> None:
        """Measure one part; what goes wrong is kept as a line without the folder `private`. Ctrl-C ends the run."""
        if self.interrupted:
            self.missing[name] = ENDED
            return
        try:
            with environment.Watch() as watch:
                found = measure()
        except KeyboardInterrupt:
            self.interrupted, self.missing[name] = True, ENDED
        except Exception as error:  # an hour of rows is not lost because a disk is full
            words = " ".join(str(error).split()) or type(error).__name__
            self.missing[name] = words.replace(private, Path(private).name)
        else:
            setattr(self, name, found)
            self.others[name] = watch.others
            self.interrupted = getattr(found, "interrupted", False)

    def document(self) -> dict[str, Any]:
        return {**self.rows.document(), "complete": self.complete, "interrupted": self.interrupted,
                "missing": self.missing, "others_during_parts": self.others, "dice": self.dice,
                **{name: getattr(self, name) for name in SAY},
                "reached": None if self.ceilings is None else reached(self.ceilings, self.rows)}


ENDED = "the run was ended"


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
        rows = bench.bench_bundle(path, extra, wanted.threads, wanted.seconds, wanted.target, wanted.seed,
                                  lambda block, total: on_step(f"{block.row}, {block.mode}", total))
        rows.about["against"] = [without_folder(spec) for spec in wanted.against] or None
        result = FullBench(rows, interrupted=rows.interrupted, dice=dice_of(bundle))
        for name, measure in parts(bundle, wanted, rows, extra, Path(scratch), on_step):
            result.take(name, measure, str(bundle.path))
    return result


def without_folder(spec: str) -> str:
    """`nnunet:/home/me/model` -> `nnunet:model`."""
    kind, colon, path = spec.rpartition(":")
    return kind + colon + Path(path).name


def parts(bundle: Bundle, wanted: Wanted, rows: Bench, extra: Sequence[RowSpec], scratch: Path,
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
        files = {s.name: Path(s.job.path) for s in extra if s.role == "teacher" and s.job.path.endswith(".onnx")}
        teachers = {s.name: file for s in extra  # in PyTorch it is the same network
                    if s.role == "teacher" and (file := files.get(s.name.replace("PyTorch", "OpenVINO")))}
        yield "ceilings", lambda: measure_ceilings(bundle, rows.about["threads"], teachers)
    if wanted.cross_check:
        yield "cross_check", lambda: cross_check(bundle, default.precision, threads)
    if folders := [folder for spec in wanted.against if (folder := teacher_folder(spec))]:
        yield "pipeline", lambda: measure_pipeline(folders[0], bundle, threads, on_step=on_step)


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
