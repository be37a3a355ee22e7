"""What the OpenIGTLink server adds to the bare Segmenter, and whether it keeps its memory.

    python benchmarks/serve_igtl.py --bundle cine

The server runs in a process of its own; a plain client on loopback sends a 256x256 frame and reads its label image, one
frame at a time. In turns of one block each with `Segmenter.segment` on the same frames in the client's process: the
added latency is the difference of the medians of a round, then the median over rounds. Packing the client's message and
understanding the reply are the client's affair and not counted. Then frames go through the server, a new connection
every 500, and its resident memory after the last is compared to that after the first 1,000. On a machine that does
nothing else. Writes serve_igtl.json and serve_igtl.md.
"""

import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Target, cell, markdown_table, provenance, resident_mb, target, timing_parser

from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError, need
from edgeseg.manifest import FrameProtocol
from edgeseg.measure import environment
from edgeseg.measure.bench import allowed_threads, golden_frames
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.statistics import bootstrap_interval
from edgeseg.runtime.frame_graph import bring
from edgeseg.runtime.segmenter import Segmenter

ADDED_MS, GROWTH = 3.0, 0.05
"""The limits: added latency of a frame, and growth of the memory."""
SIZE, SPACING = (256, 256), (1.40625, 1.40625)
FIRST, LAST, A_CONNECTION, DISCARD = 1000, 20_000, 500, 5
"""Frames before the first look at the memory and before the last, of one connection, and not counted in a block."""
HEADER_BYTES, SIZE_AT = 58, 42


@dataclass(frozen=True)
class Server:
    port: int
    process: int


