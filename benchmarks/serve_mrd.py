"""The MRD server: what it adds to the Segmenter, four clients at once, and whether its memory grows.

    python benchmarks/serve_mrd.py --bundle cine

The server runs in its own process on loopback. Latency: each phantom frame of 256 x 256 is segmented here and sent to
the server, in turns on one set of CPUs with the same network, precision and threads; added is the paired difference
between the answer (original and mask read) and the Segmenter. Memory: one session after the other, resident set of the
server's process. On a machine that does nothing else. Writes serve_mrd.json and serve_mrd.md.
"""

import argparse
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Target, cell, markdown_table, provenance, resident_mb, target, timing_parser

from edgeseg.errors import EdgesegError, need
from edgeseg.manifest import FrameProtocol
from edgeseg.measure import environment
from edgeseg.measure.bench import allowed_threads
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.statistics import Interval, bootstrap_interval
from edgeseg.phantoms.cine import cine_case
from edgeseg.runtime.frame_graph import bring
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve.mrd_image import SERIES_STEP
from edgeseg.serve.mrd_wire import CLOSE, IMAGE, Original, Reader

ADDED_MS, MEMORY_RATIO = 3.0, 1.05
CLIENTS = 4
SPACING = 1.40625
SESSION = 500
"""Images in a session while memory is watched."""
START = "import typer; from edgeseg.cli.serve_mrd import mrd; typer.run(mrd)"
SECONDS = 60.0


@dataclass(frozen=True)
class Counts:
    """Of one run: images, latency in ms (paired), frames for each client, images before and at the end of memory."""

    latency: int
    warm: int
    each_client: int
    first: int
    all: int


FULL, QUICK = Counts(1000, 20, 500, 1000, 20_000), Counts(10, 2, 10, 20, 60)


