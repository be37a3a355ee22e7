"""Raw frame to label map: images per second with all cores busy, and the latency of one frame, in one run.

    python benchmarks/frame_speed.py --bundle cine [--against full_width.onnx]

On the phantom frames of the bundle as the scanner of its first frame graph sends them. Rows, each in a process of its
own, take turns in blocks: a queue of frames in as many streams as threads (`Throughput.segment_frames`), one frame at a
time with all threads and with one (`Segmenter.segment`), and the same two of every model in --against (its network
alone, in OpenVINO FP32). On a machine that does nothing else. Writes frame_speed.json and frame_speed.md.
"""

import math
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Target, cell, markdown_table, provenance, target, timing_parser

from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure import environment, latency
from edgeseg.measure.bench import allowed_threads, stored_frames
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.frame_queue import MODE
from edgeseg.measure.latency import Latency
from edgeseg.measure.statistics import Interval, bootstrap_interval, ratio_interval
from edgeseg.measure.turns import BLOCK_SECONDS, DISCARD, Block, Job, Turns, started, take_turns
from edgeseg.runtime.throughput import FRAMES_PER_REQUEST, REQUESTS_PER_STREAM

IMAGES_PER_SECOND, ALL_CORES_MS, ONE_CORE_MS, TIMES = 1000.0, 1.3, 2.0, 60.0
"""The limits, for two cores; TIMES: as many images per second as a full-width nnU-Net 2D network."""
QUEUE = "all cores busy"


@dataclass(frozen=True)
class Row:
    """A row in one mode: "queue" (all cores busy), "end_to_end" (one frame at a time) or "network" (of it alone).

    rate: images per second, median over blocks; rates: of each block. p50_ms: median over blocks of their medians;
    medians_ms: of each block. calls: latencies of all calls together. In mode "queue" a call is no image's latency, so
    there is none.
    """

    name: str
    mode: str
    threads: int
    rate: Interval
    rates: tuple[float, ...]
    p50_ms: Interval | None
    medians_ms: tuple[float, ...]
    calls: Latency | None
    cpu_ms: float
    settings: dict[str, str]


def jobs_of(bundle: Bundle, frames: str, precision: str, threads: int, against: list[Path]) -> dict[str, Job]:
    """Row -> what its process measures."""
    student = str(bundle.path)
    found = {QUEUE: Job("bundle", student, frames, "openvino", precision, threads, "edgeseg.measure.frame_queue")}
    for count in sorted({threads, 1}, reverse=True):
        found[one_at_a_time(count)] = Job("bundle", student, frames, "openvino", precision, count)
    for path in against:
        found[f"{path.stem}, {QUEUE}"] = Job("network", str(path), frames, "openvino", "fp32", threads,
                                            "edgeseg.measure.frame_queue")
        found[f"{path.stem}, {one_at_a_time(threads)}"] = Job("network", str(path), frames, "openvino", "fp32", threads)
    return found


def one_at_a_time(threads: int) -> str:
    return f"one frame, {threads} thread{'s' * (threads > 1)}"


def rate(block: Block) -> float:
    """Images per second."""
    return 1000 * len(block.ms) / float(np.sum(block.ms))


def rows_of(name: str, job: Job, ready: dict[str, Any], taken: Turns) -> list[Row]:
    found = []
    for mode in ready["modes"]:
        if not (blocks := taken.of(name, mode)):
            continue
        rates, medians = [rate(b) for b in blocks], [float(np.median(b.ms)) for b in blocks]
        ms, single = np.concatenate([b.ms for b in blocks]), mode != MODE
        found.append(Row(name, mode, job.threads, bootstrap_interval(rates, np.median), tuple(rates),
                         bootstrap_interval(medians, np.median) if single else None, tuple(medians) if single else (),
                         latency.summarise(ms) if single else None,
                         1000 * sum(b.cpu_s for b in blocks) / (len(ms) + discard(job.threads) * len(blocks)),
                         ready["runtime"]))
    return found


def discard(threads: int) -> int:
    """Calls at the start of a block that do not count: they also bring what was ready when the last block ended."""
    return DISCARD + REQUESTS_PER_STREAM * threads * FRAMES_PER_REQUEST


def measure(jobs: dict[str, Job], seconds: float, seed: int) -> tuple[list[Row], dict[str, Interval], dict[str, Any]]:
    """The rows, how many times as many images per second the student gives as each other row, and how busy it was."""
    most = max(job.threads for job in jobs.values())
    before, length = environment.load_before(), min(seconds, BLOCK_SECONDS)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(started(job)) for name, job in jobs.items()}
        start, own = environment.snapshot(), time.process_time()
        taken = take_turns(workers, math.ceil(seconds / length), length, discard(most), seed)
        own = time.process_time() - own + sum(b.cpu_s for b in taken.blocks)
        others = {"before": before, "during": environment.foreign_share(start, environment.snapshot(), own)}
        rows = [row for name, job in jobs.items() for row in rows_of(name, job, workers[name].ready, taken)]
    if taken.failed:
        raise EdgesegError("; ".join(f"{name}: {why}" for name, why in taken.failed.items()))
    return rows, ratios(taken, jobs), {"others": others, "busy": environment.is_busy(*others.values()),
                                       "complete": taken.complete}


