"""The ONNX nodes around the core network in a frame graph: from raw pixels to its input, from its logits to labels.

They compute what `preprocess.Preprocessing.segment` computes on one frame. Resampling is not `Resize`: for planar
images of one to four channels OpenVINO takes about 5 ns a pixel and channel for it (four channels to 256x216: 1.1 ms,
with ArgMax 2.1 ms). Gathering whole rows of memory for the two neighbours along one axis and weighting them, then along
the other, is the same formula in both runtimes, and crops, pads and leaves out what the window does not reach for free:
that is only which rows are gathered, and weights of 0. So is a sub-pixel head (`frame_tail.py`), and the classes come
apart by it. Rows become columns by one order of axes only, that OpenVINO is four times as fast with as with any other.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeseg.bundle.frame_tail import Tail
from edgeseg.manifest import FrameProtocol
from edgeseg.preprocess import Normalisation, Preprocessing

FRAME, IMAGE, FLOOR, LABELS = "frame", "image", "floor", "labels"
LARGEST = np.float32(3e38)


@dataclass
class Nodes:
    """ONNX nodes under construction; every name starts with `prefix`."""

    prefix: str
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def constant(self, values: Any, dtype: type = np.float32) -> str:
        from onnx import numpy_helper

        name = f"{self.prefix}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node with one output; `inputs` and the result are names."""
        return self.split(kind, *inputs, outs=[out or f"{self.prefix}{kind}{len(self.nodes)}"], **attributes)[0]

    def split(self, kind: str, *inputs: str, outs: list[str], **attributes: Any) -> list[str]:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outs, name=outs[0], **attributes))
        return outs

    def reduce(self, kind: str, x: str, axes: tuple[int, ...]) -> str:
        return self.op(kind, x, self.constant(axes, np.int64), keepdims=1)

    def reshape(self, x: str, shape: tuple[int, ...], out: str | None = None) -> str:
        """0 keeps that side: written so, a graph may be given several frames at once (`runtime.throughput`)."""
        return self.op("Reshape", x, self.constant(shape, np.int64), out=out)

    def turn(self, x: str, out: str | None = None) -> str:
        """[1, a, b, c] -> [1, c, a, b]. Of a 110k-value transpose: OpenVINO 0.16 ns a value, 0.7 by another order."""
        return self.op("Transpose", x, perm=[0, 3, 1, 2], out=out)

    def channels(self, x: str, count: int) -> list[str]:
        if count == 1:
            return [x]
        base = f"{self.prefix}Split{len(self.nodes)}"
        return self.split("Split", x, self.constant([1] * count, np.int64), outs=[f"{base}.{k}" for k in range(count)],
                          axis=1)

    def weighted(self, x: str, axis: int, terms: list[tuple[np.ndarray, np.ndarray]]) -> str:
        """The sum over pairs (index, weight) of what is gathered along `axis` times its weight, which is broadcast."""
        total = ""
        for index, weight in terms:
            term = self.op("Gather", x, self.constant(index, np.int64), axis=axis)
            term = term if (weight == 1).all() else self.op("Mul", term, self.constant(weight))
            total = self.op("Add", total, term) if total else term
        return total


