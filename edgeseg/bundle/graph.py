"""Frame graph: raw scanner pixels in, label values in the same grid out, in one static ONNX or IR file a protocol.

A host that loads it has nothing to port: type, statistics of the frame, resampling, window, network, arg-max and the
way back are inside (`frame_nodes.py`), around the core network of the bundle as it is, FP32 or INT8. What it computes
is `Preprocessing.segment` of one frame; a frame without contrast is all background. That float pixels are finite is
for the host to check, as the Segmenter does. Needs onnx and openvino, no torch.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from edgeseg import geometry
from edgeseg.bundle.frame_nodes import FLOOR, FRAME, IMAGE, LABELS, Nodes, add_backward, add_forward
from edgeseg.bundle.frame_tail import Tail, before_tail_ir, drop_tail
from edgeseg.errors import EdgesegError
from edgeseg.geometry import Shape
from edgeseg.manifest import FrameProtocol
from edgeseg.preprocess import Preprocessing
from edgeseg.runtime.backends import PRECISIONS

LARGEST_SIDE = 8192
"""Pixels of a frame's side; also of its resampled image, of which more means a wrong spacing."""
PROTOCOL = re.compile(r"(\d{1,5})x(\d{1,5})@(\d{1,5}(?:\.\d{1,12})?)(?:x(\d{1,5}(?:\.\d{1,12})?))?", re.ASCII)
CORE, LOGITS = "core/", "logits"


def parse_protocol(text: str, dtype: str, back: str = "logits") -> FrameProtocol:
    """"256x216@1.40625" (rows x columns @ mm), or with two spacings "256x216@1.4x1.5" (row x column).

    Raises:
        EdgesegError: another form, a side outside 1..8192, a spacing of 0, an unknown pixel type or way back.
    """
    if not (found := PROTOCOL.fullmatch(text)):
        raise EdgesegError(f"--frame {text!r}: expected ROWSxCOLUMNS@MM, for example 256x216@1.40625, or "
                           "256x216@1.4x1.5 for pixels that are not square")
    size = int(found[1]), int(found[2])
    spacing = float(found[3]), float(found[4] or found[3])
    if not all(1 <= n <= LARGEST_SIDE for n in size):
        raise EdgesegError(f"--frame {text!r}: rows and columns must lie in 1..{LARGEST_SIDE}")
    if not min(spacing) > 0:
        raise EdgesegError(f"--frame {text!r}: the spacing must be more than 0 mm")
    for what, value in (("dtype", dtype), ("back", back)):
        if value not in (known := get_args(FrameProtocol.model_fields[what].annotation)):
            raise EdgesegError(f"--{what} {value!r}: choose one of {', '.join(known)}")
    mm = [np.format_float_positional(s, trim="-") for s in spacing]
    name = f"{size[0]}x{size[1]}@{mm[0] if spacing[0] == spacing[1] else 'x'.join(mm)}-{dtype}"
    return FrameProtocol.model_validate({"name": name + ("-labels" if back == "labels" else ""), "size": size,
                                         "spacing": spacing, "dtype": dtype, "back": back})


def window_of(preprocessing: Preprocessing, protocol: FrameProtocol) -> tuple[Shape, Shape]:
    """Shape of the canvas of a protocol's frame, and the first pixel of the window on it.

    Raises:
        EdgesegError: one static graph of one pass cannot do what this preprocessing does with such frames.
    """
    canvas = geometry.canvas_shape(protocol.size, protocol.spacing, preprocessing.spacing)
    what = f"frame graph {protocol.name}"
    if max(canvas) > LARGEST_SIDE:
        raise EdgesegError(f"{what}: resampled to {preprocessing.spacing[0]:g} x {preprocessing.spacing[1]:g} mm it "
                           f"has {canvas[0]} x {canvas[1]} pixels: check the spacing")
    if any(n.masked for n in preprocessing.channels):
        raise EdgesegError(f"{what}: this network's normalisation fills holes in a mask, which a graph cannot do: use "
                           "the Segmenter without a frame graph")
    if preprocessing.window == "tiles" and any(n > g for n, g in zip(canvas, preprocessing.size, strict=True)):
        raise EdgesegError(f"{what}: resampled it has {canvas[0]} x {canvas[1]} pixels, more than the grid's "
                           f"{preprocessing.size[0]} x {preprocessing.size[1]}: tiles need several passes of the "
                           "network, a frame graph has one: choose smaller frames")
    return canvas, geometry.centre_start(canvas, preprocessing.size)


@dataclass(frozen=True)
class Plan:
    """What a frame graph is made from; `build` gives the parts before and after a core network."""

    preprocessing: Preprocessing
    values: tuple[int, ...]
    protocol: FrameProtocol

    def before(self, image: str) -> Nodes:
        """FRAME -> `image` [1, C, gh, gw] and FLOOR [1, 1, 1, 1]."""
        canvas, start = window_of(self.preprocessing, self.protocol)
        rows, cols = (geometry.take_window(geometry.linear_weights(n, c), (s, 0), (g, n)) for n, c, s, g in
                      zip(self.protocol.size, canvas, start, self.preprocessing.size, strict=True))
        add_forward(nodes := Nodes("before/"), self.protocol, self.preprocessing, rows, cols, image)
        return nodes

    def after(self, logits: str, tail: Tail) -> Nodes:
        """`logits` [1, C, *tail.size] and FLOOR -> LABELS. Smaller than the grid: they go there linearly first."""
        canvas, start = window_of(self.preprocessing, self.protocol)
        weights = []
        for n, c, s, g, h in zip(self.protocol.size, canvas, start, self.preprocessing.size, tail.size, strict=True):
            to_grid = geometry.linear_weights(h * tail.steps, g)
            if self.protocol.back == "logits":
                from_grid = geometry.take_window(geometry.linear_weights(c, n), (0, s), (n, g))
            else:  # the arg-max of the nearest pixel is that of its logits
                from_grid = (geometry.nearest_index(c, n)[:, None] - s == np.arange(g)).astype(float)
            # einsum: the last digits of a BLAS product depend on the machine
            weights.append(np.einsum("ij,jk->ik", from_grid, to_grid))
        add_backward(nodes := Nodes("after/"), self.protocol, logits, tail, FLOOR, weights[0], weights[1], self.values)
        return nodes


