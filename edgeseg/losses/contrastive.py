"""Feature distillation: a student's embeddings brought near a teacher's.

Supervised InfoNCE: an anchor i (student) and the teacher's keys, classes c from the label map, s = cosine / tau:

    L = mean over i, mean over p with c_p = c_i of  -log( e^s_ip / (e^s_ip + sum over n with c_n != c_i of e^s_in) )

InfoNCE (van den Oord, Li and Vinyals 2018) with one positive at a time and every key of another class as a negative, as
in contrast between pixels (Wang et al. 2021). Anchors are held against the teacher's keys alone: to hold the student
against itself needs no teacher, and what it gained would not be distilled.

Instance InfoNCE: one vector an image; the positive is the teacher's vector of the same image, the negatives are those
of the other images of the batch. No label enters. Two slices of one patient are negatives of each other.

MSE: the student's map against the teacher's, each channel of which is standardised (mean 0, deviation 1 over the
batch), so that a weight means the same for every teacher.

The functions keep the precision that they are given.
"""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from edgeseg.labels import IGNORE

ANCHORS = 256
"""Pixels sampled from a batch, for anchors and for keys. The similarities are 256 x 256: 256 KiB in float32. (With
512 the terms at three scales took 22 ms a step, forward and back.)"""


def draw_pixels(classes: torch.Tensor, generator: torch.Generator, most: int = ANCHORS) -> torch.Tensor:
    """At most `most` different pixels of a batch of class maps [B, h, w], none of them IGNORE: flat places of
    B x h x w, int64 [n].

    Pixels fall into groups: of each class those at a border and those inside. Each group is as likely as any other to
    give the next pixel, until it is empty: half of what is drawn of a class lies at its border, where segmentation goes
    wrong, and a small structure gives as many as the background. (Weighted sampling without replacement: the largest of
    log weight + Gumbel noise, Efraimidis and Spirakis 2006.)

    Args:
        generator: on the device of `classes`; all randomness comes from it.
    """
    group = (2 * classes.to(torch.uint8).int() + at_border(classes)).flatten()
    unknown = 2 * IGNORE
    count = torch.bincount(group, minlength=unknown + 1)
    # in logarithms: weight 1 / count, Gumbel noise -log(E) with E = -log(U) exponential
    weight = -count.float().log()
    weight[unknown] = -torch.inf
    uniform = torch.rand(len(group), device=classes.device, generator=generator).clamp_min_(1e-12)
    known = len(group) - int(count[unknown])
    return (weight.index_select(0, group) - uniform.log_().neg_().log_()).topk(min(most, known)).indices


def at_border(classes: torch.Tensor) -> torch.Tensor:
    """bool [B, h, w]: a known pixel with another class (not IGNORE) among its eight neighbours."""
    classes = classes.to(torch.uint8)
    unknown = classes == IGNORE
    highest = of_neighbours(torch.maximum, classes.masked_fill(unknown, 0))
    lowest = of_neighbours(torch.minimum, classes)  # IGNORE is above every class
    return ~unknown & (highest != lowest)


def of_neighbours(op: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """`op` over each pixel of [B, h, w] and its eight neighbours. (A max-pooling takes several times as long.)"""
    for dim in (1, 2):
        n = x.shape[dim]
        after = torch.cat([x.narrow(dim, 1, n - 1), x.narrow(dim, n - 1, 1)], dim)
        before = torch.cat([x.narrow(dim, 0, 1), x.narrow(dim, 0, n - 1)], dim)
        x = op(op(x, after), before)
    return x


def classes_at(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Class indices [B, H, W] -> [B, h, w]: of each cell the class of the pixel at its centre. (By majority, thin
    structures would be lost on a coarse map.)"""
    if tuple(labels.shape[-2:]) == size:
        return labels
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0].to(labels.dtype)


def supervised_infonce(anchors: torch.Tensor, keys: torch.Tensor, classes: torch.Tensor, tau: float) -> torch.Tensor:
    """The first loss above -> scalar.

    Args:
        anchors, keys: the student's and the teacher's embeddings [n, D] of the same n pixels; both may have a gradient.
        classes: int [n].

    Without any negative (one class only, or no pixel at all) the result is 0 and so is its gradient: positives alone
    would be fulfilled by a constant embedding.
    """
    same = classes[:, None] == classes
    if not len(classes) or bool(same.all()):
        return 0 * (anchors.sum() + keys.sum())
    similarity = F.normalize(anchors) @ F.normalize(keys).T / tau
    negatives = similarity.masked_fill(same, -torch.inf).logsumexp(1, keepdim=True)
    terms = F.softplus(negatives - similarity).masked_fill(~same, 0)  # softplus(n - p) = -log(e^p / (e^p + e^n))
    return (terms.sum(1) / same.sum(1)).mean()


def instance_infonce(anchors: torch.Tensor, keys: torch.Tensor, tau: float) -> torch.Tensor:
    """Cross-entropy of cosine / tau on the diagonal: embeddings [B, D] of the same B images -> scalar. A batch of one
    has no negatives: 0, and so is its gradient."""
    similarity = F.normalize(anchors) @ F.normalize(keys).T / tau
    return F.cross_entropy(similarity, torch.arange(len(anchors), device=anchors.device))


def feature_mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean square difference of maps [B, C, h, w] -> scalar, the teacher's standardised, without gradient."""
    teacher = teacher.detach()
    std, mean = torch.std_mean(teacher, (0, 2, 3), correction=0, keepdim=True)
    return F.mse_loss(student, (teacher - mean) / (std + 1e-5))
