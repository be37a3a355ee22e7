"""What echo_speed.py times, each alone in its process: `python -m echo_subjects` (as edgeseg/measure/worker.py).

"stream": a bundle's `Stream`, one frame pushed after the other, without torch. "torch-teacher": a teacher's network in
PyTorch, as edgeseg/distill/torch_worker.py runs one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2

from edgeseg.errors import EdgesegError, need
from edgeseg.measure.worker import load_frames, main, network_input, settings_of


class Pushed:
    """`end_to_end`: a raw frame to its labels; `network`: the step alone. Both go on with the same clip."""

    def __init__(self, job: dict[str, Any]) -> None:
        from edgeseg.runtime.stream import Stream

        cv2.setNumThreads(job["threads"])
        self.frames, _, canvases = load_frames(Path(job["frames"]))
        self.stream = Stream(job["path"], job["backend"], job["precision"], job["threads"])
        self.count, grid = len(self.frames), self.stream.preprocessing
        self.shape: tuple[int, ...] = (1, len(grid.channels), *grid.size)
        inputs = [network_input(c, self.shape, job["path"]) for c in canvases]
        step = self.stream._networks[0]
        self.runtime: dict[str, Any] = settings_of(step)
        self.pushed = 0
        self.calls: dict[str, Callable[[int], Any]] = {"end_to_end": self.push, "network": lambda i: step(inputs[i])}

    def push(self, _: int) -> None:
        """The frame after the last one that was pushed: the same one twice would be a stall."""
        found = self.stream.push(self.frames[self.pushed % self.count])
        self.pushed += 1
        if found.status != "ok":  # a refused or repeated frame returns at once: its time would be a lie
            raise EdgesegError(f"the stream does not take its test frame: {found.status}")


class TorchTeacher:
    """The network alone, eager, float32, in the memory format that is faster here."""

    def __init__(self, job: dict[str, Any]) -> None:
        torch = need("torch", "train")
        from edgeseg.distill.torch_worker import faster_format
        from edgeseg.teachers import open_teacher

        torch.set_num_threads(job["threads"])
        torch.set_flush_denormal(True)
        frames, _, canvases = load_frames(Path(job["frames"]))
        teacher = open_teacher(job["path"])
        self.count, self.shape = len(frames), teacher.input_shape
        inputs = [torch.from_numpy(network_input(c, self.shape, job["path"])) for c in canvases]
        model = teacher.network()
        chosen, took = faster_format(model, inputs[0])
        model, inputs = model.to(memory_format=chosen), [x.contiguous(memory_format=chosen) for x in inputs]
        self.runtime: dict[str, Any] = {"TORCH": torch.__version__, "TORCH_NUM_THREADS": str(torch.get_num_threads()),
                                        "MEMORY_FORMATS_MS": ", ".join(f"{k} {ms:.2f}" for k, ms in took.items())}

        def forward(index: int) -> Any:
            with torch.inference_mode():
                return model(inputs[index])

        self.calls: dict[str, Callable[[int], Any]] = {"network": forward}


if __name__ == "__main__":
    main(lambda job: Pushed(job) if job["kind"] == "stream" else TorchTeacher(job))
