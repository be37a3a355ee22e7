from itertools import pairwise

import numpy as np
import pytest
from heart_curves import FRAME_TIME, clip, off

from edgeseg.measure.afd import ClipCurve, free_running
from edgeseg.measure.phases import (
    NETWORK_DELAY_S,
    PUBLISHED_AREA_THRESHOLD,
    Phases,
    area_curve,
    find_phases,
    nearest,
    network_phases,
    published_estimate,
    published_phases,
    runs_below_median,
    true_phases,
)
from edgeseg.readers import open_data


def test_all_beats_are_found_with_their_valve_plateaus():
    curve, truth = clip([45, 50, 42])
    found = find_phases(curve, FRAME_TIME)
    assert off(found.ed, truth.ed) <= 1
    assert off(found.es, truth.es) <= 1


def test_noise_moves_no_event_by_more_than_two_frames():
    rng = np.random.default_rng(0)
    for _ in range(20):
        curve, truth = clip([45, 50, 42], kick=0.3)
        found = find_phases(curve * (1 + 0.01 * rng.standard_normal(len(curve))), FRAME_TIME)
        assert off(found.es, truth.es) <= 2
        assert off(found.ed, truth.ed) <= 2


def test_without_an_atrial_kick_noise_moves_ed_less_than_it_moves_the_largest_frame():
    rng, ours, largest = np.random.default_rng(0), [], []
    for _ in range(20):
        curve, truth = clip([60, 60, 60], kick=0.0, first=40)
        noise = np.convolve(rng.standard_normal(len(curve) + 8), np.ones(9) / 3, "valid")  # slow, as networks err
        noisy = curve * (1 + 0.01 * noise)
        found = find_phases(noisy, FRAME_TIME).ed
        assert len(found) == len(truth.ed)
        ours += [abs(a - b) for a, b in zip(found, truth.ed, strict=True)]
        largest += [abs(published_estimate(noisy, r, "ED") - r) for r in truth.ed]
    assert 1.5 * np.mean(ours) < np.mean(largest)


def test_of_a_flat_diastasis_the_end_is_ed_even_when_noise_has_its_peak_before():
    curve, truth = clip([60, 60], kick=0.0, first=40, last=25)
    curve[truth.ed[1] - 16] += 6  # a pixel or two in the middle of the plateau
    lowest = published_estimate(curve, truth.ed[1], "ED")
    assert abs(lowest - truth.ed[1]) > 10
    assert off(find_phases(curve, FRAME_TIME).ed, truth.ed) <= 2


def test_drift_changes_no_event():
    curve, truth = clip([45, 50, 42])
    drifting = curve * np.linspace(0.8, 1.2, len(curve))
    found = find_phases(drifting, FRAME_TIME)
    assert off(found.ed, truth.ed) <= 1
    assert off(found.es, truth.es) <= 1


def test_an_irregular_heart_keeps_every_beat():
    curve, truth = clip([34, 70, 38, 55, 32])
    found = find_phases(curve, FRAME_TIME)
    assert off(found.ed, truth.ed) <= 2
    assert off(found.es, truth.es) <= 1


def test_ed_and_es_come_in_turn_whatever_the_noise():
    rng = np.random.default_rng(1)
    for _ in range(30):
        curve, _ = clip([40, 45, 50])
        found = find_phases(curve * (1 + 0.08 * rng.standard_normal(len(curve))), FRAME_TIME)
        kinds = [kind for _, kind in sorted([(t, "ED") for t in found.ed] + [(t, "ES") for t in found.es])]
        assert all(a != b for a, b in pairwise(kinds))


def test_without_the_valve_lag_the_events_come_later_and_no_others():
    curve, _ = clip([45, 50, 42])
    valve, extreme = find_phases(curve, FRAME_TIME), find_phases(curve, FRAME_TIME, valves=False)
    assert all(1 <= b - a <= 2 for a, b in zip(valve.ed + valve.es, extreme.ed + extreme.es, strict=True))


def test_a_networks_events_come_earlier_by_its_delay_and_extremes_do_not():
    curve, _ = clip([45, 50, 42])
    at = {d: find_phases(curve, FRAME_TIME, delay=d) for d in (0.0, 2 * FRAME_TIME)}
    assert [a - b for a, b in zip(at[0.0].ed + at[0.0].es, at[2 * FRAME_TIME].ed + at[2 * FRAME_TIME].es,
                                  strict=True)] == [2] * 7
    assert network_phases(curve, FRAME_TIME) == find_phases(curve, FRAME_TIME, delay=NETWORK_DELAY_S)
    extremes = [find_phases(curve, FRAME_TIME, valves=False, delay=d) for d in (0.0, 1.0)]
    assert extremes[0] == extremes[1]


