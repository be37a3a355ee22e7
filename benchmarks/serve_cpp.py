"""The C sample against the Python runtime, on the same frame graph and the same frames, in one run.

    python benchmarks/serve_cpp.py [--bundle cine] [--sample edgeseg_segment]

Rows, in a process for each language, take turns in blocks: one call of the C interface (`edgeseg_push`: checks,
copies, network), the frame graph alone in Python (copies, network), and `Segmenter.segment` around it. The kit is built
for this (Release) unless --sample names the program. On a machine that does nothing else. Writes serve_cpp.json and
serve_cpp.md.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, Target, cell, markdown_table, provenance, target

from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure import environment, latency
from edgeseg.measure.bench import allowed_threads, scanner_frames, stored_frames
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.latency import Latency
from edgeseg.measure.statistics import Interval, bootstrap_interval, ratio_interval
from edgeseg.measure.turns import BLOCK_SECONDS, DISCARD, Job, Turns, Worker, WorkerError, started, take_turns

LIMIT = 1.05
"""The C sample's median over that of the Python runtime's network."""
SAMPLE, NETWORK, SEGMENTER = "C sample", "Python, the frame graph alone", "Python, Segmenter"
MODE = "network"
"""Of the two whose ratio counts: their blocks follow each other."""
FRAMES_PER_PASS = 64
"""So that what a process pays for waking up is one call of many."""


class SampleProgram(Worker):
    """`edgeseg_segment --wait` as one of those that take turns: a block is as many passes as its seconds take."""

    def __init__(self, program: Path, bundle: Bundle, frames: np.ndarray, threads: int, precision: str,
                 folder: Path) -> None:
        protocol = bundle.manifest.frames[0]
        (raw := folder / "frames.raw").write_bytes(frames.tobytes())
        shape, mm = "x".join(map(str, protocol.size)), "x".join(map(repr, protocol.spacing))
        self.errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115  closed by Worker
        self.process = subprocess.Popen(
            [program, bundle.path, raw, f"{shape}@{mm}", protocol.dtype, "--precision", precision, "--threads",
             str(threads), "--wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.buffer, self.ready = b"", {"modes": [MODE]}
        if self.read_line(60) != b"ready":
            raise EdgesegError(f"{program.name}: {self.last_words()}")

    def ask(self, question: dict[str, Any], timeout: float) -> dict[str, Any]:
        assert self.process.stdin is not None
        start, cpu = time.monotonic(), self.cpu_seconds()
        ms: list[float] = []
        while sum(ms[question["discard"]:]) < 1000 * question["seconds"]:
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
            if not (line := self.read_line(timeout)):
                raise WorkerError(self.last_words())
            ms += map(float, line.split())
        return {"ms": ms[question["discard"]:], "start": start, "end": time.monotonic(),
                "cpu_s": self.cpu_seconds() - cpu, "rss_mb": None, "peak_rss_mb": None}

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> Self:
        return self


@dataclass(frozen=True)
class Row:
    """p50_ms: median over blocks of their medians. calls: latencies of all calls together."""

    name: str
    p50_ms: Interval
    medians_ms: tuple[float, ...]
    calls: Latency


def built(folder: Path) -> Path:
    """The sample program, built for speed.

    Raises:
        EdgesegError: cmake or what it needs is not there.
    """
    from openvino.utils import get_cmake_path

    source = HERE.parent / "export" / "cpp"
    commands: tuple[list[str | Path], ...] = (
        ["cmake", "-S", source, "-B", folder, f"-DOpenVINO_DIR={get_cmake_path()}", "-DEDGESEG_TESTS=OFF"],
        ["cmake", "--build", folder, "--parallel"])
    for command in commands:
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise EdgesegError("cmake is not here: apt install cmake g++ libssl-dev nlohmann-json3-dev") from None
        if done.returncode:
            raise EdgesegError(f"the kit does not build: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return folder / "edgeseg_segment"


def measure(program: Path, bundle: Bundle, threads: int, precision: str, seconds: float, seed: int,
            folder: Path) -> tuple[list[Row], Interval, dict[str, Any]]:
    """The rows, the C sample's median over that of the graph alone (paired by round), and how busy the machine was."""
    frames = scanner_frames(bundle)[0]
    many = np.stack([frames[i % len(frames)] for i in range(FRAMES_PER_PASS)])
    python = Job("bundle", str(bundle.path), stored_frames(bundle, folder), "openvino", precision, threads,
                 "serve_cpp_worker")
    before, length = environment.load_before(), min(seconds, BLOCK_SECONDS)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    with ExitStack() as stack:
        workers = {"C": stack.enter_context(SampleProgram(program, bundle, many, threads, precision, folder)),
                   "Python": stack.enter_context(started(python))}
        start, own = environment.snapshot(), time.process_time()
        taken = take_turns(workers, math.ceil(seconds / length), length, DISCARD, seed)
        own = time.process_time() - own + sum(b.cpu_s for b in taken.blocks)
        others = {"before": before, "during": environment.foreign_share(start, environment.snapshot(), own)}
    if taken.failed:
        raise EdgesegError("; ".join(f"{name}: {why}" for name, why in taken.failed.items()))
    rows = [row(name, taken, worker, mode) for name, worker, mode in
            ((SAMPLE, "C", MODE), (NETWORK, "Python", MODE), (SEGMENTER, "Python", "end_to_end"))]
    ratio = ratio_interval(rows[0].medians_ms, rows[1].medians_ms)
    return rows, ratio, {"others": others, "busy": environment.is_busy(*others.values()), "complete": taken.complete}


