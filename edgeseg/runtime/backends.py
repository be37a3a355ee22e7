"""The two CPU runtimes behind one call: a core takes float32 [1, C, gh, gw] and gives logits float32 [1, K, gh, gw], a
frame graph takes raw pixels [1, C, H, W] of its own type and gives label values uint8 [1, H, W].

A recurrent core is the step of a clip: its further inputs h0, c0, ... are states, its further outputs h0_next, c0_next,
... the same states after the frame. They stay inside: called with one frame after the other it computes the clip, until
`reset` begins the next one."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from edgeseg.errors import EdgesegError

BackendName = Literal["openvino", "onnxruntime"]
Precision = Literal["fp32", "bf16", "int8"]
BACKENDS: tuple[BackendName, ...] = ("openvino", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8")
"""Those that have model files of their own."""
CANDIDATES: tuple[Precision, ...] = ("fp32", "bf16", "int8")
"""Those that "auto" may choose: bf16 is OpenVINO computing the FP32 file in bfloat16."""
SUFFIX = {"openvino": "xml", "onnxruntime": "onnx"}
"""What a bundle's model file for a runtime ends in."""


class Backend(Protocol):
    """A loaded network. Not to be shared between threads.

    Attributes:
        shape: static shape of its image input, [1, C, H, W]. dtype: what it must be given; nothing is converted.
        states: names of the states of a recurrent network; none for any other.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    states: tuple[str, ...]

    def __call__(self, x: np.ndarray) -> np.ndarray: ...

    def reset(self) -> None:
        """Forget the frames before; nothing to do without states."""


def model_file(backend: str, precision: str) -> str:
    """Name of the model file that a runtime computes a precision from, for example model.int8.xml."""
    return f"model.{'fp32' if precision == 'bf16' else precision}.{SUFFIX[backend]}"


def load_backend(name: str, path: Path, threads: int | None = None, precision: str = "fp32") -> Backend:
    """Load a network file (.onnx; for OpenVINO also .xml with its .bin) on the CPU.

    Args:
        precision: "bf16": OpenVINO computes in bfloat16, which is refused where the CPU would only simulate it.
            Otherwise the file decides: float32, and int8 where it is quantised.

    Raises:
        EdgesegError: an unknown backend or precision, bf16 where there is none, fewer than one thread, or a file that
            the runtime cannot load.
    """
    from edgeseg.runtime.cpu import native_bf16
    from edgeseg.runtime.threads import checked_threads

    count = checked_threads(threads)
    path = Path(path)
    if name not in BACKENDS:
        raise EdgesegError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if precision not in CANDIDATES:
        raise EdgesegError(f"unknown precision {precision!r}: choose one of {', '.join(CANDIDATES)}")
    if precision == "bf16" and name != "openvino":
        raise EdgesegError(f"{path}: ONNX Runtime does not compute in bf16: choose openvino, or fp32 or int8")
    if precision == "bf16" and not native_bf16():
        raise EdgesegError(f"{path}: this CPU has no instructions for bf16: choose fp32 or int8")
    if not path.is_file():
        raise EdgesegError(f"{path}: no such network file")
    if name == "openvino":
        from edgeseg.runtime.openvino_backend import OpenVINOBackend

        return OpenVINOBackend(path, count, precision)
    from edgeseg.runtime.onnxruntime_backend import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, count)


def unloadable(path: Path, runtime: str, error: Exception) -> EdgesegError:
    """One line out of a runtime's many: its last one usually says what it stumbled over."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1][:200] if lines else type(error).__name__
    return EdgesegError(f"{path}: {runtime} cannot load this network ({reason}): export it again")


def check_states(path: Path, inputs: Sequence[Collection[str]], outputs: Sequence[Collection[str]]) -> tuple[str, ...]:
    """Names of a network's states: its inputs but the first, each with the output NAME_next, in this order.

    Args:
        inputs, outputs: the names of each; OpenVINO may give one several.

    Raises:
        EdgesegError: an input that is neither the image nor such a state.
    """
    if len(inputs) < 2:
        return ()
    states = tuple(next((n for n in a if f"{n}_next" in b), "") for a, b in zip(inputs[1:], outputs[1:], strict=False))
    if not len(inputs) == len(outputs) == len(states) + 1 or not all(states):
        raise EdgesegError(f"{path}: expected one image input and, of a recurrent network, states each with an output "
                           f"NAME_next, found {len(inputs)} inputs, {len(outputs)} outputs: export it again")
    return states


def check_shape(path: Path, shape: tuple[int | str | None, ...]) -> tuple[int, ...]:
    """The static shape as integers; EdgesegError when a size is left open."""
    if len(shape) != 4 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise EdgesegError(f"{path}: expected one image input of fixed shape [1, C, H, W], found {list(shape)}")
    return tuple(int(n) for n in shape if n is not None)
