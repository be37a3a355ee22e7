import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeseg.measure.overlap import dice, dice_per_class, iou, precision, recall

A = np.array([[1, 1, 0], [1, 0, 0]], bool)
B = np.array([[1, 0, 0], [1, 1, 1]], bool)
EMPTY = np.zeros((2, 3), bool)


def test_values_computed_by_hand():
    assert dice(A, B) == pytest.approx(2 * 2 / (3 + 4))
    assert iou(A, B) == pytest.approx(2 / 5)
    assert recall(A, B) == pytest.approx(2 / 4)
    assert precision(A, B) == pytest.approx(2 / 3)


def test_two_empty_masks_agree_and_one_empty_mask_does_not():
    assert dice(EMPTY, EMPTY) == iou(EMPTY, EMPTY) == recall(EMPTY, EMPTY) == precision(EMPTY, EMPTY) == 1.0
    assert dice(EMPTY, B) == dice(A, EMPTY) == iou(EMPTY, B) == recall(EMPTY, B) == precision(A, EMPTY) == 0.0


def test_masks_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        dice(A, B[:1])


LABELS = arrays(np.uint8, (2, 4, 5), elements=st.integers(0, 3))


@given(LABELS, LABELS)
def test_dice_per_class_is_dice_of_each_mask(pred, ref):
    expected = [dice(pred == k, ref == k) for k in (1, 2, 3)]
    np.testing.assert_allclose(dice_per_class(pred, ref, 4), expected)


def test_ignored_pixels_count_for_nobody():
    ref = np.array([1, 1, 255, 255, 0], np.uint8)
    pred = np.array([1, 0, 1, 2, 0], np.uint8)
    np.testing.assert_allclose(dice_per_class(pred, ref, 3), [2 / 3, 1.0])


def test_a_class_above_the_last_one_changes_nothing():
    np.testing.assert_allclose(dice_per_class(np.array([1, 7]), np.array([1, 1]), 2), [2 / 3])
