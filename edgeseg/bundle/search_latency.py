"""The latency half of a search, the side without torch: candidates as INT8 OpenVINO graphs, beside a fixed reference.

    python -m edgeseg.bundle.search_latency      JSON lines: what to measure in, what was measured out

A network is converted, quantised on a few random frames and timed here. Blocks of candidate and reference take turns, a
few hundredths of a second each, in one process: what the machine does meanwhile happens to both, and their ratio is
what is kept.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.manifest import FrameProtocol
from edgeseg.measure.environment import Watch
from edgeseg.measure.statistics import bootstrap_interval

ROUNDS, BLOCK_SECONDS, DISCARD = 12, 0.04, 3
"""Blocks of each network and thread count, their least length, and calls at their start that are not counted: these
find the caches filled by the other network."""
CALIBRATION_FRAMES = 4


class Networks:
    """A candidate compiled for each thread count, with a random frame for it."""

    def __init__(self, question: dict[str, Any], threads: tuple[int, ...]) -> None:
        from edgeseg.runtime.backends import load_backend

        xml = quantised(question)
        self.bytes = xml.with_suffix(".bin").stat().st_size
        if question["protocol"]:
            xml = framed(question, xml)
        self.calls = {t: load_backend("openvino", xml, t) for t in threads}
        net = self.calls[threads[0]]
        rng = np.random.default_rng(0)
        raw = rng.normal(size=net.shape) if net.dtype == np.float32 else rng.integers(1, 100, net.shape)
        self.frame = raw.astype(net.dtype)

    def block(self, threads: int) -> float:
        """Median ms of the calls of one block."""
        call, frame, clock = self.calls[threads], self.frame, time.perf_counter
        for _ in range(DISCARD):
            call(frame)
        times = [clock()]
        while times[-1] < times[0] + BLOCK_SECONDS:
            call(frame)
            times.append(clock())
        return float(np.median(np.diff(times))) * 1000


def quantised(question: dict[str, Any]) -> Path:
    """The INT8 IR of the network alone."""
    from edgeseg.bundle.quantise import quantise_rung

    onnx, grid = Path(question["onnx"]), question["grid"]
    xml = onnx.with_name(f"{onnx.stem}.int8.xml")
    shape = (CALIBRATION_FRAMES, len(grid["channels"]), *grid["size"])
    frames = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    quantise_rung("post-training", "openvino", onnx, xml, frames, lambda file: 0.0)
    return xml


def framed(question: dict[str, Any], core: Path) -> Path:
    """The frame graph around a network."""
    from edgeseg.bundle.graph import Plan, around_ir, save_plainly
    from edgeseg.distill.run import preprocessing_from_dict

    xml = core.with_suffix(".frame.xml")
    plan = Plan(preprocessing_from_dict(question["grid"]), tuple(question["values"]),
                FrameProtocol.model_validate(question["protocol"]))
    save_plainly(around_ir(plan, core), xml)
    return xml


def compare(reference: Networks, candidate: Networks) -> dict[str, Any]:
    """Blocks of both in turns; each round's ratio counts once, so that a block beside which the machine did something
    else moves nothing."""
    ms: dict[int, list[tuple[float, float]]] = {t: [] for t in candidate.calls}
    with Watch() as watch:
        for number in range(ROUNDS):
            for t in ms:
                order = (reference, candidate) if number % 2 else (candidate, reference)
                took = {id(net): net.block(t) for net in order}
                ms[t].append((took[id(reference)], took[id(candidate)]))
    found = {}
    for t, pairs in ms.items():
        ratio = bootstrap_interval([c / r for r, c in pairs], np.median, resamples=2000)
        found[str(t)] = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high,
                         "reference_ms": float(np.median([r for r, _ in pairs]))}
    return {"bytes": candidate.bytes, "threads": found, "others": watch.others}


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the search decides what happens
    from edgeseg.bundle.apart import forbid_torch
    from edgeseg.runtime.telemetry import telemetry_off

    telemetry_off()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # NNCF's progress bars must not get into the answers
    forbid_torch()
    reference: Networks | None = None
    threads: tuple[int, ...] = ()
    for line in iter(sys.stdin.readline, ""):
        question = json.loads(line)
        answer: dict[str, Any] = {"ready": True}
        try:
            if "threads" in question:
                threads = tuple(question["threads"])
                reference = Networks(question, threads)
            elif reference is not None:
                answer = compare(reference, Networks(question, threads))
        except Exception as error:  # the search shows it: a traceback on a pipe helps nobody
            answer = {"error": str(error) if isinstance(error, EdgesegError) else f"{type(error).__name__}: {error}"}
        with suppress(BrokenPipeError):  # the search is gone, and with it the next line
            out.write(json.dumps(answer) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