def taps(weights: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """A banded matrix [m, n] as pairs (column index [m], weight [m]): row i is the sum of weight[i] * x[index[i]]."""
    used = weights != 0
    first = np.where(used.any(axis=1), used.argmax(axis=1), 0)
    last = np.where(used.any(axis=1), weights.shape[1] - 1 - used[:, ::-1].argmax(axis=1), 0)
    count = int((last - first).max()) + 1
    first = np.minimum(first, weights.shape[1] - count)
    rows = np.arange(len(weights))
    return [(first + t, weights[rows, first + t]) for t in range(count)]


def add_forward(g: Nodes, protocol: FrameProtocol, preprocessing: Preprocessing, rows: np.ndarray, cols: np.ndarray,
                image: str) -> str:
    """FRAME [1, C, H, W] -> `image` float32 [1, C, gh, gw]; returns the name of the floor of `add_labels`.

    `rows` [gh, H] and `cols` [gw, W] resample and cut the window; outside the frame they are 0, as the padding is.
    """
    from onnx import TensorProto

    x = g.op("Cast", FRAME, to=TensorProto.FLOAT)
    high, low = g.reduce("ReduceMax", x, (1, 2, 3)), g.reduce("ReduceMin", x, (1, 2, 3))
    # A frame without contrast has no structure: no class then rises above the floor.
    floor = g.op("Where", g.op("Greater", high, low), g.constant([[[[0]]]]), g.constant([[[[LARGEST]]]]), out=FLOOR)
    box = None
    if any(n.kind in ("zscore", "rescale") for n in preprocessing.channels):
        size, ones = x if protocol.dtype.startswith("u") else g.op("Abs", x), np.ones((1, 1, 1, protocol.size[0]))
        sums = g.reduce("ReduceSum", size, (1, 3)), g.op("MatMul", g.constant(ones), size)
        if len(preprocessing.channels) > 1:
            sums = sums[0], g.reduce("ReduceSum", sums[1], (1,))
        box = span(g, g.reshape(sums[0], (0, 1, 1, -1)), 3), span(g, g.reshape(sums[1], (0, 1, -1, 1)), 2)
    largest = g.op("Max", high, g.op("Neg", low)) if protocol.dtype == "float32" else None
    parts = [normalised(g, part, n, box, largest)
             for part, n in zip(g.channels(x, len(preprocessing.channels)), preprocessing.channels, strict=True)]
    x = g.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    x = g.turn(g.weighted(x, 2, [(at, weight[:, None]) for at, weight in taps(rows)]))
    x = g.turn(g.weighted(x, 1, [(at, weight[:, None, None]) for at, weight in taps(cols)]))  # [1, gh, gw, C]
    if len(parts) > 1:
        g.turn(x, out=image)
    else:
        g.reshape(x, (0, 1, len(rows), len(cols)), out=image)
    return floor


def span(g: Nodes, sums: str, axis: int) -> str:
    """1.0 from the first to the last of `sums` above 0 along `axis`, else 0.0."""
    from onnx import TensorProto

    hit, at = g.op("Cast", g.op("Greater", sums, g.constant(0)), to=TensorProto.FLOAT), g.constant(axis, np.int64)
    inside = g.op("Mul", g.op("CumSum", hit, at), g.op("CumSum", hit, at, reverse=1))
    return g.op("Cast", g.op("Greater", inside, g.constant(0)), to=TensorProto.FLOAT)


def normalised(g: Nodes, x: str, n: Normalisation, box: tuple[str, str] | None, largest: str | None) -> str:
    """One channel as `Normalisation.apply`; `box`: row [1, 1, 1, H] and column [1, 1, W, 1] masks."""
    if n.kind == "ct":
        clipped = g.op("Min", g.op("Max", x, g.constant(n.low)), g.constant(n.high))
        return g.op("Div", g.op("Sub", clipped, g.constant(n.mean)), g.constant(max(n.std, 1e-8)))
    if n.kind == "rgb":
        return g.op("Div", x, g.constant(255))
    if n.kind == "none":
        return x
    assert box is not None
    return rescaled(g, x, box) if n.kind == "rescale" else z_scored(g, x, box, largest)


def z_scored(g: Nodes, x: str, box: tuple[str, str], largest: str | None) -> str:
    """(x - mean) / max(std, 1e-8) with the statistics of the box.

    float32 sums over a frame lose digits: what the mean misses is found in the pixels that it was taken from, among
    which the squares are summed too. Float frames are first divided by their `largest` magnitude, or squares of what is
    finite would overflow.
    """
    least = g.constant([[[[1e-8]]]])
    if largest is not None:
        scale = g.op("Max", largest, g.constant(1e-30))
        x, least = g.op("Div", x, scale), g.op("Div", least, scale)
    rows, cols = box
    count = g.op("Mul", g.reduce("ReduceSum", rows, (3,)), g.reduce("ReduceSum", cols, (2,)))
    share = g.op("Div", g.constant(1), g.op("Max", count, g.constant(1)))

    def mean(values: str) -> str:
        return g.op("Mul", g.op("MatMul", g.op("MatMul", rows, values), cols), share)

    x = g.op("Sub", x, g.op("Mul", g.reduce("ReduceSum", x, (2, 3)), share))  # outside the box all is 0
    missed = mean(x)
    variance = g.op("Sub", mean(g.op("Mul", x, x)), g.op("Mul", missed, missed))
    std = g.op("Sqrt", g.op("Max", variance, g.constant(0)))
    return g.op("Div", g.op("Sub", x, missed), g.op("Max", std, least))


def rescaled(g: Nodes, x: str, box: tuple[str, str]) -> str:
    """To 0..1 by the minimum and maximum inside the box."""
    rows, cols = g.reshape(box[0], (0, 1, -1, 1)), g.reshape(box[1], (0, 1, 1, -1))
    inside = g.op("Greater", g.op("Mul", rows, cols), g.constant(0))
    high = g.reduce("ReduceMax", g.op("Where", inside, x, g.constant(-LARGEST)), (2, 3))
    low = g.reduce("ReduceMin", g.op("Where", inside, x, g.constant(LARGEST)), (2, 3))
    low = g.op("Min", low, high)  # an empty box has them the wrong way round
    return g.op("Div", g.op("Sub", x, low), g.op("Max", g.op("Sub", high, low), g.constant(1e-8)))


def add_backward(g: Nodes, protocol: FrameProtocol, logits: str, tail: Tail, floor: str, rows: np.ndarray,
                 cols: np.ndarray, values: tuple[int, ...]) -> None:
    """Logits float32 [1, C, h, w] of `tail` -> LABELS uint8 [1, H, W].

    `rows` [H, h * steps] and `cols` [W, w * steps] take the logits of a class to the native grid; 0 where the window
    does not reach, and all-zero rows are not computed at all.
    """
    (top, bottom), (left, right) = (reach(np.any(weights, axis=1)) for weights in (rows, cols))
    (h, w), steps, classes = tail.size, tail.steps, len(values) - 1
    if not tail.excess:  # the background's logits are subtracted: one channel less, and zeros outside stay ties
        first, others = (g.op("Slice", logits, *(g.constant([v], np.int64) for v in ends))
                         for ends in ((0, 1, 1), (1, classes + 1, 1)))
        logits = g.op("Sub", others, first)
    step = np.arange(steps)
    channel = (np.arange(classes)[:, None] * steps + step) * steps  # [class, row step], of column step 0
    # OpenVINO computes with the channels last: this order costs nothing there, the other way 0.1 ms
    x = g.reshape(g.op("Transpose", logits, perm=[0, 2, 3, 1]), (0, 1, h, w * channel.size * steps))
    x = g.reshape(g.turn(x), (0, w * channel.size * steps, h))
    x = g.weighted(x, 1, [(((at // steps) * channel.size * steps + at % steps)[:, None] + channel.ravel(),
                           weight[:, None, None]) for at, weight in taps(cols[left:right])])
    x = g.reshape(x, (0, 1, right - left, channel.size * h))  # a line for each column: class, row step, row
    x = g.turn(x)
    x = add_labels(g, [g.weighted(x, 1, [((k * steps + at % steps) * h + at // steps, weight[:, None, None])
                                         for at, weight in taps(rows[top:bottom])]) for k in range(classes)],
                   floor, values)  # [1, bottom - top, 1, right - left]
    height, width = protocol.size
    if (top, bottom, left, right) != (0, height, 0, width):
        pads = g.constant([0, top, 0, left, 0, height - bottom, 0, width - right], np.int64)
        x = g.op("Pad", x, pads, g.constant(values[0], np.uint8))
    g.reshape(x, (0, height, width), out=LABELS)


def add_labels(g: Nodes, excess: list[str], floor: str, values: tuple[int, ...]) -> str:
    """Arg-max as a chain of comparisons that both runtimes fuse: uint8 label values of what exceeds the background
    most; as with argmax the first of equals wins."""
    from onnx import TensorProto

    best, label = floor, g.constant(values[0])
    for x, value in zip(excess, values[1:], strict=True):
        label = g.op("Where", g.op("Greater", x, best), g.constant(value), label)
        best = g.op("Max", best, x)
    g.nodes.pop()  # the last maximum is of no use
    return g.op("Cast", label, to=TensorProto.UINT8)


def reach(used: np.ndarray) -> tuple[int, int]:
    """First and one past the last True."""
    at = np.flatnonzero(used)
    return int(at[0]), int(at[-1]) + 1
