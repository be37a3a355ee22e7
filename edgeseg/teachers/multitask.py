"""Multi-task teachers (a U-Net or a transformer U-Net that also reconstructs its image), in a folder of their own:

    teacher.json           version, network (kind, channels, classes, width, size), label scheme, preprocessing, channel
                           names, data, and what its training measured
    teacher.safetensors    weights of the best epoch on dev, both decoders; absent until the training is finished

`edgeseg train-teacher multitask` writes it.
"""

import copy
import json
from dataclasses import asdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.geometry import resize_linear
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.teachers.checkpoint import sha256
from edgeseg.teachers.multitask_unet import STRIDE, MultiTaskUNet, TransformerUNet
from edgeseg.teachers.nnunet import TTA, native_bf16

VERSION = 1
RECORD, WEIGHTS = "teacher.json", "teacher.safetensors"
BATCH = 8
"""Windows a pass of `predict`."""


def build_network(kind: str, channels: int, classes: int, width: int, size: tuple[int, int]) -> MultiTaskUNet:
    """A network with fresh weights; `kind` is "multitask" (U-Net) or "transformer"."""
    if kind == "transformer":
        return TransformerUNet(channels, classes, width, size)
    if kind == "multitask":
        return MultiTaskUNet(channels, classes, width)
    raise EdgesegError(f"network {kind!r} is not known: multitask or transformer")


def write_record(folder: Path, kind: str, width: int, scheme: LabelScheme, preprocessing: Preprocessing, name: str,
                 training: dict[str, Any], mirror_axes: tuple[int, ...] = (0, 1)) -> None:
    """Write teacher.json. `name`: of the data set (never a path); `training`: what is known of it, any JSON;
    `mirror_axes`: that it was trained with."""
    channels = len(preprocessing.channels)
    network = {"kind": kind, "channels": channels, "classes": len(scheme.names), "width": width,
               "size": preprocessing.size}
    record = {"version": VERSION, "network": network, "scheme": asdict(scheme), "preprocessing": asdict(preprocessing),
              "channels": [f"channel {i}" for i in range(channels)], "data": name, "mirror_axes": mirror_axes,
              "training": training}
    write_text(folder / RECORD, json.dumps(record, indent=1) + "\n")


