import numpy as np
import pytest

from edgeseg.measure.overlap import PUBLISHED_ECHO_THRESHOLD, above, dice


def test_a_stored_target_and_its_probability_give_one_mask():
    stored = np.arange(256, dtype=np.uint8)
    for threshold, first in ((PUBLISHED_ECHO_THRESHOLD, 81), (0.5, 128), (25 / 255, 26)):
        assert np.argmax(above(stored, threshold)) == first
        assert (above(stored / 255, threshold) == above(stored, threshold)).all()


def test_a_mask_is_its_own_whatever_the_threshold():
    mask = np.array([True, False])
    assert above(mask, 0.9) is mask


def test_nan_lies_below_every_threshold():
    assert not above(np.array([np.nan]), 0.0).any()


def test_dice_at_two_thresholds_is_dice_of_two_masks():
    soft, reference = np.array([90, 130, 10, 200], np.uint8), np.array([False, True, False, True])
    assert dice(above(soft), reference) == 1
    assert dice(above(soft, PUBLISHED_ECHO_THRESHOLD), reference) == pytest.approx(4 / 5)
