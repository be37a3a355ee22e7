"""Overlapping regions (nnU-Net's sigmoid heads) as exclusive classes.

nnU-Net paints regions one over the other, in `regions_class_order`: a pixel belongs to the last region that claims it.
With independent claims of probability p_k, that is region k with p_k * prod_{j>k} (1 - p_j), and background with
prod_j (1 - p_j); the K + 1 numbers sum to one. nnU-Net's own label map asks p_k > 0.5 instead, so that its label and
the most probable exclusive class differ where several claims are weak.
"""

import numpy as np
import torch
from torch.nn.functional import logsigmoid


def exclusive_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Region logits [B, K, ...] -> log-probabilities [B, K + 1, ...] of background and K exclusive classes."""
    yes, no = logsigmoid(logits), logsigmoid(-logits)
    nobody_after = no.flip(1).cumsum(1).flip(1)  # of k: sum over j >= k
    later = torch.cat([nobody_after[:, 1:], torch.zeros_like(no[:, :1])], 1)
    return torch.cat([nobody_after[:, :1], yes + later], 1)


def exclusive_probabilities(claims: np.ndarray) -> np.ndarray:
    """Region probabilities float32 [K, ...] -> float32 [K + 1, ...] of background and K exclusive classes."""
    nobody_after = np.cumprod((1 - claims)[::-1], axis=0)[::-1]
    later = np.concatenate([nobody_after[1:], np.ones_like(claims[:1])])
    return np.concatenate([nobody_after[:1], claims * later]).astype(np.float32)
