"""Layer-wise knowledge distillation (ISMRM 2024, abstract 2094).

    L = sum_i w_i ( (1 - W) L_hard(i) + W KL( softmax(z_teacher(i) / T) || softmax(z_student(i) / T) ) )

over the student's output layers i, highest resolution first. The abstract writes P/T, its text divides the logits by T:
logits it is. The KL is summed over classes and averaged over pixels and batch: a sum over pixels (`batchmean`) would
change the meaning of W and T with the image size. The abstract has no T^2 factor; it is a switch, off by default.
L_hard is the teacher's own loss: nnU-Net's soft Dice plus cross-entropy.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional as F

from edgeseg.labels import IGNORE


def layer_weights(layers: int) -> tuple[float, ...]:
    """nnU-Net's deep supervision weights 1, 1/2, 1/4, ... divided by their sum: 8/15, 4/15, 2/15, 1/15 for four."""
    raw = [2.0**-i for i in range(layers)]
    return tuple(w / sum(raw) for w in raw)


HardLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def kl_divergence(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """Mean over pixels of KL(softmax(teacher / T) || softmax(student / T)); logits [B, K, H, W] -> scalar."""
    log_p = F.log_softmax(teacher.float() / temperature, dim=1)
    log_q = F.log_softmax(student.float() / temperature, dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def layerwise_kl(
    student: Sequence[torch.Tensor],
    teacher: Sequence[torch.Tensor] | None,
    labels: torch.Tensor | None,
    hard_loss: HardLoss,
    kd_weight: float,
    temperature: float,
    weights: Sequence[float] | None = None,
    t_squared: bool = False,
) -> torch.Tensor:
    """The loss above.

    Args:
        student: logits [B, K, h_i, w_i] of each output layer, highest resolution first.
        teacher: logits of the same shapes, without gradient; not needed (and not looked at) for kd_weight 0.
        labels: class indices uint8/int64 [B, H, W] at the first layer's size, IGNORE where unknown; brought to scale i
            by nearest neighbour. Not needed for kd_weight 1.
        hard_loss: (logits [B, K, h, w], labels int64 [B, 1, h, w]) -> scalar.
        kd_weight: W in 0..1. temperature: T > 0. weights: w_i, default `layer_weights`.
    """
    factor = temperature**2 if t_squared else 1.0
    total = student[0].new_zeros((), dtype=torch.float32)
    for i, (logits, weight) in enumerate(zip(student, weights or layer_weights(len(student)), strict=True)):
        layer = torch.zeros_like(total)
        if kd_weight < 1:
            if labels is None:
                raise ValueError("labels are needed unless kd_weight is 1")
            layer = layer + (1 - kd_weight) * hard_loss(logits.float(), labels_at(labels, logits.shape[-2:]))
        if kd_weight > 0:
            if teacher is None:
                raise ValueError("teacher logits are needed unless kd_weight is 0")
            layer = layer + kd_weight * factor * kl_divergence(teacher[i].detach(), logits, temperature)
        total = total + weight * layer
    return total


def labels_at(labels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Class indices [B, H, W] -> int64 [B, 1, h, w] by nearest neighbour."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels[:, None].long()
    return F.interpolate(labels[:, None].float(), size=tuple(size), mode="nearest").long()


def teacher_at(outputs: Sequence[torch.Tensor], sizes: Sequence[Sequence[int]], own_layers: bool) -> list[torch.Tensor]:
    """The teacher's logits P(i) for each student layer size: both readings of the abstract.

    Args:
        outputs: the teacher's logits, highest resolution first; further outputs are its deep supervision.
        sizes: (h, w) of each student layer.
        own_layers: take the teacher's own output of the same size where it has one (P(i) of the formula); otherwise,
            and always when False, its full-resolution output brought to that size (Fig. 1: "the output of the
            teacher"): class probabilities averaged over the pixels that fall together, returned as logarithms.
    """
    own = {tuple(o.shape[-2:]): o for o in outputs} if own_layers else {}
    full = outputs[0]
    result = []
    for size in sizes:
        h, w = size
        if (h, w) in own:
            result.append(own[h, w])
        elif (h, w) == tuple(full.shape[-2:]):
            result.append(full)
        else:
            mean = F.adaptive_avg_pool2d(full.float().softmax(dim=1), (h, w))
            result.append(mean.clamp_min(1e-8).log())
    return result


def nnunet_hard_loss(batch_dice: bool = True) -> HardLoss:
    """nnU-Net's own loss for exclusive classes: cross-entropy + soft Dice without background, IGNORE masked."""
    from edgeseg.torchvision_ops import import_torchvision

    import_torchvision()
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    return DC_and_CE_loss(options, {}, ignore_label=IGNORE, dice_class=MemoryEfficientSoftDiceLoss)
