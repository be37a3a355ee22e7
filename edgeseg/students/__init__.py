"""Student networks: small torch modules, each with a frozen spec that fully describes it."""

from typing import Any

from torch import nn


def build_student(spec: dict[str, Any]) -> nn.Module:
    """A student with fresh weights from its stored spec.

    Raises:
        EdgesegError: an unknown family.
    """
    from edgeseg.errors import EdgesegError
    from edgeseg.students.mobilenetv2 import MobileNetV2Spec, MobileNetV2UNet

    if spec.get("family") != "mobilenetv2":
        raise EdgesegError(f"unknown student family {spec.get('family')!r}; known: mobilenetv2")
    return MobileNetV2UNet(MobileNetV2Spec.from_dict(spec))
