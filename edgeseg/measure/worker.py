"""One thing to measure, alone in its process: `python -m edgeseg.measure.worker`.

Talks JSON lines over its pipes. The first line in is the job (`Job` in turns.py); the answer says that the network is
loaded, or why not. After that each line in is the token for one block of calls; without the token the process is
blocked in read and costs nothing. The end of the input ends it.

    in   {"job": {...}}
    out  {"ready": true, "shape": [1, 1, 192, 192], "load_ms": ..., "first_ms": ..., "runtime": {...}, "torch": false}
    in   {"mode": "network", "seconds": 0.5, "discard": 5}
    out  {"ms": [...], "start": ..., "end": ..., "cpu_s": ..., "peak_rss_mb": ..., "rss_mb": ...}
    in   {"mode": "end_to_end", "rate": 50, "frames": 3000, "discard": 5}               a paced stream
    out  {"start": ..., "finished": [...], "done": false}                               about every second, then true
    out  {"error": "one line"}                         instead of either answer
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from edgeseg import geometry
from edgeseg.errors import EdgesegError

REPORT_SECONDS = 1.0
"""Time between two reports of a paced stream: what an interrupted one may lose."""


class Subject(Protocol):
    """What is measured.

    Attributes:
        count: input frames. calls: mode -> what is timed; takes the index of an input frame. The first is "end_to_end"
            where there is such a path.
        shape: of the network's input, [1, C, H, W]. runtime: what the runtime says it runs with.
    """

    count: int
    calls: dict[str, Callable[[int], Any]]
    shape: tuple[int, ...]
    runtime: dict[str, Any]


class TorchFree:
    """The subjects that need no torch: a bundle, a network file, and nothing at all."""

    def __init__(self, job: dict[str, Any]) -> None:
        cv2.setNumThreads(job["threads"])  # resizing is part of a row: its pool has one thread a CPU by default
        frames, spacings, canvases = load_frames(Path(job["frames"]))
        self.count = len(frames)
        self.runtime: dict[str, Any] = {}
        if job["kind"] == "empty":  # what a call costs when nothing is called
            self.shape: tuple[int, ...] = (0,)
            self.calls: dict[str, Callable[[int], Any]] = {"network": lambda i: None}
            return
        if job["kind"] == "bundle":
            from edgeseg.runtime.segmenter import Segmenter

            segmenter = Segmenter(job["path"], job["backend"], job["precision"], job["threads"])
            net: Callable[[np.ndarray], np.ndarray] = segmenter.net
            self.shape = (1, len(segmenter.preprocessing.channels), *segmenter.preprocessing.size)
            self.runtime = settings_of(segmenter._network)
            self.calls = {"end_to_end": lambda i: checked(segmenter.segment(frames[i], spacings[i]))}
        else:
            from edgeseg.runtime.backends import load_backend

            network = load_backend(job["backend"], Path(job["path"]), job["threads"], job["precision"])
            net, self.shape, self.runtime, self.calls = network, network.shape, settings_of(network), {}
        inputs = [network_input(c, self.shape, job["path"]) for c in canvases]
        self.calls["network"] = lambda i: net(inputs[i])


def load_frames(path: Path) -> tuple[list[np.ndarray], list[tuple[float, float]], list[np.ndarray]]:
    """Raw frames [C, H, W], their spacings in mm, and the same frames normalised at the student's spacing [C, h, w]."""
    with np.load(path) as stored:
        count = sum(name.startswith("raw_") for name in stored.files)
        return ([stored[f"raw_{i}"] for i in range(count)],
                [(float(s[0]), float(s[1])) for s in (stored[f"spacing_{i}"] for i in range(count))],
                [stored[f"canvas_{i}"] for i in range(count)])