def test_ed_hangs_on_the_steep_fall_and_not_on_the_flat_top():
    """A top whose height is noise: its largest frame lies anywhere in it, the fall after it does not."""
    rng, off_top, ours = np.random.default_rng(3), [], []
    for _ in range(20):
        curve, truth = clip([60, 60, 60], kick=0.0, first=40)
        noisy = curve * (1 + 0.01 * np.convolve(rng.standard_normal(len(curve) + 8), np.ones(9) / 3, "valid"))
        found, largest = find_phases(noisy, FRAME_TIME).ed, find_phases(noisy, FRAME_TIME, valves=False).ed
        ours += [a - b for a, b in zip(found, truth.ed, strict=True)]
        off_top += [a - b for a, b in zip(largest, truth.ed, strict=True)]
    assert 1.5 * np.std(ours) < np.std(off_top)


@pytest.mark.parametrize("rate", ["45-55", "70-80", "115-125", "165-180"])
def test_systole_shortens_with_the_heart_rate_and_no_event_moves(rate):
    cases = list(open_data(f"phantom:echo?n=3&domain=other&seed=5&hr={rate}"))
    found = free_running([ClipCurve(c.id, area_curve(c.labels == 1), true_phases(c), c.frame_time) for c in cases])
    for score in found.values():
        assert score.false == 0
        assert score.missed <= 2
        assert score.difference.frames.value <= 1


@pytest.mark.parametrize("shown", range(7, 16))
def test_of_a_systole_that_is_not_shown_to_its_end_ed_is_the_top(shown):
    curve, truth = clip([45, 50, 42])
    cut = find_phases(curve[: truth.ed[2] + shown], FRAME_TIME)
    assert off(cut.ed, truth.ed[:3]) <= 2


def test_a_single_beat_is_one_ed_and_one_es():
    curve, truth = clip([50])
    found = find_phases(curve[: truth.ed[1] - 15], FRAME_TIME)
    assert off(found.ed, truth.ed[:1]) <= 1
    assert off(found.es, truth.es) <= 1


def test_an_event_at_the_very_end_is_left_out_until_the_curve_was_seen_to_turn():
    curve, truth = clip([45, 45])
    last = truth.ed[2]
    assert find_phases(curve[: last + 1], FRAME_TIME).ed[-1] < last - 40
    assert abs(find_phases(curve[: last + 8], FRAME_TIME).ed[-1] - last) <= 2


@pytest.mark.parametrize("curve", [
    np.full(150, 1500.0), np.linspace(1000, 1500, 150), np.zeros(150), np.full(150, np.nan), np.empty(0), np.ones(1),
    np.array([1.0, 5.0])], ids=["constant", "drift", "empty masks", "NaN", "no frame", "one frame", "two frames"])
def test_a_clip_that_does_not_beat_has_no_events(curve):
    assert find_phases(curve, FRAME_TIME) == Phases()


def test_noise_alone_is_no_heart():
    rng = np.random.default_rng(2)
    for _ in range(30):
        assert find_phases(1500 * (1 + 0.02 * rng.standard_normal(150)), FRAME_TIME) == Phases()


def test_lost_frames_are_bridged():
    curve, truth = clip([45, 50, 42])
    holed = curve.copy()
    holed[[5, 30, 31, 90]] = np.nan
    holed[[50, 51, 100, truth.ed[2] - 1]] = 0  # empty masks
    found = find_phases(holed, FRAME_TIME)
    assert off(found.ed, truth.ed) <= 1
    assert off(found.es, truth.es) <= 1


