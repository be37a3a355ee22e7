"""Student networks: small torch modules, each with a frozen spec that fully describes it."""

from typing import Any

import torch
from torch import nn


def build_student(spec: dict[str, Any]) -> nn.Module:
    """A student with fresh weights from its stored spec.

    Raises:
        EdgesegError: an unknown family, an unknown field or a member that does not exist.
    """
    from edgeseg.errors import EdgesegError
    from edgeseg.students.convlstm import ConvLSTM, ConvLSTMSpec
    from edgeseg.students.dense import DenseSpec, DenseUNet
    from edgeseg.students.mobilenetv2 import MobileNetV2Spec, MobileNetV2UNet
    from edgeseg.students.unet import UNet, UNetSpec

    families: dict[str, tuple[Any, Any]] = {"mobilenetv2": (MobileNetV2Spec, MobileNetV2UNet),
                                            "dense": (DenseSpec, DenseUNet),
                                            "convlstm": (ConvLSTMSpec, ConvLSTM),
                                            "unet": (UNetSpec, UNet)}
    if (family := spec.get("family")) not in families:
        raise EdgesegError(f"unknown student family {family!r}; known: {', '.join(families)}")
    spec_class, network = families[family]
    try:
        return network(spec_class.from_dict(spec))
    except TypeError as error:  # a field that it does not have, or a value of another type
        raise EdgesegError(f"{family} student: {error}; its spec is {spec_class()}") from None


def is_recurrent(network: nn.Module) -> bool:
    """Whether it takes clips [B, T, C, H, W]; a network without a spec (a teacher in training) takes images."""
    return bool(getattr(getattr(network, "spec", None), "recurrent", False))


def frame_by_frame(network: nn.Module, frames: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> what `network` gives for each, [N, K, H, W]; a recurrent one reads them as one clip."""
    return network(frames[None])[0] if is_recurrent(network) else network(frames)
