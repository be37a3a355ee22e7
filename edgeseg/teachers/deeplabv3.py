"""DeepLabv3 as a teacher: torchvision's deeplabv3_resnet50 with one output, in EchoNet-Dynamic's checkpoint layout.

The checkpoint is a dictionary with `state_dict` (names with or without DataParallel's "module."), or a safetensors file
as `edgeseg train-teacher deeplabv3` writes it. One logit a pixel, positive inside the left ventricle: a background
logit of 0 in front of it makes two exclusive classes whose softmax is that sigmoid.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.teachers.checkpoint import load_checkpoint, sha256, strip_prefixes
from edgeseg.teachers.nnunet import native_bf16
from edgeseg.torchvision_ops import import_torchvision

SIZE = (112, 112)
MEAN = (32.085175, 32.591923, 33.37932)
STD = (50.129288, 50.487717, 51.34619)
"""Of the three (equal, grey) channels in 0..255, over 128 training clips of EchoNet-Dynamic: what its released weights
were trained with."""
GREY = Normalisation("ct", mean=float(np.mean(MEAN)), std=float(np.mean(STD)), low=0.0, high=255.0)
"""What a student sees: one grey channel, normalised by constants. A stream has no clip to take statistics of."""
SCHEME = LabelScheme(("background", "LV"))
BATCH = 20
"""Frames a pass: EchoNet-Dynamic's."""


class DeepLabV3(nn.Module):
    """Grey frames [B, 1, H, W] normalised by GREY -> logits [B, 2, H, W], the background's 0; a list of one in training
    mode, as every network that is trained here."""

    def __init__(self) -> None:
        super().__init__()
        import_torchvision()
        from torchvision.models.segmentation import deeplabv3_resnet50

        self.model = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=False)
        self.model.classifier[-1] = nn.Conv2d(256, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        rgb = (x * GREY.std + GREY.mean - mean) / std
        logits = F.pad(self.model(rgb)["out"], (0, 0, 0, 0, 1, 0))
        return [logits] if self.training else logits


class DeepLabV3Teacher:
    """A trained DeepLabv3; attributes as of `NnUNetTeacher`."""

    scheme, channels, ignore, predict_only = SCHEME, ("ultrasound",), None, False
    mirror_axes: tuple[int, ...] = ()
    """None: an apical view has its left ventricle on one side."""
    stride = (1, 1)
    preprocessing = Preprocessing(SIZE, (1.0, 1.0), (GREY,), window="centre")

    def __init__(self, network: DeepLabV3, provenance: dict[str, Any], device: str | torch.device = "cpu",
                 bf16: bool | None = None) -> None:
        self._network = network.eval().requires_grad_(False).to(device)
        self.device, self.name = torch.device(device), provenance["file"]
        self.bf16 = native_bf16(self.device) if bf16 is None else bf16
        self.provenance = provenance | {"precision": "bf16" if self.bf16 else "fp32"}  # stored targets do not mix them

    @classmethod
    def open(cls, path: Path, trust: bool = False, device: str | torch.device = "cpu", bf16: bool | None = None,
             **_: Any) -> "DeepLabV3Teacher":
        """Read a checkpoint (.pt, .pth, .safetensors).

        Args:
            bf16: run in bfloat16; None = where the processor has it natively (half the time).

        Raises:
            EdgesegError: missing, damaged, of another network, or with another number of classes.
        """
        network = DeepLabV3()
        state = strip_prefixes(read_state(path, trust))
        head = state.get("classifier.4.weight")
        if head is not None and head.shape[0] != 1:
            raise EdgesegError(f"{path}: {head.shape[0]} outputs; this teacher has one, the left ventricle")
        try:
            network.model.load_state_dict(state)
        except RuntimeError:
            raise EdgesegError(f"{path}: not the weights of a deeplabv3_resnet50 without auxiliary classifier"
                               ) from None
        provenance = {"file": path.name, "network": "deeplabv3_resnet50", "folds": [],
                      "parameters": sum(p.numel() for p in network.model.parameters()),
                      "sha256": {path.name: sha256(path)}}
        return cls(network, provenance, device, bf16)

    def logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[B, 1, H, W] normalised by GREY -> one float32 [B, 2, H, W]. No gradient."""
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return [self._network(x.to(self.device)).float()]

    def predict(self, case: Case, tta: str = "none") -> tuple[np.ndarray, np.ndarray]:
        """Class indices uint8 [N, H, W] and probabilities float32 [N, 2, H, W] in the native grid.

        Frames are brought to 112 x 112 pixels as EchoNet-Dynamic's are, whatever their spacing. `tta` is ignored: the
        published pipeline has none.
        """
        if case.frames.shape[1] != 1:
            raise EdgesegError(f"{case.source or case.id}: {case.frames.shape[1]} channels, DeepLabv3 wants one")
        frames = torch.from_numpy(GREY.apply(case.frames, np.ones(1, bool)))
        native = case.frames.shape[-2:]
        found = []
        for part in frames.split(BATCH):
            logit = self.logits(resized(part, SIZE))[0][:, 1:]
            found.append(resized(logit, native).sigmoid().cpu().numpy()[:, 0])
        p = np.concatenate(found)
        return (p > 0.5).astype(np.uint8), np.stack([1 - p, p], axis=1)

    @property
    def running(self) -> nn.Module:
        """The network as `logits` runs it, for forward hooks; module paths as in `network()`."""
        return self._network

    def network(self) -> nn.Module:
        """For export: [1, 1, 112, 112] normalised by GREY -> [1, 2, 112, 112]."""
        import copy

        return copy.deepcopy(self._network).cpu().eval()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, 1, *SIZE)


def resized(x: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return x if tuple(x.shape[-2:]) == tuple(size) else F.interpolate(x, size=size, mode="bilinear",
                                                                        align_corners=False, antialias=True)


def read_state(path: Path, trust: bool) -> dict[str, torch.Tensor]:
    """Parameters by name, of a checkpoint dictionary or a safetensors file."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        if not path.is_file():
            raise EdgesegError(f"{path}: no such checkpoint")
        try:
            return {k.removeprefix("model."): v for k, v in load_file(path).items()}
        except SafetensorError:
            raise EdgesegError(f"{path}: not a readable safetensors file: copy it again") from None
    content = load_checkpoint(path, trust)
    state = content.get("state_dict", content)
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise EdgesegError(f"{path}: holds no state_dict of a DeepLabv3")
    return state
