"""FP32 ONNX -> OpenVINO IR, and INT8 for both runtimes with NNCF, by one rung of the ladder (`ladder.py`). Runs in a
fresh process without torch (`apart.py`): the same frames then give the same bytes."""

import errno
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.bundle.recipe import RUNGS
from edgeseg.errors import EdgesegError
from edgeseg.onnx_file import INPUT

Inputs = dict[str, np.ndarray]
"""Name of each input of a network -> its values, one sample after the other along the first axis."""
Score = Callable[[Path], float]
"""Model file of the runtime (INT8 or FP32) -> mean Dice on dev."""
RANGES = ("histogram", "quantile 0.0001", "quantile 0.001")
"""Activation ranges of the rung "range-percentile": the range with the least quantisation error on the histogram of all
frames, or the mean over frames of the p and 1 - p quantiles of each. (The other rungs: of its minimum and maximum.)"""
STATE_PATH = {"openvino": ["Multiply", "Add", "Sigmoid", "Tanh"], "onnxruntime": ["Mul", "Add", "Sigmoid", "Tanh"]}
"""Operators that a recurrent network keeps in FP32: its cells' update, c' = f c + i g, h' = o tanh c'. An error there
would stay in the state and add up over the frames. (It is faster so, too: nothing is rounded back and forth.)"""
WITH_BIAS = "/WithoutBiases"
"""What OpenVINO's ONNX reader appends to the name of a convolution with a bias, which it makes a node of its own."""


def quantise_rung(rung: str, backend: str, fp32_onnx: Path, out: Path, frames: "np.ndarray | Inputs",
                  score: Score) -> dict[str, Any]:
    """Write the INT8 file of one rung and return its settings as JSON can hold them.

    Weights are symmetric with one scale a channel, activations asymmetric. For ONNX Runtime these have one scale a
    tensor: it refuses NNCF's per-channel zero points, which are its default for depthwise convolutions.

    Args:
        rung: "post-training"; "bias-correction": the slow, exact correction; "range-percentile": the best of RANGES by
            `score`; "keep-ends": first and last convolution left in FP32; "accuracy-control": the convolutions that
            harm most left in FP32, one after the other, until `score` is near enough to FP32.
        backend: "openvino" (`out` is an .xml, the IR beside `fp32_onnx` is used if it is there) or "onnxruntime".
        frames: float32 [n, C, gh, gw]; all of them calibrate. Of a recurrent network the n values of every input.
        score: of a file; called by "range-percentile" and "accuracy-control".

    Raises:
        EdgesegError: an unknown rung, or a network that cannot be read or quantised. OSError: the disk is full.
    """
    if rung not in RUNGS or rung == "fine-tune":
        raise EdgesegError(f"unknown rung {rung!r}: choose one of {', '.join(RUNGS[:-1])}")
    quiet()
    try:
        network = Network(backend, fp32_onnx, frames)
        if rung == "range-percentile":
            return best_range(network, out, score)
        if rung == "accuracy-control":
            from edgeseg.bundle.accuracy_control import control_accuracy

            return control_accuracy(network, out, score)
        if rung == "keep-ends":
            return network.quantise(out, ignored=ends(fp32_onnx))
        return network.quantise(out, exact_bias=rung == "bias-correction")
    except (EdgesegError, OSError):
        raise
    except Exception as error:  # NNCF and both runtimes raise dozens of classes without a common base
        raise EdgesegError(f"{fp32_onnx.name}: {rung} fails for {backend} ({last_line(error)})") from None


class NothingLeft(EdgesegError):
    """No convolution is in INT8: the network has none, or too few to leave some out."""


