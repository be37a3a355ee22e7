"""A torch network as one static ONNX file that says nothing about the machine that wrote it."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

OPSET = 18
INPUT, OUTPUT = "image", "logits"
STEP_INPUT, STEP_OUTPUT, NEXT = "x", "y", "_next"
"""Of one step of a recurrent network, beside its states and, with NEXT behind their names, the next ones."""


def write_onnx(model: "nn.Module", shape: tuple[int, ...], out: Path,
               states: dict[str, tuple[int, ...]] | None = None) -> None:
    """Write `model` as ONNX: `image` float32 `shape` -> `logits` float32, written beside and renamed.

    With `states` (name -> shape) the model takes them after the image and gives (logits, states): inputs `x`, `h0`,
    `c0`, ..., outputs `y`, `h0_next`, `c0_next`, ... One file, opset 18, static shapes, no metadata: torch's exporter
    notes source paths and stack traces in every node.

    Raises:
        OSError: the disk is full.
    """
    import torch

    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside the exporter
            inputs, outputs = [STEP_INPUT if states else INPUT], [STEP_OUTPUT if states else OUTPUT]
            program = torch.onnx.export(model, tuple(torch.zeros(s) for s in (shape, *(states or {}).values())),
                                        dynamo=True, opset_version=OPSET, external_data=False, verbose=False,
                                        input_names=[*inputs, *(states or ())],
                                        output_names=[*outputs, *(name + NEXT for name in states or ())])
    finally:
        exporter.setLevel(level)
    assert program is not None  # torch returns None only for its old exporter
    proto = program.model_proto
    clear_traces(proto)
    beside = out.with_name(f".{out.name}.part")
    try:
        beside.write_bytes(proto.SerializeToString(deterministic=True))
        beside.replace(out)
    finally:
        beside.unlink(missing_ok=True)


def clear_traces(proto: Any) -> None:
    """Remove metadata, doc strings and the producer from every part of an ONNX protobuf message."""
    for field, value in proto.ListFields():
        if field.name in ("metadata_props", "doc_string", "producer_name", "producer_version"):
            proto.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                clear_traces(part)