def write_frame_graphs(folder: Path, preprocessing: Preprocessing, scheme_values: tuple[int, ...],
                       protocol: FrameProtocol, precisions: tuple[str, ...] = PRECISIONS) -> list[Path]:
    """Write frames/NAME/{fp32,int8}.{onnx,xml,bin} below a bundle folder, for the model files that it has.

    Args:
        scheme_values: label value of each class. precisions: of the frame graphs, each of which holds all weights.

    Raises:
        EdgesegError: see `window_of`; nothing is written then. OSError: the disk is full.
    """
    from edgeseg.bundle.quantise import convert_model

    plan = Plan(preprocessing, tuple(scheme_values), protocol)
    window_of(preprocessing, protocol)
    out = folder / "frames" / protocol.name
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for precision in precisions:
        if (core := folder / f"model.{precision}.onnx").is_file():
            written.append(write(around_onnx(plan, core), out / f"{precision}.onnx"))
        xml = out / f"{precision}.xml"
        if not (core := folder / f"model.{precision}.xml").is_file():
            continue
        if precision == "fp32":  # one source of truth: the ONNX file
            save_plainly(convert_model(written[-1]), xml)
        else:  # quantised separately for each runtime
            save_plainly(around_ir(plan, core), xml)
        written += [xml, xml.with_suffix(".bin")]
    return written


def write(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def around_onnx(plan: Plan, core_file: Path) -> Any:
    """The ONNX model of a plan with the core's nodes inlined under the prefix "core/"."""
    import onnx

    from edgeseg.onnx_file import clear_traces

    core = onnx.compose.add_prefix(onnx.load(core_file), CORE)
    logits, tail = drop_tail(core)
    before, after = plan.before(core.graph.input[0].name), plan.after(logits, tail)
    used = {name for node in core.graph.node for name in node.input}
    model = onnx.helper.make_model(
        graph_of(plan, [*before.nodes, *core.graph.node, *after.nodes],
                 [*before.constants, *(c for c in core.graph.initializer if c.name in used), *after.constants]),
        opset_imports=core.opset_import, ir_version=core.ir_version)
    clear_traces(model)
    onnx.checker.check_model(model)
    return model


def graph_of(plan: Plan, nodes: list[Any], constants: list[Any], inputs: dict[str, tuple[int, ...]] | None = None,
             outputs: dict[str, tuple[int, ...]] | None = None) -> Any:
    """An ONNX graph; default: FRAME in, LABELS out. Other values are float32."""
    from onnx import TensorProto, helper

    size, channels = plan.protocol.size, len(plan.preprocessing.channels)
    kinds = {FRAME: TensorProto.DataType.Value(plan.protocol.dtype.upper().replace("FLOAT32", "FLOAT")),
             LABELS: TensorProto.UINT8}

    def side(shapes: dict[str, tuple[int, ...]]) -> list[Any]:
        return [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), shape)
                for name, shape in shapes.items()]

    return helper.make_graph(nodes, "frame", side(inputs or {FRAME: (1, channels, *size)}),
                             side(outputs or {LABELS: (1, *size)}), constants)


def around_ir(plan: Plan, core_file: Path) -> Any:
    """The OpenVINO model of a plan: the parts before and after, converted from ONNX, joined to the core's IR."""
    import openvino as ov

    from edgeseg.bundle.quantise import read_ir

    core = read_ir(core_file)
    logits, tail = before_tail_ir(core)
    image = {IMAGE: tuple(core.inputs[0].shape)}
    floor = {FLOOR: (1, 1, 1, 1)}
    parts = []
    for nodes, sides in ((plan.before(IMAGE), (None, image | floor)),
                         (plan.after(LOGITS, tail), ({LOGITS: tuple(logits.shape)} | floor, None))):
        parts.append(converted(graph_of(plan, nodes.nodes, nodes.constants, *sides)))
    before, after = parts
    core.get_parameters()[0].output(0).replace(source(before, IMAGE))
    after.input(LOGITS).replace(logits)
    after.input(FLOOR).replace(source(before, FLOOR))
    return ov.Model(after.get_results(), before.get_parameters(), "frame")


def source(model: Any, name: str) -> Any:
    """What a named output of an OpenVINO model is computed by."""
    return model.output(name).get_node().input_value(0)


def converted(graph: Any) -> Any:
    """An ONNX graph as an OpenVINO model."""
    import onnx

    from edgeseg.bundle.quantise import convert_model
    from edgeseg.onnx_file import OPSET

    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=10)
    with tempfile.TemporaryDirectory(prefix="edgeseg-frame-") as folder:
        onnx.save(model, path := Path(folder) / "part.onnx")
        return convert_model(path)


def save_plainly(model: Any, xml: Path) -> None:
    """Save an IR whose names and notes come from the model alone, not from a counter of the process."""
    import openvino as ov

    from edgeseg.bundle.quantise import save_ir

    plain = ov.Model(model.get_results(), model.get_parameters(), "frame")
    for i, node in enumerate(plain.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}{i}")
    plain.get_parameters()[0].set_friendly_name(FRAME)
    plain.get_results()[0].set_friendly_name(LABELS)
    plain.output(0).set_names({LABELS})
    save_ir(plain, xml)