class Network:
    """One FP32 network with its calibration frames, as NNCF wants them for a runtime."""

    def __init__(self, backend: str, fp32_onnx: Path, frames: "np.ndarray | Inputs") -> None:
        self.backend, self.fp32_onnx = backend, fp32_onnx
        self.openvino, self.recurrent = backend == "openvino", isinstance(frames, dict)
        named = frames if isinstance(frames, dict) else {INPUT: frames}
        self.inputs: list[Inputs] = [{name: values[i : i + 1] for name, values in named.items()}
                                     for i in range(len(next(iter(named.values()))))]

    def read(self) -> Any:
        """The FP32 model, ov.Model or onnx.ModelProto; NNCF may change what it is given, so every use reads anew."""
        if not self.openvino:
            import onnx

            return onnx.load(self.fp32_onnx)
        xml = self.fp32_onnx.with_suffix(".xml")
        return read_ir(xml) if xml.is_file() else convert_model(self.fp32_onnx)

    def write(self, model: Any, out: Path) -> Path:
        if self.openvino:
            save_ir(model, out)
        else:
            out.write_bytes(model.SerializeToString(deterministic=True))
        return out

    def advanced(self, ranges: str = "", **more: Any) -> Any:
        from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

        if ranges:
            more["activations_range_estimator_params"] = range_estimator(ranges)
        if not self.openvino:
            more["activations_quantization_params"] = QuantizationParameters(per_channel=False)
        return AdvancedQuantizationParameters(**more)

    def quantised(self, exact_bias: bool = False, ignored: tuple[str, ...] = (), **advanced: Any) -> Any:
        """The INT8 model; `ignored`: names of ONNX nodes that stay in FP32."""
        import nncf

        model = self.read()
        if self.openvino:
            known = {op.get_friendly_name() for op in model.get_ops()}
            ignored = tuple(name + WITH_BIAS if name + WITH_BIAS in known else name for name in ignored)
        types = STATE_PATH[self.backend] if self.recurrent else []
        return nncf.quantize(model, nncf.Dataset(self.inputs), preset=nncf.QuantizationPreset.MIXED,
                             subset_size=len(self.inputs), fast_bias_correction=not exact_bias,
                             ignored_scope=nncf.IgnoredScope(names=list(ignored), types=types),
                             advanced_parameters=self.advanced(**advanced))

    def convolutions(self, model: Any) -> dict[str, bool]:
        """Name of each convolution, as the ONNX file has it -> whether its weights are in INT8."""
        if self.openvino:
            return {op.get_friendly_name().removesuffix(WITH_BIAS): has_int8(op.input_value(1))
                    for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "GroupConvolution")}
        made = {name: node.op_type for node in model.graph.node for name in node.output}
        return {node.name: made.get(node.input[1]) == "DequantizeLinear" for node in model.graph.node
                if node.op_type == "Conv"}

    def quantise(self, out: Path, exact_bias: bool = False, ranges: str = "", ignored: tuple[str, ...] = ()
                 ) -> dict[str, Any]:
        model = self.quantised(exact_bias, ignored, ranges=ranges)
        if not any(self.convolutions(model).values()):
            raise NothingLeft(f"{self.fp32_onnx.name}: no convolution is left to quantise")
        self.write(model, out)
        return self.settings(exact_bias, ranges, ignored)

    def settings(self, exact_bias: bool = False, ranges: str = "", ignored: tuple[str, ...] = ()) -> dict[str, Any]:
        return {"frames": len(self.inputs), "weights": "symmetric, per channel",
                "activations": f"asymmetric, {'per channel where depthwise' if self.openvino else 'per tensor'}",
                "ranges": ranges or "mean minimum and maximum", "bias correction": "exact" if exact_bias else "fast",
                "left in FP32": list(ignored) + (["the cells' update"] if self.recurrent else [])}


def has_int8(value: Any) -> bool:
    """Whether INT8 constants or a FakeQuantize lie behind the weights of an OpenVINO convolution."""
    node = value.get_node()
    if node.get_type_name() == "FakeQuantize" or "8" in node.get_element_type().get_type_name():
        return True
    return any(has_int8(source) for source in node.input_values())