def read_record(folder: Path) -> dict[str, Any]:
    """teacher.json.

    Raises:
        EdgesegError: no such folder, another kind of folder, damaged, or of a newer version.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text("utf-8"))
        newer = record["version"] > VERSION
    except (FileNotFoundError, NotADirectoryError):
        raise EdgesegError(f"{folder}: not the folder of a multi-task teacher (no {RECORD}): `edgeseg train-teacher "
                           f"multitask --out {folder}` makes one") from None
    except (ValueError, KeyError, TypeError):
        raise EdgesegError(f"{path}: not a readable record of a multi-task teacher: copy it again") from None
    if newer:
        raise EdgesegError(f"{path}: version {record['version']} is newer than this edgeseg reads: update it")
    return record


def folded(network: MultiTaskUNet) -> MultiTaskUNet:
    """`network`, in evaluation mode, with each BatchNorm in the convolution before it: the same functions at the same
    module paths, faster. In place."""
    for block in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for k, (layer, norm) in enumerate(pairwise(list(block))):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                block[k], block[k + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()
    return network


class MultiTaskTeacher:
    """A trained multi-task network; attributes as of `NnUNetTeacher`.

    `running` is the network that `logits` runs: features are read there, by the paths of `multitask_unet`.
    """

    predict_only, ignore = False, None
    stride = (STRIDE, STRIDE)

    def __init__(self, folder: Path, record: dict[str, Any], network: MultiTaskUNet,
                 device: str | torch.device = "cpu", bf16: bool | None = None) -> None:
        self.device = torch.device(device)
        self.bf16 = native_bf16(self.device) if bf16 is None else bf16
        parameters = {name: p.numel() for name, p in network.named_parameters()}
        self.running: nn.Module = folded(network.eval().requires_grad_(False)).to(
            self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.scheme = LabelScheme(tuple(record["scheme"]["names"]), tuple(record["scheme"]["values"]))
        self.channels: tuple[str, ...] = tuple(record["channels"])
        grid = record["preprocessing"]
        self.preprocessing = Preprocessing(
            tuple(grid["size"]), tuple(grid["spacing"]), tuple(Normalisation(**c) for c in grid["channels"]),
            grid["overlap"], grid["window"])
        self.mirror_axes: tuple[int, ...] = tuple(record["mirror_axes"])
        self.name: str = folder.resolve().name
        self.provenance: dict[str, Any] = {
            "folder": self.name, "dataset": record["data"], "folds": [], "network": record["network"],
            "parameters": sum(parameters.values()),
            "segmentation_parameters": sum(n for k, n in parameters.items() if not k.startswith("reconstruction")),
            "dev_dice": record["training"]["dev"]["dice"], "sha256": {WEIGHTS: sha256(folder / WEIGHTS)}}

    @classmethod
    def open(cls, folder: Path, device: str | torch.device = "cpu", bf16: bool | None = None,
             **_: Any) -> "MultiTaskTeacher":
        """Read a folder that `edgeseg train-teacher` wrote.

        Args:
            bf16: run in bfloat16; None = where the processor has it natively.

        Raises:
            EdgesegError: no such folder, an unfinished training, or files that are damaged or do not belong together.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        record, weights = read_record(folder), folder / WEIGHTS
        if not weights.is_file():
            raise EdgesegError(f"{folder}: its training is not finished (no {WEIGHTS}): the same `edgeseg "
                               "train-teacher` command with --resume goes on")
        try:
            values = record["network"]
            network = build_network(values["kind"], values["channels"], values["classes"], values["width"],
                                    tuple(values["size"]))
            network.load_state_dict(load_file(weights))
            return cls(folder, record, network, device, bf16)
        except SafetensorError:
            raise EdgesegError(f"{weights}: not a readable safetensors file: copy it again") from None
        except RuntimeError:
            raise EdgesegError(f"{weights}: not the weights of the network that {RECORD} names: the files belong to "
                               "different teachers") from None
        except (KeyError, TypeError, IndexError):
            raise EdgesegError(f"{folder / RECORD}: not a readable record of a multi-task teacher: copy it again"
                               ) from None

    def logits(self, x: torch.Tensor) -> list[torch.Tensor]:
        """[B, C, H, W] at the teacher's spacing, normalised -> one float32 [B, K, H, W]. No gradient."""
        x = x.to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return [self.running(x).float()]

    def predict(self, case: Case, tta: TTA = "mirror") -> tuple[np.ndarray, np.ndarray]:
        """Class indices uint8 [N, H, W] and probabilities float32 [N, K, H, W] in the native grid.

        Windows of the fixed grid (one or tiles, as training found), each averaged over its mirror images (`tta`
        "mirror"; along the axes that its training mirrored) and, with "mirror+rotate", over those of the four
        right-angle rotations.
        """
        if case.frames.shape[1] != len(self.channels):
            raise EdgesegError(f"{case.source or case.id}: {case.frames.shape[1]} channels, but the teacher "
                               f"{self.name} wants {len(self.channels)}")
        along = () if tta == "none" else self.mirror_axes
        flips = [tuple(a - 2 for a in axes) for n in range(len(along) + 1) for axes in combinations(along, n)]
        views = [(turns, axes) for turns in range(4 if tta == "mirror+rotate" else 1) for axes in flips]

        def net(windows: np.ndarray) -> np.ndarray:
            x, total = torch.from_numpy(windows), torch.zeros(())
            for turns, axes in views:
                seen = self.logits(torch.rot90(x, turns, (-2, -1)).flip(axes))[0].softmax(1)
                total = total + torch.rot90(seen.flip(axes), -turns, (-2, -1)).cpu()
            return (total / len(views)).numpy()

        canvas = self.preprocessing.to_canvas(case.frames, case.spacing)
        p = resize_linear(self.preprocessing.canvas_logits(canvas, net, BATCH), case.frames.shape[-2:])
        p[:, 0] += 1 - p.sum(1)  # nothing was predicted outside a centred window: background
        return p.argmax(1).astype(np.uint8), p

    def network(self) -> nn.Module:
        """A copy on the CPU, for export: [B, C, H, W] -> logits [B, K, H, W]."""
        return copy.deepcopy(self.running).cpu()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (1, len(self.channels), *self.preprocessing.size)
