"""A PyTorch row of the bench, alone in its process: `python -m edgeseg.distill.torch_worker` (as measure/worker).

Eager mode as a lab runs it: float32, batch of one, the network as it was trained (no BatchNorm folded, nothing
compiled), `inference_mode`, subnormal numbers flushed to zero as the other runtimes do.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from edgeseg.errors import need
from edgeseg.measure.worker import load_frames, main, network_input

if TYPE_CHECKING:
    import torch

PROBES = 3
"""Timed calls of each memory format at the start, of which the median decides."""


class TorchNetwork:
    """A subject (`measure.worker.Subject`): a run's student or an nnU-Net folder's network (its first fold).

    The job's kind is "torch-student" (path: a run folder) or "torch-teacher" (path: an nnU-Net model folder). A student
    also has the end-to-end path, with its run's preprocessing; a teacher's is its full pipeline (`pipeline_worker`).

    Attributes:
        runtime: torch's version, its threads, and the memory format that was faster here, with both medians. Finding it
            is part of the row's load_ms.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        torch = need("torch", "train")
        torch.set_num_threads(job["threads"])
        cv2.setNumThreads(job["threads"])  # resizing is part of the end-to-end path
        flushed = torch.set_flush_denormal(True)
        frames, spacings, canvases = load_frames(Path(job["frames"]))
        self.count = len(frames)
        self.calls: dict[str, Callable[[int], Any]] = {}
        if job["kind"] == "torch-student":
            from edgeseg.distill.run import Run

            run = Run.open(Path(job["path"]))
            model, grid = run.student(), run.preprocessing
            self.shape: tuple[int, ...] = (1, len(run.channels), *grid.size)
            self.calls["end_to_end"] = lambda i: grid.segment(frames[i][None], spacings[i], self.net)
        else:
            from edgeseg.teachers import open_teacher

            teacher = open_teacher(f"nnunet:{job['path']}")
            model, self.shape = teacher.network(), teacher.input_shape
        inputs = [torch.from_numpy(network_input(c, self.shape, job["path"])) for c in canvases]
        self.format, took = faster_format(model, inputs[0])
        self.model = model.to(memory_format=self.format)  # type: ignore[call-overload]
        inputs = [x.contiguous(memory_format=self.format) for x in inputs]
        self.calls["network"] = lambda i: self.forward(inputs[i])
        self.runtime: dict[str, Any] = {
            "TORCH": torch.__version__, "TORCH_NUM_THREADS": str(torch.get_num_threads()), "MODE": "eager",
            "MEMORY_FORMAT": str(self.format).removeprefix("torch."), "FLUSH_DENORMAL": str(flushed),
            "MEMORY_FORMATS_MS": ", ".join(f"{k} {ms:.2f}" for k, ms in took.items()),
            "OPENCV_NUM_THREADS": str(cv2.getNumThreads())}

    def forward(self, x: "torch.Tensor") -> "torch.Tensor":
        import torch

        with torch.inference_mode():
            return self.model(x)

    def net(self, x: np.ndarray) -> np.ndarray:
        """Normalised float32 [1, C, gh, gw] -> logits float32 [1, K, gh, gw]."""
        import torch

        return self.forward(torch.from_numpy(x).contiguous(memory_format=self.format)).contiguous().numpy()


def faster_format(model: "torch.nn.Module", x: "torch.Tensor") -> tuple["torch.memory_format", dict[str, float]]:
    """The memory format in which `model` takes less time for `x` [1, C, H, W], and the median ms of each, in turns."""
    import torch

    formats = {"contiguous_format": torch.contiguous_format, "channels_last": torch.channels_last}
    took: dict[str, list[float]] = {name: [] for name in formats}
    for _ in range(PROBES):
        for name, memory_format in formats.items():
            model.to(memory_format=memory_format)  # type: ignore[call-overload]
            placed = x.contiguous(memory_format=memory_format)
            with torch.inference_mode():
                model(placed)  # the first call after a change of format sets up its kernels
                start = time.perf_counter()
                model(placed)
            took[name].append((time.perf_counter() - start) * 1000)
    medians = {name: float(np.median(ms)) for name, ms in took.items()}
    return formats[min(medians, key=medians.__getitem__)], medians


if __name__ == "__main__":
    main(TorchNetwork)
