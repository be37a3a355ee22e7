"""Segmenter: a bundle at work, without torch. Raw pixels in, label values in the same grid out.

`segment` takes the statistics of each frame by itself, all that a live stream has (what that costs in Dice is in the
bundle's manifest, `measured.streaming`); `segment_volume` takes those of the whole volume. A recurrent network segments
a volume as the clip that it is, and a single frame as the first of one: `stream.Stream` remembers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edgeseg.case import Case
from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.geometry import canvas_shape
from edgeseg.runtime.backends import BACKENDS, CANDIDATES, Backend, load_backend, model_file
from edgeseg.runtime.frame_graph import FrameGraphs
from edgeseg.runtime.threads import checked_threads

MAX_CANVAS = 2**26
"""Pixels of a resampled frame: 8192 x 8192. More means a wrong spacing, and would exhaust the memory."""


@dataclass(frozen=True)
class Segmentation:
    """Label values uint8 [H, W] or [N, H, W], and "ok" or why there is nothing but background."""

    labels: np.ndarray
    status: str = "ok"

    @property
    def ok(self) -> bool:
        return self.status == "ok"


class Segmenter:
    """One bundle, one runtime, one precision. Not to be shared between threads: give each its own.

    Args:
        bundle: an opened bundle or its folder.
        precision: "auto" is the fastest admitted one where the speeds of this machine's CPU are known, else FP32
            (`precision.choose_precision`). "bf16": OpenVINO computes the FP32 network in bfloat16.
        threads: of the network; default: the physical cores that affinity and the container's quota leave. What
            OpenCV resamples with (no frame graph for these frames) is one pool for the whole process, which is not
            ours to change: `cv2.setNumThreads`.

    Attributes:
        backend, precision, threads: what it runs on. scheme: names of the label values.

    Raises:
        EdgesegError: a damaged bundle, an unknown choice, a precision that the bundle or this CPU does not have.
    """

    def __init__(self, bundle: Bundle | Path | str, backend: str = "openvino",
                 precision: Literal["auto", "int8", "bf16", "fp32"] | str = "auto", threads: int | None = None) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
        if backend not in BACKENDS:
            raise EdgesegError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        if precision not in ("auto", *CANDIDATES):
            raise EdgesegError(f"unknown precision {precision!r}: choose one of auto, {', '.join(CANDIDATES)}")
        if precision == "auto":
            from edgeseg.runtime.precision import choose_precision

            precision = choose_precision(self.bundle, backend, threads)
        self.backend, self.precision, self.threads = backend, precision, checked_threads(threads)
        self.scheme, self.preprocessing = self.bundle.scheme, self.bundle.preprocessing
        self._network = self._load(self.bundle.file(model_file(backend, precision)))
        expected = (1, len(self.preprocessing.channels), *self.preprocessing.size)
        if self._network.shape != expected:
            raise EdgesegError(f"{self.bundle.path}: the network takes {self._network.shape}, the manifest says "
                               f"{expected}: export the bundle again")
        self._graphs = FrameGraphs(self.bundle, backend, precision, self.threads)

    def net(self, x: np.ndarray) -> np.ndarray:
        """Normalised float32 [n, C, gh, gw] -> logits float32 [n, K, gh, gw]; a recurrent network goes on with the clip
        of the call before."""
        if len(x) == 1:
            return self._network(np.ascontiguousarray(x, np.float32))
        return np.concatenate([self._network(np.ascontiguousarray(x[i : i + 1], np.float32)) for i in range(len(x))])

    def _load(self, path: Path) -> Backend:
        return load_backend(self.backend, path, self.threads, self.precision)

    def warm_up(self) -> None:
        """Run the network and every frame graph twice, so that the first frame does not pay for what is loaded and
        set up on first use."""
        for _ in range(2):
            self.net(np.zeros(self._network.shape, np.float32))
        self._graphs.warm_up()

    def segment(self, frame: np.ndarray, spacing: tuple[float, float]) -> Segmentation:
        """One raw frame [H, W] or [C, H, W] of `spacing` (row, column) mm, as a stream has it: intensities are
        normalised on this frame alone. Runs in a frame graph where the bundle has one for these frames, which computes
        the same.

        Never raises for what is in the pixels: `status` says what was wrong, the labels are then all background.
        """
        whole = self.checked(np.asarray(frame)[None], spacing, self._frame_values)
        return Segmentation(whole.labels[0] if len(whole.labels) else np.zeros((0, 0), np.uint8), whole.status)

    def segment_volume(self, frames: np.ndarray, spacing: tuple[float, float]) -> Segmentation:
        """A raw volume or clip [N, H, W] or [N, C, H, W]; intensities are normalised on all of it. As `segment`."""
        return self.checked(np.asarray(frames), spacing, lambda f, s: self.scheme.decode(self.classes(f, s)))

    def checked(self, frames: np.ndarray, spacing: tuple[float, float],
                 work: Callable[[np.ndarray, tuple[float, float]], np.ndarray]) -> Segmentation:
        """`work` (frames and spacing -> label values [N, H, W]) unless there is a problem with the frames."""
        labels = np.zeros((len(frames) if frames.ndim else 0, *frames.shape[-2:]) if frames.ndim >= 3 else (0, 0, 0),
                          np.uint8)
        if problem := self.problem(frames, spacing):
            return Segmentation(labels, problem)
        try:
            return Segmentation(work(frames, spacing))
        except Exception as error:  # on a scanner a frame without labels is better than a stream that ends
            return Segmentation(labels, f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}")

    def _frame_values(self, frames: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
        """One frame [1, H, W] or [1, C, H, W] -> label values [1, H, W]."""
        if (protocol := self._graphs.find(frames.shape[-2:], frames.dtype, spacing)) is None:
            return self.scheme.decode(self.classes(frames, spacing))
        return self._graphs.load(protocol)(np.ascontiguousarray(frames if frames.ndim == 4 else frames[:, None]))

    def segment_case(self, case: Case) -> np.ndarray:
        """Class indices uint8 [N, H, W] of a case, as `measure.evaluate` takes them."""
        return self.classes(case.frames, case.spacing)

    def classes(self, frames: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
        """Class indices uint8 [N, H, W], without checks."""
        stack = frames if frames.ndim == 4 else frames[:, None]
        net = self._network if self.bundle.manifest.stream else self.net  # that of a clip has to begin it
        return self.preprocessing.segment(np.ascontiguousarray(stack, np.float32), spacing, net)

    def problem(self, frames: np.ndarray, spacing: tuple[float, float]) -> str:
        """Why [N, H, W] or [N, C, H, W] cannot be segmented; "" when it can."""
        channels = len(self.preprocessing.channels)
        if frames.ndim not in (3, 4) or 0 in frames.shape or (frames.shape[1] if frames.ndim == 4 else 1) != channels:
            return f"expected {channels} channel(s) of pixels, got an array of shape {frames.shape}"
        if frames.dtype.kind not in "uifb":
            return f"expected numbers, got {frames.dtype}"
        if len(spacing) != 2 or not all(np.isfinite(s) and s > 0 for s in spacing):
            return f"spacing {tuple(spacing)} is not two positive numbers of mm"
        height, width = canvas_shape(frames.shape[-2:], spacing, self.preprocessing.spacing)
        if height * width > MAX_CANVAS:
            return f"spacing {tuple(spacing)} mm would make an image of {height} x {width} pixels"
        low, high = float(frames.min()), float(frames.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            return "the image holds NaN or infinite values"
        return "the image is constant" if low == high else ""
