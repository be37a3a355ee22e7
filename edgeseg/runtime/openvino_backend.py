"""OpenVINO on the CPU, set so that one file gives the same numbers wherever it can."""

from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.runtime.backends import check_shape, unloadable
from edgeseg.runtime.telemetry import telemetry_off


class OpenVINOBackend:
    """A compiled model with one request; see `backends.Backend`."""

    def __init__(self, path: Path, threads: int) -> None:
        telemetry_off()
        import openvino as ov

        if path.suffix == ".xml" and not path.with_suffix(".bin").is_file():
            raise EdgesegError(f"{path.with_suffix('.bin')}: the weights of {path.name} are missing: copy both files")
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the CPU has it, and other numbers on another CPU
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "CPU_DENORMALS_OPTIMIZATION": True,  # denormal activations cost an order of magnitude
        }
        try:
            core = ov.Core()
            self.compiled = core.compile_model(core.read_model(path), "CPU", settings)
            shape = tuple(d.get_length() if d.is_static else None for d in self.compiled.input(0).partial_shape)
        except RuntimeError as error:
            raise unloadable(path, "OpenVINO", error) from None
        self.shape = check_shape(path, shape)
        self.request = self.compiled.create_infer_request()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        self.request.infer({0: x}, share_inputs=True)
        return np.array(self.request.get_output_tensor(0).data)  # a copy: the request reuses its buffer