class Server:
    """`edgeseg serve mrd` in a process of its own."""

    def __init__(self, segmenter: Segmenter, bundle: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, "--bundle", bundle, "--port", "0", "--precision", segmenter.precision,
             "--threads", str(segmenter.threads), "--clients", str(CLIENTS), "--image-deadline", "60",
             "--series-deadline", "100000"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        said = re.match(r"listening .*:(\d+)$", self.process.stdout.readline().strip())
        if not said:
            raise EdgesegError("the server did not start: try `edgeseg serve mrd` by hand")
        self.port = int(said[1])

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / 100


@contextmanager
def serving(segmenter: Segmenter, bundle: str) -> Iterator[Server]:
    server = Server(segmenter, bundle)
    try:
        yield server
    finally:
        server.process.terminate()
        server.process.communicate(timeout=SECONDS)


@contextmanager
def session(server: Server) -> Iterator[tuple[socket.socket, Reader]]:
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield sock, Reader(sock, SECONDS, SECONDS)


def phantom_frames() -> list[np.ndarray]:
    """uint16 [256, 256]: both stacks of a phantom."""
    protocol = FrameProtocol(name="", size=(256, 256), spacing=(SPACING, SPACING), dtype="uint16", back="logits")
    cases = [cine_case(0, 0, phase) for phase in ("ED", "ES")]
    return [bring(frame, case.spacing, protocol)[0] for case in cases for frame in case.frames]


def message(frame: np.ndarray, number: int, client: int = 0) -> bytes:
    """One image of a cine series of 30 phases and 12 slices."""
    head = {"image_type": 1, "image_series_index": 1, "image_index": number % 2**16, "phase": number % 30,
            "slice": number // 30 % 12, "measurement_uid": client, "slice_dir": (0, 0, 1),
            "position": (0, 0, 8.0 * (number // 30 % 12)), "field_of_view": (*[256 * SPACING] * 2, 8)}
    image = need("ismrmrd", "mrd").Image.from_array(frame, **head)
    return struct.pack("<H", IMAGE) + image.to_bytes()


def latencies(segmenter: Segmenter, server: Server, frames: list[np.ndarray], counts: Counts) -> np.ndarray:
    """ms float [2, n]: the Segmenter here, and from the first byte sent to the mask read."""
    found = []
    with session(server) as (sock, reader):
        for k in range(counts.warm + counts.latency):
            frame = frames[k % len(frames)]
            sent = message(frame, k)
            start = time.perf_counter()
            here = segmenter.segment(frame, (SPACING, SPACING)).labels
            between = time.perf_counter()
            sock.sendall(sent)
            original, mask = reader.read(), reader.read()
            end = time.perf_counter()
            check(original, mask, frame, here)
            found.append((between - start, end - between))
        finish(sock, reader)
    return 1000 * np.array(found[counts.warm :]).T


def check(original: Any, mask: Any, frame: np.ndarray, labels: np.ndarray) -> None:
    """A fast answer that is wrong is no answer."""
    if not (isinstance(mask, Original) and np.array_equal(mask.pixels()[0, 0], labels)
            and np.array_equal(original.pixels()[0, 0], frame)):
        raise EdgesegError("the server's mask is not the Segmenter's: no latency to speak of")


def finish(sock: socket.socket, reader: Reader) -> None:
    sock.sendall(struct.pack("<H", CLOSE))
    while reader.read() != CLOSE:
        pass


def play(server: Server, frames: list[np.ndarray], count: int, client: int = 0) -> list[tuple[int, int, int]]:
    """A whole session that sends beside reading: (client, image number, series) of every image that came back."""
    with session(server) as (sock, reader):
        def send() -> None:
            for k in range(count):
                sock.sendall(message(frames[(k + client) % len(frames)], k, client))
            sock.sendall(struct.pack("<H", CLOSE))

        sender = threading.Thread(target=send)
        sender.start()
        found = []
        while (got := reader.read()) != CLOSE:
            if isinstance(got, Original):
                found.append((got.head.measurement_uid, got.head.image_index, got.head.image_series_index))
        sender.join()
    return found


def together(server: Server, frames: list[np.ndarray], count: int) -> tuple[int, float]:
    """How many originals and masks of CLIENTS sessions at once are lost, another's or out of order; and images/s."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    players = [threading.Thread(target=lambda c=c: found.__setitem__(c, play(server, frames, count, c)))
               for c in range(CLIENTS)]
    start = time.perf_counter()
    for player in players:
        player.start()
    for player in players:
        player.join()
    rate, wrong = CLIENTS * count / (time.perf_counter() - start), 0
    for client in range(CLIENTS):
        expected = [(client, k, series) for k in range(count) for series in (1, 1 + SERIES_STEP)]
        mine = [i for i in found.get(client, []) if i[2] != 1 + 2 * SERIES_STEP]
        wrong += sum(a != b for a, b in zip(mine, expected, strict=False)) + abs(len(mine) - len(expected))
    return wrong, rate


def memory(server: Server, frames: list[np.ndarray], counts: Counts) -> list[tuple[int, float]]:
    """(images so far, resident MB) after `counts.first`, then ten times until `counts.all`."""
    marks = [counts.first, *np.linspace(counts.first, counts.all, 11)[1:].astype(int).tolist()]
    done, found = 0, []
    for mark in marks:
        while done < mark:
            play(server, frames, step := min(SESSION, mark - done))
            done += step
        found.append((done, resident_mb(server.process.pid)))
    return found


def measure(given: argparse.Namespace, counts: Counts) -> dict[str, Any]:
    segmenter = Segmenter(given.bundle, precision=given.precision, threads=allowed_threads(given.threads))
    segmenter.warm_up()
    frames, before = phantom_frames(), environment.load_before()
    with serving(segmenter, given.bundle) as server:
        start, own = environment.snapshot(), time.process_time() + server.cpu_seconds()
        bare, served = latencies(segmenter, server, frames, counts)
        own = time.process_time() + server.cpu_seconds() - own
        others = {"before": before, "during": environment.foreign_share(start, environment.snapshot(), own)}
        wrong, rate = together(server, frames, counts.each_client)
    with serving(segmenter, given.bundle) as server:
        resident = memory(server, frames, counts)
    return {"bundle": segmenter.bundle.path.name, "precision": segmenter.precision, "threads": segmenter.threads,
            "bare_ms": bootstrap_interval(bare, np.median), "served_ms": bootstrap_interval(served, np.median),
            "served_p99_ms": float(np.percentile(served, 99)),
            "added_ms": bootstrap_interval(served - bare, np.median), "wrong": wrong, "images_per_second": rate,
            "memory": [{"images": n, "rss_mb": b} for n, b in resident], "counts": counts,
            "load": {"others": others, "busy": environment.is_busy(*others.values())}}


def targets(found: dict[str, Any]) -> list[Target]:
    first, last = found["memory"][0], found["memory"][-1]
    added: Interval = found["added_ms"]
    return [target("added to the Segmenter, a 256 x 256 frame, median, ms", added, "<=", ADDED_MS),
            Target(f"{CLIENTS} clients at once: images lost or out of order", found["wrong"], "<=", 0),
            Target(f"memory after {last['images']} images, times that after {first['images']}",
                   last["rss_mb"] / first["rss_mb"], "<=", MEMORY_RATIO)]


def page(document: dict[str, Any], goals: list[Target]) -> str:
    others = document["load"]["others"]
    shares = ", ".join(f"{when} {'unknown' if s is None else f'{100 * s:.0f} %'}" for when, s in others.items())
    rows = [["Segmenter in this process", cell(document["bare_ms"], 3)],
            ["through the server, original and mask", cell(document["served_ms"], 3)],
            ["through the server, p99", f"{document['served_p99_ms']:.3f}"]]
    return "\n".join([
        "# MRD server", "",
        *(["**A quick run with tiny settings: these numbers mean nothing.**", ""] if document["quick"] else []),
        f"Commit {document['commit']}{' with uncommitted changes' if document['changed_files'] else ''}, "
        f"`{document['command']}`; bundle `{document['bundle']}`, {document['precision']}, phantom frames of 256 x 256 "
        f"uint16 at {SPACING} mm over loopback.", "",
        f"{document['machine']['cpu']}, {document['threads']} threads; others used of these CPUs: {shares}"
        + (", **busy while timing**" if document["load"]["busy"] else "") + ".", "",
        markdown_table(["what", "value", "95 %", "limit", "verdict"], [t.line() for t in goals]),
        "A frame here and the same frame through the server, in turns; added is the median of the paired differences.",
        "", markdown_table(["a frame", "ms, median"], rows),
        f"{CLIENTS} clients at once: {document['images_per_second']:.0f} images per second in all.", "",
        f"Sessions of {SESSION} images, one after the other:", "",
        markdown_table(["images", "resident, MB"], [[str(m["images"]), f"{m['rss_mb']:.1f}"]
                                                    for m in document["memory"]])])


def main() -> int:
    parser = timing_parser(__doc__, "a bundle for cine MR: its path, or a shipped name")
    given = parser.parse_args()
    check_out(given.out)
    found = measure(given, QUICK if given.quick else FULL)
    goals = targets(found)
    document = {"schema": "edgeseg.serve-mrd/1", **provenance(), "quick": given.quick, **found,
                "machine": environment.describe(), "targets": [t.document() for t in goals]}
    write_json(given.out / "serve_mrd.json", document)
    write_text(given.out / "serve_mrd.md", page(document, goals))
    for t in goals:
        print("   ".join(t.line()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgesegError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
