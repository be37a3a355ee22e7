"""ONNX Runtime on the CPU, polite to whatever else runs there."""

from pathlib import Path

import numpy as np

from edgeseg.runtime.backends import check_shape, check_states, unloadable
from edgeseg.runtime.telemetry import telemetry_off

TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16,
         "tensor(int16)": np.int16}
"""ONNX Runtime's names of the pixel types that a network may take."""


class OnnxRuntimeBackend:
    """A session; see `backends.Backend`."""

    def __init__(self, path: Path, threads: int) -> None:
        telemetry_off()
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; it warns about every QDQ pair it fuses
        # By default its threads spin for a while after each call and take the cores from the reconstruction.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions have no common base but Exception
            raise unloadable(path, "ONNX Runtime", error) from None
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        self.shape = check_shape(path, tuple(inputs[0].shape))
        self.states = check_states(path, [(i.name,) for i in inputs], [(o.name,) for o in outputs])
        self.input = inputs[0].name
        self.dtype = np.dtype(TYPES.get(inputs[0].type, np.float32))
        self.clean = {i.name: np.zeros(i.shape, np.float32) for i in inputs[1:]}
        self.reset()

    def reset(self) -> None:
        self.state = self.clean

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y, *after = self.session.run(None, {self.input: x, **self.state})
        self.state = dict(zip(self.states, after, strict=False))  # new arrays: nothing is copied
        return y
