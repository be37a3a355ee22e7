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
        telemetry_off()
        import openvino as ov

        if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
            raise EdgesegError(f"{path.with_suffix('.bin')}: the weights of {path.name} are missing: copy both files")
        settings: dict[str, Any] = {
            # without it bf16 where the CPU has it, and so other numbers on another CPU
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "CPU_DENORMALS_OPTIMIZATION": True,  # denormal activations cost an order of magnitude
        }
        try:
            core = ov.Core()
            self.compiled = core.compile_model(core.read_model(path), "CPU", settings)
            one = len(self.compiled.inputs) == 1
            shape = tuple(d.get_length() if d.is_static else None
                          for d in self.compiled.inputs[0].partial_shape) if one else ()
        except RuntimeError as error:
            raise unloadable(path, "OpenVINO", error) from None
        self.shape = check_shape(path, shape)
        self.dtype = np.dtype(self.compiled.inputs[0].element_type.to_dtype())
        if precision == "bf16" and self.compiled.get_property("INFERENCE_PRECISION_HINT") != ov.Type.bf16:
            raise EdgesegError(f"{path}: OpenVINO does not compute in bf16 on this CPU: choose fp32 or int8")
        self.request = self.compiled.create_infer_request()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if x.dtype != self.dtype:  # OpenVINO would convert, and let what does not fit wrap around
            raise TypeError(f"expected {self.dtype} pixels, got {x.dtype}")
        self.request.infer({0: x}, share_inputs=True)
        return np.array(self.request.get_output_tensor(0).data)  # a copy: the request reuses its buffer