def best_range(network: Network, out: Path, score: Score) -> dict[str, Any]:
    """Quantise with each of RANGES, keep the one with the best score (the first of equals)."""
    with tempfile.TemporaryDirectory(prefix=".ranges-", dir=out.parent) as scratch:
        files = {ranges: Path(scratch) / f"{k}{out.suffix}" for k, ranges in enumerate(RANGES)}
        scores = {}
        for ranges, file in files.items():
            network.quantise(file, ranges=ranges)
            scores[ranges] = score(file)
        best = max(RANGES, key=lambda r: scores[r])
        move(files[best], out)
    return network.settings(ranges=best) | {"tried": scores}


def range_estimator(ranges: str) -> Any:
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        RangeEstimatorParametersSet,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    if ranges == "histogram":
        return RangeEstimatorParametersSet.HISTOGRAM
    end = StatisticsCollectorParameters(StatisticsType.QUANTILE, AggregatorType.MEAN,
                                        quantile_outlier_prob=float(ranges.split()[1]))
    return RangeEstimatorParameters(min=end, max=end)


def ends(onnx_file: Path) -> tuple[str, ...]:
    """Names of the convolutions nearest to the inputs and to the outputs: the first layer and the heads."""
    import onnx

    graph = onnx.load(onnx_file).graph
    weights = {tensor.name for tensor in graph.initializer}
    forward: dict[str, list[Any]] = {}
    backward: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            forward.setdefault(name, []).append(node)
        for name in node.output:
            backward[name] = [node]
    first = nearest([i.name for i in graph.input if i.name not in weights], forward, lambda node: node.output)
    last = nearest([o.name for o in graph.output], backward, lambda node: node.input)
    found = first | last
    return tuple(node.name for node in graph.node if node.op_type == "Conv" and node.name in found)


def nearest(tensors: list[str], step: dict[str, list[Any]], onward: Callable[[Any], Any]) -> set[str]:
    """Names of the Conv nodes that are reached from `tensors` without passing another one."""
    found, seen = set(), set(tensors)
    while tensors:
        for node in step.get(tensors.pop(), []):
            if node.op_type == "Conv":
                found.add(node.name)
                continue
            fresh = [name for name in onward(node) if name not in seen]
            seen.update(fresh)
            tensors += fresh
    return found


def convert(onnx_file: Path, xml: Path) -> None:
    """Write the IR of an ONNX file.

    Raises:
        EdgesegError: not an ONNX file, or an operator that OpenVINO does not know. OSError: the disk is full.
    """
    save_ir(convert_model(onnx_file), xml)


def convert_model(onnx_file: Path) -> Any:
    import openvino as ov

    try:
        return ov.convert_model(onnx_file)
    except Exception as error:  # unknown operators arrive as several private exception classes
        raise EdgesegError(f"{onnx_file.name}: OpenVINO cannot convert it ({last_line(error)})") from None


def read_ir(xml: Path) -> Any:
    import openvino as ov

    if not xml.with_suffix(".bin").is_file():
        raise EdgesegError(f"{xml}: its weights {xml.stem}.bin are missing: export it again")
    try:
        return ov.Core().read_model(xml)
    except RuntimeError as error:
        raise EdgesegError(f"{xml}: OpenVINO cannot read it ({last_line(error)}): export it again") from None


def save_ir(model: Any, xml: Path) -> None:
    """Write an IR. OpenVINO would halve the weights' precision unless told not to."""
    import openvino as ov

    try:
        ov.save_model(model, xml, compress_to_fp16=False)
    except RuntimeError:  # "iostream error": the folder is ours and was writable a moment ago, so the disk is full
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(xml)) from None


def move(file: Path, out: Path) -> None:
    """Rename a model file, an IR with its weights, over whatever is at `out`."""
    if file.suffix == ".xml":
        file.with_suffix(".bin").replace(out.with_suffix(".bin"))
    file.replace(out)


def last_line(error: Exception) -> str:
    """The last line of a runtime's many usually says what it stumbled over."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def quiet() -> None:
    """NNCF narrates on stderr; its progress bars stay where there is no terminal to draw them on."""
    import nncf

    nncf.set_log_level(logging.ERROR)
