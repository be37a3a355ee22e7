"""Stream: frames as they come, each segmented with what the network remembers of those before it. Without torch.

What happens to the memory (the state) when frames do not come as they should:

    gap          the time stamp is more than GAP frame times after the last one: state reset, frame segmented, flagged
    no order     it is not after the last one: the same
    stall        the pixels are those of the last frame: its labels again, state as it was, flagged
    bad frame    NaN, constant, not the channels of the task: background, state reset, flagged
    other size   than the frame before: background, state reset, flagged; the stream goes on in the new size

So one bad frame costs what is remembered, never the stream.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import to_native
from edgeseg.runtime.backends import Backend, load_backend, model_file
from edgeseg.runtime.segmenter import Segmentation, Segmenter

GAP = 5.0
"""Frame times without a frame after which the heart is elsewhere: at 50 frames a second 0.1 s, a third of systole."""


@dataclass(frozen=True)
class StreamResult(Segmentation):
    """A `Segmentation` of one frame: label values uint8 [H, W], and "ok" or what was wrong.

    Attributes:
        frame: number of the frame since the stream began (or `reset`), from 0.
        remembered: how many frames before it the network knew of; 0 right after the state was reset.
    """

    frame: int = 0
    remembered: int = 0


class Stream:
    """One live stream through one bundle. Not to be shared between threads. A bundle whose network takes each frame by
    itself works too: it is then `Segmenter.segment`, and time does not matter.

    Args:
        bundle, backend, precision, threads: as of `Segmenter`.
        spacing: (row, column) mm of the frames; default: that of the network's grid, so that pixels stay as they are.
        frame_time: seconds between frames; default: as in training, else the shortest time between two frames so far.

    Raises:
        EdgesegError: as `Segmenter`; a spacing that is not two positive numbers.
    """

    def __init__(self, bundle: Bundle | Path | str, backend: str = "openvino",
                 precision: Literal["auto", "int8", "bf16", "fp32"] | str = "auto", threads: int | None = None,
                 spacing: tuple[float, float] | None = None, frame_time: float | None = None) -> None:
        self._segmenter = Segmenter(bundle, backend, precision, threads)
        self.bundle, self.preprocessing = self._segmenter.bundle, self._segmenter.preprocessing
        self.backend, self.precision = backend, self._segmenter.precision
        self.spacing = spacing or self.preprocessing.spacing
        if len(self.spacing) != 2 or not all(np.isfinite(s) and s > 0 for s in self.spacing):
            raise EdgesegError(f"spacing {self.spacing} is not two positive numbers of mm")
        stream = self.bundle.manifest.stream
        self.recurrent = stream is not None
        self.frame_time = frame_time or (stream.frame_time if stream else None)
        self._networks: list[Backend] = [self._segmenter._network]
        """One a window of the frame, each with its own state; a frame that fits into the grid has one window."""
        self.reset()

    def reset(self) -> None:
        """A new clip: everything that came before is forgotten."""
        self.frame = 0
        self._size: tuple[int, ...] | None = None
        self._time: float | None = None
        self._shortest = np.inf
        self._forget()

    def warm_up(self) -> None:
        """Run the network twice, so that the first frame does not pay for what is set up on first use; then `reset`."""
        self._segmenter.warm_up()
        self.reset()

    def _forget(self) -> None:
        """A clean state, as before the first frame of a clip."""
        self.remembered = 0
        self._last: tuple[np.ndarray, np.ndarray] | None = None
        for network in self._networks:
            network.reset()

    def push(self, frame: np.ndarray, time: float | None = None) -> StreamResult:
        """The next raw frame [H, W] or [C, H, W], taken at `time` seconds (of any clock; None: at its turn).

        Never raises for what is in the pixels: `status` says what was wrong, see the table above.
        """
        frame = np.asarray(frame)
        found = self._recurrent(frame, time) if self.recurrent else self._segmenter.segment(frame, self.spacing)
        result = StreamResult(found.labels, found.status, self.frame, self.remembered)
        self.frame += 1
        self.remembered += bool(self.recurrent and self._last is not None and not found.status.startswith("stall"))
        return result

    def _recurrent(self, frame: np.ndarray, time: float | None) -> Segmentation:
        if self._last is not None and np.array_equal(frame, self._last[0]):
            return Segmentation(self._last[1].copy(), "stall: the same pixels as of the frame before")
        flag, wrong = self._passed(time), self._segmenter.problem(frame[None], self.spacing)
        if not wrong:
            before, self._size = self._size, frame.shape
            if before not in (None, frame.shape):
                wrong = f"size: {list(frame.shape)} after {list(before or ())}: state reset"
        if flag or wrong:
            self._forget()
        if wrong:
            return Segmentation(np.zeros(frame.shape[-2:] if frame.ndim in (2, 3) else (0, 0), np.uint8), wrong)
        found = self._segmenter.checked(frame[None], self.spacing, self._labels)
        if not found.ok:  # the runtime failed, at whatever point
            self._forget()
            return Segmentation(found.labels[0], found.status)
        self._last = frame.copy(), found.labels[0]
        return Segmentation(found.labels[0].copy(), flag or "ok")

    def _passed(self, time: float | None) -> str:
        """Note the time of a frame and say why it is not the successor of the one before; "" when it is."""
        before = self._time
        if time is None or np.isfinite(time):
            self._time = time
        if time is None or before is None:
            return ""
        passed = time - before
        if not passed > 0:
            return f"time: {time:g} s does not come after {before:g} s: state reset"
        usual = self.frame_time or min(self._shortest, passed)
        self._shortest = min(self._shortest, passed)
        return f"gap: {passed:.3g} s without a frame: state reset" if passed > GAP * usual else ""

    def _labels(self, frames: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
        """One frame [1, H, W] or [1, C, H, W] -> label values [1, H, W]; the states go on by one frame."""
        stack = np.ascontiguousarray(frames if frames.ndim == 4 else frames[:, None], np.float32)
        canvas = self.preprocessing.to_canvas(stack, spacing)
        while len(self._networks) < len(self.preprocessing.starts((canvas.shape[-2], canvas.shape[-1]))):
            path = self.bundle.file(model_file(self.backend, self.precision))
            self._networks.append(load_backend(self.backend, path, self._segmenter.threads, self.precision))
        networks = iter(self._networks)
        # a function of its own: what has a method `reset` would be reset before each frame
        logits = self.preprocessing.canvas_logits(canvas, lambda window: next(networks)(window))
        return self._segmenter.scheme.decode(to_native(logits, (frames.shape[-2], frames.shape[-1])))
