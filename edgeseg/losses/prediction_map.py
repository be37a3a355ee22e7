"""Prediction-map distillation: the KL divergence between softened predictions (Hinton, Vinyals and Dean 2015).

    L = T^2 mean over pixels of KL( softmax(z_teacher / T) || softmax(z_student / T) )

A soft-max over a single channel is 1 everywhere, whatever the network says, and such a loss is identically zero. One
logit z is therefore taken as the two classes [0, z], of which the soft-max is the sigmoid of z.
"""

import torch
from torch.nn import functional as F

from edgeseg.losses.layerwise_kl import kl_divergence


def prediction_map(teacher: torch.Tensor, student: torch.Tensor, temperature: float = 4.0,
                   t_squared: bool = True) -> torch.Tensor:
    """The loss above of logits [B, K, H, W] -> scalar. K is 1 (one logit) or a number of exclusive classes, and may be
    1 on one side and 2 on the other. The teacher gets no gradient.

    Args:
        temperature: T > 0. t_squared: the factor T^2, which keeps the size of the gradient when T grows.
    """
    factor = temperature**2 if t_squared else 1.0
    return factor * kl_divergence(two_class(teacher.detach()), two_class(student), temperature)


def two_class(logits: torch.Tensor) -> torch.Tensor:
    """[B, 1, H, W] -> [B, 2, H, W], a background logit of 0 in front; more channels are left as they are."""
    return F.pad(logits, (0, 0, 0, 0, 1, 0)) if logits.shape[1] == 1 else logits
