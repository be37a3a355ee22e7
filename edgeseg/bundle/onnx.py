"""The core graph: a student as one static ONNX file, the source of truth for everything else in a bundle."""

import copy
import logging
import warnings
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn

OPSET = 18
INPUT, OUTPUT = "image", "logits"


def fold_batch_norm(model: "nn.Module") -> "nn.Module":
    """A copy in evaluation mode in which every BatchNorm that follows a convolution is part of its weights."""
    from torch import nn
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model = copy.deepcopy(model).eval()
    for block in model.modules():
        if not isinstance(block, nn.Sequential):
            continue
        for k, (layer, following) in enumerate(pairwise(list(block))):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                block[k], block[k + 1] = fuse_conv_bn_eval(layer, following), nn.Identity()
    return model


def write_core(model: "nn.Module", shape: tuple[int, int, int, int], out: Path) -> None:
    """Write `model` (weights folded) as ONNX: `image` float32 `shape` -> `logits` float32 [1, K, H, W].

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
    out.write_bytes(proto.SerializeToString(deterministic=True))


def clear_traces(proto: Any) -> None:
    """Remove metadata, doc strings and the producer from every part of an ONNX protobuf message."""
    for field, value in proto.ListFields():
        if field.name in ("metadata_props", "doc_string", "producer_name", "producer_version"):
            proto.ClearField(field.name)
        elif field.message_type is not None:
            for part in value if field.is_repeated else (value,):
                clear_traces(part)


def torch_logits(model: "nn.Module", inputs: np.ndarray) -> np.ndarray:
    """Logits float32 [n, K, H, W] of the student as it was trained (nothing folded) for inputs [n, C, H, W]."""
    import torch

    with torch.inference_mode():
        return np.concatenate([model(torch.from_numpy(x[None])).numpy() for x in inputs])
