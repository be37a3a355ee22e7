"""What the export of a recurrent student needs beside that of any other: its step as one graph with the states outside,
samples of these states as they really occur, and a clip to hold every file against torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseg import geometry
from edgeseg.bundle.calibrate import Frame
from edgeseg.bundle.fold import fold_batch_norm
from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.geometry import Shape
from edgeseg.manifest import Recurrence
from edgeseg.measure.drift import there_and_back
from edgeseg.onnx_file import STEP_INPUT, write_onnx
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import Dataset

if TYPE_CHECKING:
    from torch import nn

CONSTANT = ("ct", "rgb", "none")
"""Normalisations by constants: a frame of a stream is then what it is in the whole clip."""


def check_streamable(preprocessing: Preprocessing, protocols: Sequence[Any]) -> None:
    """EdgesegError when a recurrent student could not stream with this preprocessing, or for a frame graph of it."""
    for n in preprocessing.channels:
        if n.kind not in CONSTANT:
            raise EdgesegError(f"a stream has no clip yet to normalise by ({n.kind}): train the recurrent student with "
                               f"constants ({', '.join(CONSTANT)})")
    if protocols:
        raise EdgesegError("a frame graph has no states: leave --frame out for a recurrent student")


def write_step(model: "nn.Module", size: Shape, out: Path) -> None:
    """One step of a recurrent student as ONNX (`onnx_file.write_onnx`)."""
    from torch import nn

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model: Any = fold_batch_norm(model)

        def forward(self, x: Any, *states: Any) -> tuple[Any, ...]:
            y, after = self.model.step(x, states)
            return y, *after

    spec: Any = model.spec
    write_onnx(Step().eval(), (1, spec.in_channels, *size), out, spec.states(size))


def recurrence(model: "nn.Module", size: Shape, frame_time: float | None) -> Recurrence:
    """The manifest's block."""
    spec: Any = model.spec
    return Recurrence(states=spec.states(size), frame_time=frame_time)


def check_clip(data: Dataset, preprocessing: Preprocessing) -> tuple[np.ndarray, Case]:
    """Consecutive network inputs float32 [200, C, gh, gw] of the first clip, played forwards and backwards until it is
    long enough, and that clip."""
    case = data.refs[0].load()
    windows = clip_windows(case, preprocessing)[0]
    return windows[there_and_back(len(windows))], case


def clip_windows(case: Case, preprocessing: Preprocessing) -> list[np.ndarray]:
    """Every window of a clip, float32 [T, C, gh, gw] each; mostly there is one."""
    canvas = preprocessing.to_canvas(case.frames, case.spacing)
    return [np.ascontiguousarray(geometry.take_window(canvas, start, preprocessing.size))
            for start in preprocessing.starts((canvas.shape[-2], canvas.shape[-1]))]


def trajectories(model: "nn.Module", frames: Sequence[Frame], preprocessing: Preprocessing) -> dict[str, np.ndarray]:
    """What the step gets at each of the drawn frames, the FP32 student having run through the clip up to there: name of
    each input -> float32 [n, ...], in the order of the cases. Zero states would calibrate for first frames alone."""
    import torch

    student: Any = model
    samples: dict[str, list[np.ndarray]] = {
        name: [] for name in (STEP_INPUT, *student.spec.states(preprocessing.size))}
    for ref in {f.case.id: f.case for f in frames}.values():
        drawn = [f for f in frames if f.case.id == ref.id]
        for windows in clip_windows(ref.load(), preprocessing):
            wanted = {f.index for f in drawn if np.array_equal(windows[f.index], f.window)}
            state = None
            for t in range(max(wanted, default=-1) + 1):
                x = torch.from_numpy(windows[t : t + 1])
                with torch.inference_mode():
                    _, after = student.step(x, state)
                if t in wanted:
                    before = state or tuple(torch.zeros_like(s) for s in after)
                    for values, found in zip(samples.values(), (x, *before), strict=True):
                        values.append(found.numpy())
                state = after
    return {name: np.concatenate(values) for name, values in samples.items()}
