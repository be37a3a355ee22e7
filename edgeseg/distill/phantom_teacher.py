"""nnU-Net's own network class, narrow: the teacher of the built-in default, trained on the phantom at once."""

from typing import Any

import torch
from torch import nn

FEATURES = (12, 24, 48, 96, 96)
SIZE, SPACING = (192, 192), (1.5625, 1.5625)


class DeepSupervised(nn.Module):
    """nnU-Net's U-Net in the trainer's convention: a list without the lowest output in training (nnU-Net gives it
    weight 0), the full-resolution logits in evaluation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> Any:
        outputs = self.network(x)
        return outputs[:-1] if self.training else outputs[0]

