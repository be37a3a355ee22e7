from dataclasses import replace

import numpy as np
import pytest
from heart_curves import FRAME_TIME, clip

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.measure.sampling_rate import at_positions, native_curve, positions_at, sampling_rates


def heart(name: str, lengths) -> Case:
    """A clip in which the brightness of each frame is the area: known before anything measures it."""
    curve, truth = clip(lengths)
    frames = np.repeat(curve[:, None], 16, axis=1).reshape(-1, 1, 4, 4)
    return Case(name, name, frames, (1.0, 1.0), axis="time", frame_time=FRAME_TIME,
                provenance={"echo": {"ed": list(truth.ed), "es": list(truth.es)}, "kept": 1})


def brightness(case: Case) -> np.ndarray:
    return case.frames.mean(axis=(1, 2, 3))


CASES = [heart("a", [45, 50, 42]), heart("b", [38, 60, 44])]


def test_rows_are_in_native_frames_and_grow_with_the_stride():
    rows = sampling_rates(CASES, brightness, every=(1, 4, 8), fps=(25.0,))
    assert [row.name for row in rows] == ["every 1", "every 4", "every 8", "25 fps"]
    assert [row.fps for row in rows] == pytest.approx([50, 12.5, 6.25, 25])
    native, _, eighth, half = rows
    assert native.mean.frames.value <= 2
    assert eighth.mean.frames.value > 2 * native.mean.frames.value
    assert half.mean.ms.value == pytest.approx(20 * half.mean.frames.value)
    assert native.free["ES"].f1.value == native.free["ED"].f1.value == 1
    assert half.free["ES"].f1.value == 1


def test_the_mean_of_ed_and_es_holds_all_events_of_a_clip():
    row, = sampling_rates(CASES[:1], brightness, every=(3,))
    ed, es = row.published["ED"].frames.value, row.published["ES"].frames.value
    assert row.mean.frames.value == pytest.approx((4 * ed + 3 * es) / 7)


def test_every_second_frame_is_half_the_rate():
    rows = sampling_rates(CASES, brightness, every=(2,), fps=(25.0,))
    assert rows[0].published == rows[1].published


def test_the_network_sees_the_kept_frames_and_their_time_alone():
    seen = []

    def area(case: Case) -> np.ndarray:
        seen.append(case)
        return brightness(case)

    sampling_rates(CASES[:1], area, every=(3,))
    assert seen[0].frame_time == pytest.approx(0.06)
    assert (seen[0].frames == CASES[0].frames[::3]).all()
    assert seen[0].provenance == {"kept": 1}  # events in native frames would be wrong now
    assert len(CASES[0].frames) > 100


def test_labels_are_kept_with_their_frames():
    from edgeseg.labels import LabelScheme

    labels = np.arange(len(CASES[0].frames), dtype=np.uint8)[:, None, None] % 2 * np.ones((4, 4), np.uint8)
    labelled = replace(CASES[0], labels=labels, scheme=LabelScheme(("background", "LV")))
    assert (at_positions(labelled, np.array([1, 24]), 0.1).labels == labels[[1, 24]]).all()


def test_positions_at_a_target_rate_are_the_nearest_frames():
    assert positions_at(11, 50, 25).tolist() == [0, 2, 4, 6, 8, 10]
    assert positions_at(10, 50, 30).tolist() == [0, 2, 3, 5, 7, 8]
    assert positions_at(4, 50, 100).tolist() == [0, 0, 1, 2, 2, 2, 3]


def test_an_area_curve_comes_back_to_native_frames():
    assert native_curve(np.array([0.0, 6.0, 3.0]), np.array([0, 3, 6]), 8).tolist() == [0, 2, 4, 6, 5, 4, 3, 3]
    assert native_curve(np.array([1.0, 3.0, 5.0]), np.array([0, 0, 1]), 2).tolist() == [2, 5]


def test_a_lost_frame_stays_lost():
    back = native_curve(np.array([1.0, np.nan, 3.0, 3.0]), np.array([0, 2, 4, 6]), 7)
    assert np.isnan(back[1:4]).all()
    assert back[4:].tolist() == [3, 3, 3]


def test_clips_without_known_events_are_left_out_and_none_at_all_is_an_error():
    unknown = replace(CASES[0], provenance={})
    assert sampling_rates([unknown, CASES[1]], brightness, every=(1,))[0].mean.frames.n == 1
    with pytest.raises(EdgesegError, match="no clip here has known ED or ES"):
        sampling_rates([unknown], brightness)


def test_a_curve_of_another_length_is_refused():
    with pytest.raises(EdgesegError, match="frames gave areas of shape"):
        sampling_rates(CASES, lambda case: brightness(case)[1:])
