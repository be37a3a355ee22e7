"""Turns: several processes measured in one run, only the one that holds the token awake."""

import json
import os
import selectors
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg import child
from edgeseg.errors import EdgesegError
from edgeseg.measure import environment

BLOCK_SECONDS = 0.5
"""Least length of a turn: long against the time that a core takes to reach its clock speed, short against drift."""
DISCARD = 5
"""Calls at the start of a block that are not counted: they pay for the caches that the previous one filled."""
LOAD_TIMEOUT = 600.0


@dataclass(frozen=True)
class Job:
    """What one worker measures. `frames` is the input file that `write_frames` made.

    kind: "bundle" (a Segmenter of `path`), "network" (the ONNX or IR file `path`), "empty" (the harness itself), or
        what else `module` knows. module: what is run as the worker; whoever needs torch has a module of its own.
    """

    kind: str
    path: str
    frames: str
    backend: str = "openvino"
    precision: str = "fp32"
    threads: int = 1
    module: str = "edgeseg.measure.worker"


@dataclass(frozen=True)
class Block:
    """One turn: latencies in ms of its counted calls; `start` and `end` on the system's monotonic clock, in s.

    rss_mb: resident set at the end of the block. energy_j: of the CPU packages, everybody's work included, where the
        system tells.
    """

    row: str
    mode: str
    round: int
    start: float
    end: float
    ms: np.ndarray
    cpu_s: float
    peak_rss_mb: float | None
    rss_mb: float | None = None
    energy_j: float | None = None


@dataclass
class Turns:
    """All blocks of a run in the order in which they ran. `failed`: rows that ended in the middle, and why."""

    blocks: list[Block] = field(default_factory=list)
    complete: bool = False
    interrupted: bool = False
    failed: dict[str, str] = field(default_factory=dict)

    def of(self, row: str, mode: str) -> list[Block]:
        return [b for b in self.blocks if (b.row, b.mode) == (row, mode)]


class WorkerError(Exception):
    """A worker said why it cannot go on, or ended without a word."""


class Worker:
    """A measuring process. Use as a context manager: it never outlives the `with` block."""

    def __init__(self, job: Job) -> None:
        self.errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115  closed in `close`
        self.process = subprocess.Popen(child.command(job.module), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=self.errors, env=child.environment())
        self.buffer = b""
        try:
            self.ready = self.ask({"job": asdict(job)}, LOAD_TIMEOUT)
        except BaseException:
            self.close()
            raise

    def ask(self, question: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send one line and wait for the answer; the errors are those of `answer`."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: its last line says why
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        return self.answer(timeout)

    def answer(self, timeout: float) -> dict[str, Any]:
        """The next answer: a paced stream has one about every second.

        Raises:
            WorkerError: the worker answers with an error, ends, or says nothing for `timeout` seconds.
        """
        line = self.read_line(timeout)
        if not line:
            raise WorkerError(self.last_words())
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def read_line(self, timeout: float) -> bytes:
        """The next line, or b"" when the worker has ended."""
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in self.buffer:
                if not selector.select(timeout):
                    raise WorkerError(f"no answer for {timeout:.0f} s")
                chunk = os.read(self.process.stdout.fileno(), 1 << 20)
                if not chunk:
                    return b""
                self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line

    def last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0)
        return child.last_words(code, self.errors.read().decode(errors="replace"))

    def close(self) -> None:
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def take_turns(workers: Mapping[str, Worker], rounds: int, seconds: float = BLOCK_SECONDS, discard: int = DISCARD,
               seed: int = 0, on_block: Callable[[Block], None] | None = None) -> Turns:
    """In each round every mode of every worker has one block, mode after mode, so that what is compared stands close in
    time; the order is drawn anew each round.

    Ctrl-C ends the run with what there is (`complete` is False). A worker that fails leaves; the others go on.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first block: there is nothing to end the run with.
    """
    turns, rng = Turns(), np.random.default_rng(seed)
    modes = {mode: [r for r, w in workers.items() if mode in w.ready["modes"]]
             for mode in sorted({m for w in workers.values() for m in w.ready["modes"]})}
    try:
        for number in range(rounds):
            drawn = [(str(row), str(m)) for m in rng.permutation(list(modes)) for row in rng.permutation(modes[m])]
            for row, mode in drawn:
                if row in turns.failed:
                    continue
                energy = environment.energy_uj()
                try:
                    answer = workers[row].ask({"mode": mode, "seconds": seconds, "discard": discard}, LOAD_TIMEOUT)
                except WorkerError as error:
                    turns.failed[row] = str(error)
                    continue
                block = Block(row, mode, number, answer["start"], answer["end"], np.asarray(answer["ms"]),
                              answer["cpu_s"], answer["peak_rss_mb"], answer["rss_mb"], joules_since(energy))
                turns.blocks.append(block)
                if on_block:
                    on_block(block)
        turns.complete = not turns.failed
    except KeyboardInterrupt:
        if not turns.blocks:
            raise
        turns.interrupted = True
    return turns


def joules_since(before: int | None) -> float | None:
    """Energy since the counter was `before`; None where it is unknown or has started anew meanwhile."""
    now = environment.energy_uj()
    return (now - before) / 1e6 if before is not None and now is not None and now >= before else None


def started(job: Job) -> Worker:
    """The worker of one job that a user asked for.

    Raises:
        EdgesegError: it does not start, with what it said.
    """
    try:
        return Worker(job)
    except WorkerError as error:
        raise EdgesegError(f"{job.path}: {job.backend} {job.precision} does not start: {error}") from None


def write_frames(path: Path, frames: Sequence[np.ndarray], spacings: Sequence[tuple[float, float]],
                 canvases: Sequence[np.ndarray]) -> Path:
    """The input of every worker: raw frames [C, H, W] with their spacing in mm, and normalised canvases [C, h, w].

    Raises:
        EdgesegError: no frame at all.
    """
    if not len(frames):
        raise EdgesegError("no frame to measure with: the bundle's golden.npz is empty; export it again")
    arrays: dict[str, Any] = {}
    for i, (frame, spacing, canvas) in enumerate(zip(frames, spacings, canvases, strict=True)):
        arrays |= {f"raw_{i}": frame, f"spacing_{i}": np.asarray(spacing, float), f"canvas_{i}": canvas}
    np.savez(path, **arrays)
    return path
