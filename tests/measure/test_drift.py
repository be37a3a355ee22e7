"""Drift of INT8 over a stream: the formula by hand, and what it must and must not see."""

import numpy as np
import pytest

from edgeseg.labels import IGNORE
from edgeseg.measure.drift import FRAMES, LIMIT, drift, frame_dice, there_and_back

STEADY = np.full(FRAMES, 0.9)


def test_drift_is_the_loss_of_the_last_twenty_frames_beyond_that_of_the_first():
    int8 = STEADY.copy()
    int8[:20] -= 0.01
    int8[100:120] = 0  # in between does not count
    int8[180:] -= 0.04
    found = drift([int8, STEADY], [STEADY, STEADY])
    assert found.value == pytest.approx(-0.03 / 2)
    assert found.n == 2
    assert found.value < LIMIT


def test_an_error_that_is_there_from_the_first_frame_is_no_drift():
    assert drift([STEADY - 0.2], [STEADY]).value == pytest.approx(0)


def test_what_fp32_loses_too_is_no_drift():
    tired = np.linspace(0.9, 0.5, FRAMES)
    assert drift([tired - 0.001], [tired]).value == pytest.approx(0)


def test_an_error_that_grows_by_a_ten_thousandth_a_frame_is_refused():
    assert drift([STEADY - 1e-4 * np.arange(FRAMES)], [STEADY]).value == pytest.approx(-0.018)


def test_frames_without_labels_and_clips_without_any_at_one_end_are_left_out():
    sparse, empty = STEADY.copy(), STEADY.copy()
    sparse[5:195], sparse[195:] = np.nan, 0.8
    empty[180:] = np.nan
    found = drift([sparse, empty], [STEADY, STEADY])
    assert (found.n, found.value) == (1, pytest.approx(-0.1))


def test_a_short_stream_is_refused():
    with pytest.raises(ValueError, match="200 frames, not 50"):
        drift([STEADY[:50]], [STEADY[:50]])


@pytest.mark.parametrize("frames", [1, 2, 7, 199, 200, 300])
def test_there_and_back_never_jumps_and_leaves_no_frame_out(frames):
    order = there_and_back(frames)
    assert len(order) == FRAMES
    assert order[0] == 0
    assert set(np.abs(np.diff(order))) <= ({0} if frames == 1 else {1})
    assert set(order) == set(range(min(frames, FRAMES)))


def test_dice_of_a_frame_is_the_mean_over_classes_and_nan_where_nobody_labelled():
    truth = np.array([[[1, 1, 2, 0]], [[IGNORE] * 4]], np.uint8)
    predicted = np.array([[[1, 0, 2, 0]], [[1, 1, 1, 1]]], np.uint8)
    found = frame_dice(predicted, truth, 3)
    assert found[0] == pytest.approx((2 / 3 + 1) / 2)
    assert np.isnan(found[1])