def test_a_clip_with_half_of_its_frames_lost_has_no_events():
    curve, _ = clip([45, 50, 42])
    curve[: len(curve) // 2 + 2] = 0
    assert find_phases(curve, FRAME_TIME) == Phases()


def test_a_spike_of_two_frames_is_no_event():
    curve, truth = clip([45, 50, 42])
    spiked = curve.copy()
    spiked[50:52] = 300
    assert off(find_phases(spiked, FRAME_TIME).es, truth.es) <= 1


def test_events_do_not_depend_on_the_unit_of_the_area():
    curve, _ = clip([45, 50, 42])
    assert find_phases(curve / 321.0, FRAME_TIME) == find_phases(curve, FRAME_TIME)


@pytest.mark.parametrize("step", [1, 2])
def test_half_the_frame_rate_finds_the_same_moments(step):
    curve, truth = clip([45, 50, 42])
    found = find_phases(curve[::step], FRAME_TIME * step)
    assert off([step * t for t in found.ed], truth.ed) <= 2
    assert off([step * t for t in found.es], truth.es) <= 2


def test_the_published_rule_takes_the_extreme_of_the_run_around_the_reference():
    curve = np.array([5, 5, 1, 0, 2, 5, 5, 5, 3, 2, 2, 5, 5.0])  # median 3: runs 2-4 and 9-10
    assert published_estimate(curve, 4, "ES") == 3
    assert published_estimate(curve, 11, "ES") == 9  # the first of equals
    assert published_estimate(-curve, 4, "ED") == 3


def test_published_runs_lie_strictly_below_the_median():
    curve = np.array([3, 3, 3, 1, 3, 4, 4.0])
    assert published_phases(curve).es == (3,)
    assert published_phases(curve).ed == (5,)


def test_the_published_rule_keeps_to_the_run_that_holds_the_reference_however_far_its_ends_are():
    wide = np.full(100, 10.0)
    wide[20:60], wide[40], wide[61:64] = 5.0, 4.0, 3.0  # a neighbour starts a frame after the run ends
    assert published_estimate(wide, 58, "ES") == 40
    rng = np.random.default_rng(3)
    for _ in range(50):  # a neighbour's ends lie beyond the run's own, so it cannot be nearer
        signal = rng.integers(0, 9, 40).astype(float)
        for start, stop in runs_below_median(signal):
            assert all(start <= published_estimate(signal, r, "ES") < stop for r in range(start, stop))


def test_the_published_rule_takes_the_nearer_end_when_no_run_holds_the_reference():
    curve = np.full(60, 10.0)
    curve[5:25], curve[6], curve[30:36], curve[33] = 5.0, 4.0, 5.0, 4.5
    assert published_estimate(curve, 26, "ES") == 6  # nearer to the end of the long run, whose extreme is 20 frames off
    assert published_estimate(curve, 28, "ES") == 33


def test_where_drift_joins_beats_the_published_rule_answers_with_another_one():
    curve, truth = clip([45, 45, 45])
    drifting = curve + np.linspace(0, 3000, len(curve))
    assert published_estimate(drifting, truth.ed[2], "ED") - truth.ed[2] > 40
    assert abs(published_estimate(curve, truth.ed[2], "ED") - truth.ed[2]) <= 3


@pytest.mark.parametrize("curve", [np.full(9, 4.0), np.full(9, np.nan), np.empty(0)])
def test_the_published_rule_knows_no_event_of_a_flat_clip(curve):
    assert published_estimate(curve, 3, "ES") is None
    assert published_phases(curve) == Phases()


def test_a_nan_frame_is_in_no_published_run():
    curve = np.array([5, 1, np.nan, 0, 5, 5, 5.0])
    assert published_phases(curve).es == (1, 3)


def test_areas_are_counted_beyond_a_threshold_of_probability():
    soft = np.zeros((3, 4, 4), np.uint8)
    soft[0, 0] = (25, 26, 127, 128)
    assert area_curve(soft, PUBLISHED_AREA_THRESHOLD).tolist() == [3, 0, 0]
    assert area_curve(soft).tolist() == [1, 0, 0]
    assert area_curve(soft / np.float32(255)).tolist() == [1, 0, 0]
    assert area_curve(soft > 0).tolist() == [4, 0, 0]


def test_a_frame_with_a_nan_has_no_area():
    soft = np.ones((2, 3, 3), np.float32)
    soft[1, 2, 2] = np.nan
    assert area_curve(soft).tolist() == pytest.approx([9, np.nan], nan_ok=True)


def test_the_nearest_event_is_the_earlier_of_two():
    assert nearest((10, 20), 15) == 10
    assert nearest((10, 20), 16) == 20
    assert nearest((), 16) is None


def test_the_truth_of_a_clip_comes_from_its_provenance():
    from edgeseg.case import Case

    frames = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    known = Case("a", "a", frames, (1, 1), axis="time", provenance={"echo": {"ed": [9, 3], "es": [5], "ef": 55.0}})
    assert true_phases(known) == Phases((3, 9), (5,))
    assert true_phases(Case("a", "a", frames, (1, 1), axis="time")) == Phases()