def row(name: str, taken: Turns, worker: str, mode: str) -> Row:
    blocks = taken.of(worker, mode)
    medians = [float(np.median(b.ms)) for b in blocks]
    return Row(name, bootstrap_interval(medians, np.median), tuple(medians),
               latency.summarise(np.concatenate([b.ms for b in blocks])))


def page(document: dict[str, Any], rows: list[Row], goal: Target) -> str:
    others = document["load"]["others"]
    shares = ", ".join(f"{when} {'unknown' if s is None else f'{100 * s:.0f} %'}" for when, s in others.items())
    lines = [[r.name, cell(r.p50_ms, 3), f"{r.calls.p99_ms:.3f}" if r.calls.p99_ms else "-",
              f"{min(r.medians_ms):.3f} - {max(r.medians_ms):.3f}", str(len(r.medians_ms))] for r in rows]
    return "\n".join([
        "# C sample", "",
        *(["**A quick run with tiny settings: these numbers mean nothing.**", ""] if document["quick"] else []),
        f"Commit {document['commit']}{' with uncommitted changes' if document['changed_files'] else ''}, "
        f"`{document['command']}`; bundle `{document['bundle']}`, {document['precision']}, phantom frames of "
        f"{document['protocol']}.", "",
        f"{document['machine']['cpu']}, {document['threads']} thread(s); others used of these CPUs: {shares}"
        + (", **busy while timing**" if document["load"]["busy"] else "") + ".", "",
        markdown_table(["what", "value", "95 %", "limit", "verdict"], [goal.line()]),
        "Medians over blocks with 95 % bootstrap intervals; p99 of all calls; the ratio is paired by round.", "",
        markdown_table(["row", "p50 ms", "p99 ms", "blocks: least - most", "blocks"], lines)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="cine", help="a bundle with a frame graph: its path, or a shipped name")
    parser.add_argument("--sample", type=Path, help="the built program edgeseg_segment; default: build it")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="tiny settings: proves that the script runs, nothing else")
    given = parser.parse_args()
    check_out(given.out)
    threads, seconds = allowed_threads(given.threads), 0.1 if given.quick else given.seconds
    bundle = open_bundle(given.bundle)
    if not bundle.manifest.frames:
        raise EdgesegError(f"{given.bundle}: has no frame graph: export it with --frame")
    with tempfile.TemporaryDirectory(prefix="edgeseg-cpp-") as scratch:
        program = given.sample or built(Path(scratch) / "kit")
        rows, ratio, load = measure(program, bundle, threads, given.precision, seconds, given.seed, Path(scratch))
    goal = target("C sample over the Python runtime's network time", ratio, "<=", LIMIT)
    document = {"schema": "edgeseg.serve-cpp/1", **provenance(), "quick": given.quick, "bundle": bundle.path.name,
                "precision": given.precision, "protocol": bundle.manifest.frames[0].name, "threads": threads,
                "seconds": seconds, "seed": given.seed, "load": load, "machine": environment.describe(),
                "targets": [goal.document()], "rows": rows}
    write_json(given.out / "serve_cpp.json", document)
    write_text(given.out / "serve_cpp.md", page(document, rows, goal))
    print("   ".join(goal.line()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgesegError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
