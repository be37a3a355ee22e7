"""The latency half of a search, the side with torch: fresh students as ONNX, their latencies kept as lines of JSON.

Latency does not depend on weights, so a candidate is measured before it is trained. This process writes its ONNX file
and sleeps while another one, which has no torch, measures (`search_latency`).
"""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.distill.search_space import Candidate
from edgeseg.errors import EdgesegError
from edgeseg.manifest import FrameProtocol
from edgeseg.measure.turns import Job, Worker, WorkerError, started
from edgeseg.preprocess import Normalisation, Preprocessing

REFERENCE = Candidate("reference", "dense", {}, (192, 192), (1.5625, 1.5625))
"""The clock of every search: the dense family's default on the default grid."""
PATIENCE = 600.0
"""Seconds for the answer about one candidate."""


class Stopwatch:
    """Measures candidates, one after the other. Use as a context manager: its process ends with the block.

    Args:
        channels: normalisation of each input channel. values: label value of each class.
        protocol: None: the network alone.

    Raises:
        EdgesegError: the reference itself cannot be measured.
    """

    def __init__(self, channels: tuple[Normalisation, ...], values: tuple[int, ...], threads: tuple[int, ...],
                 protocol: FrameProtocol | None) -> None:
        self.channels, self.values, self.threads, self.protocol = channels, values, threads, protocol
        self.scratch = tempfile.TemporaryDirectory(prefix="edgeseg-search-")
        self.folder = Path(self.scratch.name)
        self.worker: Worker | None = None

    def measure(self, candidate: Candidate) -> dict[str, Any]:
        """What is kept of a candidate: parameters, macs, bytes, and for each thread count its ratio to the reference
        (median over blocks, with its 95 % interval) and the reference's own ms; {"failed": why} when it cannot be."""
        if self.worker is None:
            self.worker = self.start()
        try:
            parameters, macs = self.write(candidate)
            answer = self.worker.ask(self.question(candidate), PATIENCE)
        except Exception as error:  # torch, ONNX and NNCF each raise their own; one candidate must not end the search
            if self.worker.process.poll() is not None or "no answer" in str(error):  # the next one gets a new process
                self.worker.close()
                self.worker = None
            return {"failed": " ".join(str(error).split())[:300]}
        finally:
            for file in self.folder.glob(f"{candidate.name}.*"):
                file.unlink()
        return {"parameters": parameters, "macs": macs, **answer}

    def write(self, candidate: Candidate) -> tuple[int, int]:
        """ONNX of a fresh student; its parameters and multiply-accumulates."""
        import torch

        from edgeseg.bundle.fold import fold_batch_norm
        from edgeseg.onnx_file import write_onnx
        from edgeseg.students import build_student
        from edgeseg.students.cost import count_macs, count_parameters

        shape = (1, len(self.channels), *candidate.size)
        torch.manual_seed(0)
        student = build_student({"family": candidate.student, "in_channels": len(self.channels),
                                 "num_classes": len(self.values)} | candidate.spec).eval()
        write_onnx(fold_batch_norm(student), shape, self.folder / f"{candidate.name}.onnx")
        return count_parameters(student), count_macs(student, shape)

    def start(self) -> Worker:
        """A measuring process that has the reference loaded."""
        self.write(REFERENCE)
        worker = started(Job("search", str(self.folder), "", "openvino", "int8", max(self.threads),
                             "edgeseg.bundle.search_latency"))
        try:
            worker.ask({**self.question(REFERENCE), "threads": self.threads}, PATIENCE)
        except WorkerError as error:
            worker.close()
            raise EdgesegError(f"the reference of the search cannot be measured: {error}") from None
        except BaseException:
            worker.close()
            raise
        return worker

    def question(self, candidate: Candidate) -> dict[str, Any]:
        grid = Preprocessing(candidate.size, candidate.spacing, self.channels, window="centre")
        return {"onnx": str(self.folder / f"{candidate.name}.onnx"), "grid": asdict(grid), "values": self.values,
                "protocol": self.protocol.model_dump(mode="json") if self.protocol else None}

    def __enter__(self) -> "Stopwatch":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.worker:
            self.worker.close()
        self.scratch.cleanup()


def reference_ms(lines: Iterable[Mapping[str, Any]], threads: Sequence[int]) -> dict[str, dict[str, float]]:
    """For each thread count the reference's median ms over the whole search, and its 10th and 90th percentile."""
    found = {}
    for t in map(str, threads):
        ms = [line["threads"][t]["reference_ms"] for line in lines if "threads" in line]
        if ms:
            found[t] = dict(zip(("p10", "ms", "p90"), np.percentile(ms, (10, 50, 90)).tolist(), strict=True))
    return found


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSON lines file; one that was being written when its process was killed is left out."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