def ratios(taken: Turns, jobs: dict[str, Job]) -> dict[str, Interval]:
    """Other row with all its cores busy -> images per second of the bundle's over its own, paired by round."""
    def rates(name: str) -> dict[int, float]:
        return {b.round: rate(b) for b in taken.of(name, MODE)}

    mine, found = rates(QUEUE), {}
    for name in (n for n in jobs if n.endswith(f", {QUEUE}")):
        theirs = rates(name)
        both = sorted(mine.keys() & theirs.keys())
        found[name.removesuffix(f", {QUEUE}")] = ratio_interval([mine[r] for r in both], [theirs[r] for r in both])
    return found


def targets(rows: list[Row], times: dict[str, Interval], threads: int) -> list[Target]:
    found = {(r.name, r.mode): r for r in rows}
    missing = Interval(math.nan, math.nan, math.nan, 0, 0)
    result = [target("images per second, all cores busy", found[QUEUE, MODE].rate, ">=", IMAGES_PER_SECOND)]
    for count, limit in ((threads, ALL_CORES_MS), (1, ONE_CORE_MS)) if threads > 1 else ((1, ONE_CORE_MS),):
        p50 = found[one_at_a_time(count), "end_to_end"].p50_ms
        result.append(target(f"{one_at_a_time(count)}: median, ms", p50 or missing, "<=", limit))
    return result + [target(f"times as many images per second as {name}", ratio, ">=", TIMES)
                     for name, ratio in times.items()]


def page(document: dict[str, Any], rows: list[Row], goals: list[Target]) -> str:
    lines = []
    for r in rows:
        values, digits = (r.medians_ms, 3) if r.medians_ms else (r.rates, 0)
        p99 = r.calls and r.calls.p99_ms
        lines.append([r.name, r.mode, cell(r.rate, 0), cell(r.p50_ms, 3) if r.p50_ms else "-",
                      f"{p99:.3f}" if p99 else "-", f"{min(values):.{digits}f} - {max(values):.{digits}f}",
                      str(len(values)), f"{r.cpu_ms:.2f}"])
    others = document["load"]["others"]
    shares = ", ".join(f"{when} {'unknown' if s is None else f'{100 * s:.0f} %'}" for when, s in others.items())
    return "\n".join([
        "# Frame speed", "",
        *(["**A quick run with tiny settings: these numbers mean nothing.**", ""] if document["quick"] else []),
        f"Commit {document['commit']}{' with uncommitted changes' if document['changed_files'] else ''}, "
        f"`{document['command']}`; bundle `{document['bundle']}`, {document['precision']}, phantom frames of "
        f"{document['protocol']}.", "",
        f"{document['machine']['cpu']}, {document['threads']} threads; others used of these CPUs: {shares}"
        + (", **busy while timing**" if document["load"]["busy"] else "") + ".", "",
        markdown_table(["what", "value", "95 %", "limit", "verdict"], [t.line() for t in goals]),
        "Modes: queue: a queue of frames, as many streams as threads; end_to_end: one frame after the other; network: "
        "the network alone, its input prepared. Medians over blocks with 95 % bootstrap intervals; p99 of all calls.",
        "", markdown_table(["row", "mode", "images/s", "p50 ms", "p99 ms", "blocks: least - most", "blocks", "CPU ms"],
                           lines)])


def main() -> int:
    parser = timing_parser(__doc__, "a bundle with a frame graph: its path, or a shipped name")
    parser.add_argument("--against", type=Path, action="append", default=[], help="another model file; may be repeated")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each row and mode")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    check_out(given.out)
    threads, seconds = allowed_threads(given.threads), 0.1 if given.quick else given.seconds
    bundle = open_bundle(given.bundle)
    if not bundle.manifest.frames:
        raise EdgesegError(f"{given.bundle}: has no frame graph: export it with --frame")
    with tempfile.TemporaryDirectory(prefix="edgeseg-frames-") as scratch:
        frames = stored_frames(bundle, Path(scratch))
        rows, times, load = measure(jobs_of(bundle, frames, given.precision, threads, given.against), seconds,
                                    given.seed)
    goals = targets(rows, times, threads)
    document = {"schema": "edgeseg.frame-speed/1", **provenance(), "quick": given.quick, "bundle": bundle.path.name,
                "precision": given.precision, "protocol": bundle.manifest.frames[0].name, "threads": threads,
                "seconds": seconds, "seed": given.seed, "load": load, "machine": environment.describe(),
                "targets": [t.document() for t in goals], "rows": rows, "times": times}
    write_json(given.out / "frame_speed.json", document)
    write_text(given.out / "frame_speed.md", page(document, rows, goals))
    for t in goals:
        print("   ".join(t.line()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgesegError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
