"""The end of a core network that a frame graph leaves out, because its way back does the same in one step with its own.

A student with a stem of stride 2 ends in a linear Resize to its grid: the way back takes its logits from before that,
and both linear maps at once. A sub-pixel head ends in DepthToSpace: which of its channels holds which pixel is only a
matter of which rows the way back gathers. A student that gives nothing but each class's excess over the background ends
in a Pad that adds a background of zeros, from which the way back would only subtract it again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from edgeseg.geometry import Shape

BACKGROUND, RESIZE, SUB_PIXEL = "background", "resize", "sub-pixel"
Value = TypeVar("Value")


@dataclass(frozen=True)
class Tail:
    """Logits [1, C, *size] at the place where the way back begins.

    steps: C is classes x steps x steps, and pixel (y * steps + a, x * steps + b) of class k is that of channel
    (k, a, b) at (y, x). excess: the classes are those after the background, which is 0 everywhere.
    """

    size: Shape
    steps: int = 1
    excess: bool = False


def before_tail(value: Value, kind: Callable[[Value], str], before: Callable[[Value], Value],
                shape: Callable[[Value], tuple[int, ...]]) -> tuple[Value, Tail]:
    """From the logits of a core back to where its tail begins.

    Args:
        kind: which of the three operations a value is made by ("": none of them). before: what that was made of.
        shape: [1, C, h, w] of a value.
    """
    steps = 1
    if excess := kind(value) == BACKGROUND:
        value = before(value)
    if kind(value) == RESIZE:
        value = before(value)
    elif excess and kind(value) == SUB_PIXEL:
        large, value = value, before(value)
        steps = shape(large)[2] // shape(value)[2]
    return value, Tail((shape(value)[2], shape(value)[3]), steps, excess)


def drop_tail(core: Any) -> tuple[str, Tail]:
    """Name of the logits of an onnx.ModelProto; its nodes after them are removed."""
    import onnx
    from onnx import helper, numpy_helper

    made = {name: node for node in core.graph.node for name in node.output}
    constants = {c.name: numpy_helper.to_array(c) for c in core.graph.initializer}
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
              for v in (*onnx.shape_inference.infer_shapes(core).graph.value_info, *core.graph.output)}

    def kind(name: str) -> str:
        node = made[name]
        options = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Pad" and options.get("mode", b"constant") == b"constant" and len(node.input) < 4:
            pads, fill = (constants.get(i) if i else 0 for i in (*node.input[1:], "")[:2])
            return BACKGROUND * adds_background(pads, fill)
        if node.op_type == "DepthToSpace":
            return SUB_PIXEL * (options.get("mode") == b"CRD")
        half_pixel = options.get("coordinate_transformation_mode", b"half_pixel") == b"half_pixel"
        return RESIZE * (node.op_type == "Resize" and options.get("mode") == b"linear" and half_pixel
                         and not options.get("antialias")
                         and whole_steps(shapes.get(node.input[0], ()), shapes.get(name, ())))

    last = core.graph.output[0].name
    name, tail = before_tail(last, kind, lambda n: made[n].input[0], lambda n: shapes[n])
    while last != name:
        core.graph.node.remove(made[last])
        last = made[last].input[0]
    return name, tail


def before_tail_ir(core: Any) -> tuple[Any, Tail]:
    """The logits of an OpenVINO model as one of its outputs."""

    def kind(value: Any) -> str:
        node = value.get_node()
        options = node.get_attributes()
        if node.get_type_name() == "Pad" and options["pad_mode"] == "constant":
            begin, end, *fill = (constant(node.input_value(i)) for i in range(1, node.get_input_size()))
            known = begin is not None and end is not None
            return BACKGROUND * (known and adds_background(np.concatenate([begin, end]), fill[0] if fill else 0))
        if node.get_type_name() == "DepthToSpace":
            return SUB_PIXEL * (options["mode"] == "depth_first")
        return RESIZE * (node.get_type_name() == "Interpolate" and options["mode"] in ("linear", "linear_onnx")
                         and options["coordinate_transformation_mode"] == "half_pixel" and not options["antialias"]
                         and not any((*options["pads_begin"], *options["pads_end"]))
                         and whole_steps(tuple(node.input_value(0).shape), tuple(value.shape)))

    return before_tail(core.get_results()[0].input_value(0), kind, lambda v: v.get_node().input_value(0),
                       lambda v: tuple(v.shape))


def constant(value: Any) -> np.ndarray | None:
    """The numbers of an output of an OpenVINO node, if they are constant."""
    node = value.get_node()
    return node.data if node.get_type_name() == "Constant" else None


def adds_background(pads: Any, fill: Any) -> bool:
    """Whether a Pad by `pads` (all begins, then all ends) puts one channel of zeros before those of [1, C, h, w]."""
    return pads is not None and fill is not None and np.ravel(pads).tolist() == [0, 1, *[0] * 6] and not np.any(fill)


def whole_steps(small: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """[1, C, h, w] grows to [1, C, a*h, b*w] (torch and ONNX then mean the same positions)."""
    return len(small) == 4 and min(small) > 0 and small[:2] == full[:2] and not (full[2] % small[2]
                                                                                 or full[3] % small[3])
