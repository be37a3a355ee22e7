"""Overlap of two masks: Dice, intersection over union, recall, precision. Plain counts over all pixels given.

`Counts`, int64 [..., 3], are |pred and ref|, |pred|, |ref| in pixels; those of several cases may be added up.
"""

import numpy as np

from edgeseg.labels import IGNORE

PUBLISHED_ECHO_THRESHOLD = 80 / 255
"""EchoDFKD scores Dice, IoU and EF of the pixels beyond this probability (and its area curves from 25/255 on)."""


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a and b| / (|a| + |b|) of two bool arrays of one shape, 0..1; 1.0 when both are empty (they agree)."""
    common, in_a, in_b = counts(a, b)
    return 2 * common / (in_a + in_b) if in_a + in_b else 1.0


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """|a and b| / |a or b| of two bool arrays of one shape, 0..1; 1.0 when both are empty."""
    common, in_a, in_b = counts(a, b)
    union = in_a + in_b - common
    return common / union if union else 1.0


def recall(pred: np.ndarray, ref: np.ndarray) -> float:
    """Share of `ref` that `pred` holds (sensitivity), 0..1; 1.0 when `ref` is empty: there was nothing to find."""
    common, _, in_ref = counts(pred, ref)
    return common / in_ref if in_ref else 1.0


def precision(pred: np.ndarray, ref: np.ndarray) -> float:
    """Share of `pred` that lies in `ref`, 0..1; 1.0 when `pred` is empty: nothing wrong was claimed."""
    common, in_pred, _ = counts(pred, ref)
    return common / in_pred if in_pred else 1.0


def dice_per_class(pred: np.ndarray, ref: np.ndarray, num_classes: int, ignore: int = IGNORE) -> np.ndarray:
    """Dice of classes 1..num_classes-1 of two integer label arrays of one shape: float64 [num_classes - 1].

    Pixels where `ref` is `ignore` are left out. A class in neither array has Dice 1.0, as in `dice`.
    """
    common, in_pred, in_ref = counts_per_class(pred, ref, num_classes, ignore).T
    total = in_pred + in_ref
    return np.where(total > 0, 2 * common / np.maximum(total, 1), 1.0)


def counts_per_class(pred: np.ndarray, ref: np.ndarray, num_classes: int, ignore: int = IGNORE) -> np.ndarray:
    """`Counts` of classes 1..num_classes-1 of two integer label arrays of one shape: int64 [num_classes - 1, 3].

    Pixels where `ref` is `ignore` are left out.
    """
    if pred.shape != ref.shape:
        raise ValueError(f"label maps of shapes {pred.shape} and {ref.shape} cannot be compared")
    kept = ref != ignore
    p, r = pred[kept], ref[kept]
    found = [np.bincount(x, minlength=num_classes)[1:num_classes] for x in (p[p == r], p, r)]
    return np.stack(found, axis=1)


def scores(counted: np.ndarray) -> dict[str, np.ndarray]:
    """Dice, IoU, recall and precision of `Counts` [..., 3], each float64 [...]; 1.0 where there is nothing to divide
    by, as in `dice`, `iou`, `recall` and `precision`."""
    common, in_pred, in_ref = np.moveaxis(np.asarray(counted), -1, 0)

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.where(whole > 0, part / np.maximum(whole, 1), 1.0)

    return {"dice": share(2 * common, in_pred + in_ref), "iou": share(common, in_pred + in_ref - common),
            "recall": share(common, in_ref), "precision": share(common, in_pred)}


def micro(counted: np.ndarray) -> dict[str, np.ndarray]:
    """`scores` of the pooled pixels of all cases, of `Counts` [cases, ..., 3]: a large case weighs more, and a case
    without the structure only counts by what was claimed in it."""
    return scores(np.asarray(counted).sum(axis=0))


def macro(counted: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over cases of each case's `scores`, of `Counts` [cases, ..., 3]: every case weighs the same."""
    return {name: values.mean(axis=0) for name, values in scores(counted).items()}


def above(soft: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """Bool mask of the pixels beyond `threshold` (0..1), of a bool mask itself.

    Args:
        soft: bool, probabilities (floats 0..1, NaN lies below every threshold), or uint8 = 255 x probability.
        threshold: 0.5 here and in EchoNet-Dynamic (logit > 0); `PUBLISHED_ECHO_THRESHOLD` for EchoDFKD's figures.
    """
    if soft.dtype == bool:
        return soft
    return soft > (255 * threshold if soft.dtype == np.uint8 else threshold)


def counts(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int]:
    """(|a and b|, |a|, |b|) of two bool arrays of one shape."""
    if a.shape != b.shape:
        raise ValueError(f"masks of shapes {a.shape} and {b.shape} cannot be compared")
    a, b = a.astype(bool, copy=False), b.astype(bool, copy=False)
    return int(np.count_nonzero(a & b)), int(np.count_nonzero(a)), int(np.count_nonzero(b))