@contextmanager
def started(bundle: Bundle, precision: str, threads: int) -> Iterator[Server]:
    """The command in a process of its own, until the block ends."""
    code = "import typer; from edgeseg.cli.serve_igtl import igtl; typer.run(igtl)"
    process = subprocess.Popen([sys.executable, "-c", code, "--bundle", str(bundle.path), "--port", "0", "--precision",
                                precision, "--threads", str(threads)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        if not (line := process.stdout.readline()).startswith("listening "):
            raise EdgesegError("the server did not start; what it said is above")
        yield Server(int(line.rpartition(":")[2]), process.pid)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def connected(server: Server) -> Iterator[Callable[[bytes], int]]:
    """A function that sends a message and reads the reply; it returns how many bytes that had."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        buffer = memoryview(bytearray(2**17))

        def read(count: int) -> None:
            got = 0
            while got < count:
                if not (n := connection.recv_into(buffer[got:count])):
                    raise EdgesegError("the server ended the connection; what it said is above")
                got += n

        def ask(message: bytes) -> int:
            connection.sendall(message)
            read(HEADER_BYTES)
            if not buffer[2:14].tobytes().startswith(b"IMAGE"):
                raise EdgesegError("the server answered a frame with something else than a label image")
            size, = struct.unpack_from(">Q", buffer, SIZE_AT)
            read(size)
            return HEADER_BYTES + size

        yield ask


def frames_of(bundle: Bundle) -> list[np.ndarray]:
    """The bundle's phantom frames as a scanner would send them in 256x256 pixels: uint16."""
    protocol = FrameProtocol(name="256x256@1.40625-uint16", size=SIZE, spacing=SPACING, dtype="uint16", back="logits")
    return [bring(f, s, protocol)[0] for f, s in zip(*golden_frames(bundle.file("golden.npz")), strict=True)]


def packed(frames: list[np.ndarray]) -> list[bytes]:
    """As IMAGE messages."""
    pyigtl = need("pyigtl", "igtl")
    place = np.diag([SPACING[1], SPACING[0], 8.0, 1.0])
    return [pyigtl.ImageMessage(f[None], place, timestamp=float(i + 1), device_name="Image").pack()
            for i, f in enumerate(frames)]


def block(work: Callable[[Any], Any], items: list[Any], calls: int) -> float:
    """Median latency in ms of one call after the other."""
    ms = []
    for i in range(DISCARD + calls):
        start = time.perf_counter()
        work(items[i % len(items)])
        ms.append(1000 * (time.perf_counter() - start))
    return float(np.median(ms[DISCARD:]))


def latencies(server: Server, segmenter: Segmenter, frames: list[np.ndarray], messages: list[bytes], rounds: int,
              calls: int) -> dict[str, list[float]]:
    """Medians in ms of each round's block, of the bare Segmenter and through the server; which comes first changes."""
    found: dict[str, list[float]] = {"Segmenter": [], "OpenIGTLink": []}
    with connected(server) as ask:
        work: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
            "Segmenter": (lambda frame: segmenter.segment(frame, SPACING), frames), "OpenIGTLink": (ask, messages)}
        for number in range(rounds):
            for name in sorted(work, reverse=bool(number % 2)):
                found[name].append(block(*work[name], calls))
    return found


def memory(server: Server, messages: list[bytes], marks: tuple[int, ...]) -> list[float]:
    """Resident memory of the server in MB after so many frames."""
    found, sent = [], 0
    while sent < marks[-1]:
        with connected(server) as ask:
            for _ in range(min(A_CONNECTION, marks[-1] - sent)):
                ask(messages[sent % len(messages)])
                sent += 1
                if sent in marks:
                    found.append(resident_mb(server.process))
    return found


def page(document: dict[str, Any], found: dict[str, list[float]], goals: list[Target]) -> str:
    rows = [[name, cell(bootstrap_interval(values, np.median), 3), f"{min(values):.3f} - {max(values):.3f}",
             str(len(values))] for name, values in found.items()]
    seen = ", ".join(f"{mb:.1f} MB after {frames:,}" for frames, mb in document["memory_mb"].items())
    share = document["load"]["others"]
    return "\n".join([
        "# OpenIGTLink server", "",
        *(["**A quick run with tiny settings: these numbers mean nothing.**", ""] if document["quick"] else []),
        f"Commit {document['commit']}{' with uncommitted changes' if document['changed_files'] else ''}, "
        f"`{document['command']}`; bundle `{document['bundle']}`, {document['precision']}, phantom frames of "
        f"{SIZE[0]}x{SIZE[1]} uint16.", "",
        f"{document['machine']['cpu']}, {document['threads']} threads; others used of these CPUs: "
        f"{'unknown' if share is None else f'{100 * share:.0f} %'}"
        + (", **busy while timing**" if document["load"]["busy"] else "") + ".", "",
        markdown_table(["what", "value", "95 %", "limit", "verdict"], [t.line() for t in goals]),
        markdown_table(["one frame at a time", "ms, median over rounds", "rounds: least - most", "rounds"], rows),
        f"Resident memory of the server: {seen} frames, a new connection every {A_CONNECTION}.", ""])


def main() -> int:
    parser = timing_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="blocks of each, in turns")
    parser.add_argument("--calls", type=int, default=200, help="counted frames of a block")
    given = parser.parse_args()
    check_out(given.out)
    threads, bundle = allowed_threads(given.threads), open_bundle(given.bundle)
    rounds, calls, marks = (3, 5, (10, 20)) if given.quick else (given.rounds, given.calls, (FIRST, LAST))
    frames = frames_of(bundle)
    messages = packed(frames)
    segmenter = Segmenter(bundle, precision=given.precision, threads=threads)
    segmenter.warm_up()
    with environment.Watch() as watch, started(bundle, given.precision, threads) as server:
        found = latencies(server, segmenter, frames, messages, rounds, calls)
        seen = memory(server, messages, marks)
    added = [a - b for a, b in zip(found["OpenIGTLink"], found["Segmenter"], strict=True)]
    goals = [target("added to the bare Segmenter, ms", bootstrap_interval(added, np.median), "<=", ADDED_MS),
             Target(f"growth of memory from {marks[0]:,} to {marks[1]:,} frames", seen[1] / seen[0] - 1, "<=", GROWTH)]
    document = {"schema": "edgeseg.serve-igtl/1", **provenance(), "quick": given.quick, "bundle": bundle.path.name,
                "precision": given.precision, "threads": threads, "calls": calls,
                "load": {"others": watch.others, "busy": environment.is_busy(watch.others)},
                "machine": environment.describe(), "targets": [t.document() for t in goals], "rounds_ms": found,
                "added_ms": added, "memory_mb": dict(zip(marks, seen, strict=True))}
    write_json(given.out / "serve_igtl.json", document)
    write_text(given.out / "serve_igtl.md", page(document, found, goals))
    for t in goals:
        print("   ".join(t.line()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgesegError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
