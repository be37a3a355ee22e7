"""OpenVINO on the CPU, set so that one file gives the same numbers wherever it can."""

from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.runtime.backends import check_shape, unloadable
from edgeseg.runtime.telemetry import telemetry_off


class OpenVINOBackend:
    """A compiled model with one request; see `backends.Backend`."""

    def __init__(self, path: Path, threads: int, precision: str = "fp32") -> None:
        self.compiled, self.shape, self.dtype = compiled(path, precision, "LATENCY", 1, threads)
        self.request = self.compiled.create_infer_request()
        # its own buffers, filled and read in place: handing arrays over at each call costs 0.15 ms
        self.input, self.output = self.request.get_input_tensor(0).data, self.request.get_output_tensor(0).data

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if x.dtype != self.dtype or x.shape != self.shape:  # NumPy would convert, and let what does not fit wrap around
            raise TypeError(f"expected {self.dtype} {list(self.shape)}, got {x.dtype} {list(x.shape)}")
        self.input[...] = x
        self.request.infer(share_outputs=True)
        return self.output.copy()  # the next call overwrites it


def compiled(path: Path, precision: str, hint: str, streams: int,
             threads: int) -> tuple[Any, tuple[int, ...], np.dtype]:
    """The compiled network of a file, with the shape and the type of its input.

    Raises:
        EdgesegError: a file that OpenVINO cannot load, without its weights or with a free shape; bf16 that it would not
            compute in.
    """
    telemetry_off()
    import openvino as ov

    if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
        raise EdgesegError(f"{path.with_suffix('.bin')}: the weights of {path.name} are missing: copy both files")
    try:
        core = ov.Core()
        model = core.compile_model(core.read_model(path), "CPU", settings(precision, threads, hint, streams))
        one = len(model.inputs) == 1
        shape = tuple(d.get_length() if d.is_static else None for d in model.inputs[0].partial_shape) if one else ()
    except RuntimeError as error:
        raise unloadable(path, "OpenVINO", error) from None
    if precision == "bf16" and model.get_property("INFERENCE_PRECISION_HINT") != ov.Type.bf16:
        raise EdgesegError(f"{path}: OpenVINO does not compute in bf16 on this CPU: choose fp32 or int8")
    return model, check_shape(path, shape), np.dtype(model.inputs[0].element_type.to_dtype())


def settings(precision: str, threads: int, hint: str = "LATENCY", streams: int = 1) -> dict[str, Any]:
    """What every network is compiled with."""
    return {
        # without it bf16 where the CPU has it, and so other numbers on another CPU
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": hint,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
        "CPU_DENORMALS_OPTIMIZATION": True,  # denormal activations cost an order of magnitude
    }
