"""The student that becomes the core graph: BatchNorm folded, and the logits that every file is held against."""

import copy
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import nn


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


def torch_logits(model: "nn.Module", inputs: np.ndarray) -> np.ndarray:
    """Logits float32 [n, K, H, W] of the student as it was trained (nothing folded) for inputs [n, C, H, W]; those of a
    recurrent one are the frames of one clip, which it computes as a whole."""
    import torch

    from edgeseg.students import frame_by_frame, is_recurrent

    with torch.inference_mode():
        if is_recurrent(model):
            return frame_by_frame(model, torch.from_numpy(inputs)).numpy()
        return np.concatenate([model(torch.from_numpy(x[None])).numpy() for x in inputs])
