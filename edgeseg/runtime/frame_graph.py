"""The frame graphs of a bundle: the whole way from raw pixels to label values in one call of the runtime."""

import numpy as np

from edgeseg import geometry
from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import FrameProtocol
from edgeseg.runtime.backends import SUFFIX, Backend, load_backend

SPACING_TOLERANCE = 1e-4
"""Relative. Scanners round to six digits; 1e-4 of a 400 mm image is 0.04 mm, far below a pixel."""


def graph_file(protocol: FrameProtocol, backend: str, precision: str) -> str:
    """Name in the bundle, for example frames/256x216@1.40625-uint16/int8.xml. There is none for bf16, in which the
    statistics of a frame would be wrong."""
    return f"frames/{protocol.name}/{precision}.{SUFFIX[backend]}"


def bring(frame: np.ndarray, spacing: tuple[float, float], protocol: FrameProtocol) -> np.ndarray:
    """float32 [C, H, W] of `spacing` mm -> [C, *protocol.size] as the scanner of this protocol would deliver it:
    resampled, centred, rounded to its type.

    Intensities that the type does not hold are scaled down until it does, zero staying zero; for an unsigned type
    negative ones are first shifted up to zero.
    """
    shape = geometry.canvas_shape((frame.shape[-2], frame.shape[-1]), spacing, protocol.spacing)
    window = geometry.take_window(geometry.resize_linear(frame, shape), geometry.centre_start(shape, protocol.size),
                                  protocol.size)
    if protocol.dtype == "float32":
        return window
    limits = np.iinfo(protocol.dtype)
    if limits.min == 0:
        window = window - min(0, window.min())
    excess = max(window.max() / limits.max, window.min() / limits.min if limits.min else 0)
    return np.clip(np.rint(window / max(1, excess)), limits.min, limits.max).astype(protocol.dtype)


class FrameGraphs:
    """Those for one runtime and precision, each loaded when the first frame of its protocol comes."""

    def __init__(self, bundle: Bundle, backend: str, precision: str, threads: int) -> None:
        self.bundle, self.backend, self.precision, self.threads = bundle, backend, precision, threads
        self.protocols = [p for p in bundle.manifest.frames if graph_file(p, backend, precision) in bundle.files]
        self._loaded: dict[str, Backend] = {}

    def find(self, size: tuple[int, ...], dtype: np.dtype, spacing: tuple[float, float]) -> FrameProtocol | None:
        """The first protocol of frames of `size` (rows, columns), pixel type and `spacing` mm; None without one."""
        for p in self.protocols:
            if (p.size == tuple(size) and np.dtype(p.dtype) == dtype
                    and all(abs(a - b) <= SPACING_TOLERANCE * b for a, b in zip(spacing, p.spacing, strict=True))):
                return p
        return None

    def load(self, protocol: FrameProtocol) -> Backend:
        """Raw pixels [1, C, H, W] -> label values uint8 [1, H, W].

        Raises:
            EdgesegError: the file cannot be loaded or is for other frames than the manifest says.
        """
        if (graph := self._loaded.get(protocol.name)) is None:
            path = self.bundle.file(graph_file(protocol, self.backend, self.precision))
            graph = load_backend(self.backend, path, self.threads)
            expected = (1, len(self.bundle.preprocessing.channels), *protocol.size)
            if graph.shape != expected or graph.dtype != np.dtype(protocol.dtype):
                raise EdgesegError(f"{path}: takes {graph.dtype} {graph.shape}, the manifest says {protocol.dtype} "
                                   f"{expected}: export the bundle again")
            self._loaded[protocol.name] = graph
        return graph

    def warm_up(self) -> None:
        """Load all of them and run each twice."""
        for protocol in self.protocols:
            graph = self.load(protocol)
            for _ in range(2):
                graph(np.zeros(graph.shape, graph.dtype))