def network_input(canvas: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """The centred window [1, C, H, W] of a normalised frame [C, h, w] that a network of input `shape` takes."""
    if len(shape) != 4:
        raise EdgesegError(f"{name}: its network takes {list(shape)}, the bench gives single frames [1, C, H, W]")
    if shape[1] != canvas.shape[0]:
        raise EdgesegError(f"{name}: takes {shape[1]} channels, the bundle's frames have {canvas.shape[0]}")
    size = (shape[2], shape[3])
    start = ((canvas.shape[-2] - size[0]) // 2, (canvas.shape[-1] - size[1]) // 2)
    return np.ascontiguousarray(geometry.take_window(canvas, start, size)[None])


def checked(segmentation: Any) -> None:
    if segmentation.status != "ok":  # a refused frame returns at once: its time would be a lie
        raise EdgesegError(f"the bundle refuses its own test frame: {segmentation.status}")


def settings_of(net: Any) -> dict[str, str]:
    """What the runtime says it runs with (it may differ from what it was asked for), and OpenCV in every case."""
    compiled, session = getattr(net, "compiled", None), getattr(net, "session", None)
    names = ("INFERENCE_PRECISION_HINT", "INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT",
             "ENABLE_CPU_PINNING")
    found = {name: str(compiled.get_property(name)) for name in names} if compiled is not None else {}
    if session is not None:
        options = session.get_session_options()
        found = {"intra_op_num_threads": str(options.intra_op_num_threads), "providers": str(session.get_providers())}
        found |= {name: options.get_session_config_entry(name) for name in (
            "session.intra_op.allow_spinning", "session.set_denormal_as_zero")}
    return found | {"OPENCV_NUM_THREADS": str(cv2.getNumThreads())}


def serve(lines: Any, answer: Callable[[dict[str, Any]], None], make: Callable[[dict[str, Any]], Subject]) -> None:
    """Answer the job, then every token, until the input ends."""
    first = next(iter(lines), None)
    if first is None:
        return
    start = time.perf_counter()
    subject = make(json.loads(first)["job"])
    load_ms = (time.perf_counter() - start) * 1000
    start = time.perf_counter()
    next(iter(subject.calls.values()))(0)
    first_ms = (time.perf_counter() - start) * 1000
    answer({"ready": True, "shape": subject.shape, "modes": sorted(subject.calls, reverse=True),
            "load_ms": load_ms, "first_ms": first_ms, "runtime": subject.runtime, "pid": os.getpid(),
            "torch": "torch" in sys.modules})
    position = 0
    for line in lines:
        token = json.loads(line)
        if "rate" in token:
            for report in stream(subject, **token):
                answer(report)
        else:
            reply, position = block(subject, position=position, **token)
            answer(reply)


def block(subject: Subject, mode: str, seconds: float, discard: int, position: int) -> tuple[dict[str, Any], int]:
    """Calls for at least `seconds` after `discard` calls that are not counted, going round the frames."""
    call, count = subject.calls[mode], subject.count
    cpu, start = time.process_time(), time.monotonic()
    for _ in range(discard):
        call(position % count)
        position += 1
    clock, ms = time.perf_counter, []
    end = clock() + seconds
    while True:
        before = clock()
        call(position % count)
        after = clock()
        ms.append((after - before) * 1000)
        position += 1
        if after >= end:
            break
    return {"ms": ms, "start": start, "end": time.monotonic(), "cpu_s": time.process_time() - cpu,
            "rss_mb": memory_mb("VmRSS"), "peak_rss_mb": memory_mb("VmHWM")}, position  # the peak last: never below it


def stream(subject: Subject, mode: str, rate: float, frames: int, discard: int) -> Iterator[dict[str, Any]]:
    """Frames as from a scanner: frame k arrives at start + k / rate, whether or not those before it are done.

    None is skipped: one that arrives while another is computed waits its turn. Yields the times (monotonic, s) at which
    frames were finished since the last report. Between frames the process sleeps.
    """
    call, count, clock = subject.calls[mode], subject.count, time.monotonic
    for k in range(discard):
        call(k % count)
    finished: list[float] = []
    start = reported = clock()
    for k in range(frames):
        while (early := start + k / rate - clock()) > 0:
            time.sleep(early)
        call(k % count)
        finished.append(clock())
        if finished[-1] >= reported + REPORT_SECONDS or k == frames - 1:
            yield {"start": start, "finished": finished, "done": k == frames - 1}
            finished, reported = [], clock()


def memory_mb(name: str) -> float | None:
    """Resident set of this process in MB, now ("VmRSS") or at its largest ("VmHWM"); None where nobody says."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{name}:")), None)


def main(make: Callable[[dict[str, Any]], Subject] = TorchFree) -> None:
    """Be a worker whose subject is what `make` makes of the job."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the bench decides what happens
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers

    def answer(reply: dict[str, Any]) -> None:
        out.write(json.dumps(reply) + "\n")
        out.flush()

    try:
        serve(iter(sys.stdin.readline, ""), answer, make)
    except BrokenPipeError:
        os._exit(1)  # the bench is gone
    except Exception as error:  # the parent shows it: a traceback on a pipe helps nobody
        first_line = " ".join(str(error).split()) or type(error).__name__
        answer({"error": first_line if isinstance(error, EdgesegError) else f"{type(error).__name__}: {first_line}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
