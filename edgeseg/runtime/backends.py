"""The two CPU runtimes behind one call: float32 [1, C, gh, gw] -> logits float32 [1, K, gh, gw]."""

from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from edgeseg.errors import EdgesegError

BackendName = Literal["openvino", "onnxruntime"]
Precision = Literal["fp32", "int8"]
BACKENDS: tuple[BackendName, ...] = ("openvino", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
SUFFIX = {"openvino": "xml", "onnxruntime": "onnx"}
"""What a bundle's model file for a runtime ends in."""


class Backend(Protocol):
    """A loaded network. `shape` is its static input shape [1, C, gh, gw]. Not to be shared between threads."""

    shape: tuple[int, ...]

    def __call__(self, x: np.ndarray) -> np.ndarray: ...


def load_backend(name: str, path: Path, threads: int | None = None) -> Backend:
    """Load a network file (.onnx; for OpenVINO also .xml with its .bin) on the CPU.

    Raises:
        EdgesegError: an unknown backend, fewer than one thread, or a file that the runtime cannot load.
    """
    from edgeseg.runtime.threads import checked_threads

    count = checked_threads(threads)
    path = Path(path)
    if not path.is_file():
        raise EdgesegError(f"{path}: no such network file")
    if name == "openvino":
        from edgeseg.runtime.openvino_backend import OpenVINOBackend

        return OpenVINOBackend(path, count)
    if name == "onnxruntime":
        from edgeseg.runtime.onnxruntime_backend import OnnxRuntimeBackend

        return OnnxRuntimeBackend(path, count)
    raise EdgesegError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")


def unloadable(path: Path, runtime: str, error: Exception) -> EdgesegError:
    """One line out of a runtime's many: its last one usually says what it stumbled over."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1][:200] if lines else type(error).__name__
    return EdgesegError(f"{path}: {runtime} cannot load this network ({reason}): export it again")


def check_shape(path: Path, shape: tuple[int | str | None, ...]) -> tuple[int, ...]:
    """The static shape as integers; EdgesegError when a size is left open."""
    if len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise EdgesegError(f"{path}: expected one image input of fixed shape [1, C, H, W], found {list(shape)}")
    return tuple(int(n) for n in shape if n is not None)
