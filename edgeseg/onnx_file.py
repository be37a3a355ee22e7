"""A torch network as one static ONNX file that says nothing about the machine that wrote it."""

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

OPSET = 18
INPUT, OUTPUT = "image", "logits"


def write_onnx(model: "nn.Module", shape: tuple[int, ...], out: Path) -> None:
    """Write `model` as ONNX: `image` float32 `shape` -> `logits` float32, written beside and renamed.

    One file, opset 18, static shapes, no metadata: torch's exporter notes source paths and stack traces in every node.

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
            program = torch.onnx.export(model, (torch.zeros(shape),), dynamo=True, opset_version=OPSET,
                                        external_data=False, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
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
