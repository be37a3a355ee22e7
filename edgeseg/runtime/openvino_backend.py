"""OpenVINO on the CPU, set so that one file gives the same numbers wherever it can."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.runtime.backends import check_shape, check_states, unloadable
from edgeseg.runtime.telemetry import telemetry_off


class OpenVINOBackend:
    """A compiled model with one request, a recurrent one with two that take turns; see `backends.Backend`."""

    def __init__(self, path: Path, threads: int, precision: str = "fp32") -> None:
        self.compiled, self.shape, self.dtype = compiled(path, precision, "LATENCY", 1, threads, recurrent=True)
        inputs, outputs = self.compiled.inputs, self.compiled.outputs
        self.states = check_states(path, [i.names for i in inputs], [o.names for o in outputs])
        self.requests = [self.compiled.create_infer_request() for _ in range(2 if self.states else 1)]
        self.link()
        self.reset()

    def link(self) -> None:
        """What one request writes as its next states, the other one reads as its states: nothing is copied."""
        for i in range(1, len(self.states) + 1):
            for mine, other in (self.requests, self.requests[::-1]):
                other.set_input_tensor(i, mine.get_output_tensor(i))
        # their own buffers, filled and read in place: handing arrays over at each call costs 0.15 ms
        self.images = [r.get_input_tensor(0).data for r in self.requests]
        self.logits = [r.get_output_tensor(0).data for r in self.requests]

    def reset(self) -> None:
        self.turn = 0
        for i in range(1, len(self.states) + 1):
            self.requests[0].get_input_tensor(i).data[...] = 0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        if x.dtype != self.dtype or x.shape != self.shape:  # NumPy would convert, and let what does not fit wrap around
            raise TypeError(f"expected {self.dtype} {list(self.shape)}, got {x.dtype} {list(x.shape)}")
        turn = self.turn
        self.turn = (turn + 1) % len(self.requests)
        self.images[turn][...] = x
        self.requests[turn].infer(share_outputs=True)
        return self.logits[turn].copy()  # a later call overwrites it


def compiled(path: Path, precision: str, hint: str, streams: int,
             threads: int, recurrent: bool = False, batch: int = 0) -> tuple[Any, tuple[int, ...], np.dtype]:
    """The compiled network of a file, with the shape and the type of its image input; states besides it only if
    `recurrent`. `batch`: images that it takes at once, where its graph can; default: as it is in the file.

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
        graph = core.read_model(path)
        if batch:
            with suppress(RuntimeError):  # its inner shapes are fixed
                graph.reshape([batch, *graph.inputs[0].shape[1:]])
        if recurrent and len(graph.inputs) > 1:
            graph = states_channels_last(graph)
        model = core.compile_model(graph, "CPU", settings(precision, threads, hint, streams))
        one = recurrent or len(model.inputs) == 1
        shape = tuple(d.get_length() if d.is_static else None for d in model.inputs[0].partial_shape) if one else ()
    except RuntimeError as error:
        raise unloadable(path, "OpenVINO", error) from None
    if precision == "bf16" and model.get_property("INFERENCE_PRECISION_HINT") != ov.Type.bf16:
        raise EdgesegError(f"{path}: OpenVINO does not compute in bf16 on this CPU: choose fp32 or int8")
    return model, check_shape(path, shape), np.dtype(model.inputs[0].element_type.to_dtype())


def states_channels_last(graph: Any) -> Any:
    """The step with states in the layout in which its convolutions work, channels together: nothing is turned round on
    the way in and out, which is an eighth of a ConvLSTM's step."""
    from openvino import Layout
    from openvino.preprocess import PrePostProcessor

    process = PrePostProcessor(graph)
    ports = [process.input(i) for i in range(1, len(graph.inputs))]
    for port in ports + [process.output(i) for i in range(1, len(graph.outputs))]:
        port.model().set_layout(Layout("NCHW"))
        port.tensor().set_layout(Layout("NHWC"))
    return process.build()


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
