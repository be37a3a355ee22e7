import math

import numpy as np
import pytest
from heart_curves import FRAME_TIME, clip

from edgeseg.measure.afd import ClipCurve, conditioned, event_score, frame_difference, free_running, pair
from edgeseg.measure.phases import Phases, find_phases, published_phases


def known(name: str, lengths, shift: int = 0, frame_time: float = FRAME_TIME) -> ClipCurve:
    """A clip whose truth lies `shift` frames before what its curve shows."""
    curve, truth = clip(lengths)
    return ClipCurve(name, curve, Phases(tuple(t - shift for t in truth.ed), tuple(t - shift for t in truth.es)),
                     frame_time)


def blank(truth: Phases, frames: int = 100) -> ClipCurve:
    return ClipCurve("c", np.ones(frames), truth, 0.02)


def test_a_constant_delay_is_the_afd_and_the_bias():
    clips = [known(str(n), [40 + n, 50]) for n in range(4)]
    late = [known(str(n), [40 + n, 50], shift=5) for n in range(4)]
    for phase in ("ED", "ES"):
        at, behind = conditioned(clips)[phase], conditioned(late)[phase]
        assert behind.bias.value - at.bias.value == pytest.approx(5)
        assert behind.frames.value == pytest.approx(behind.bias.value)
        assert behind.ms.value == pytest.approx(20 * behind.frames.value)
        assert behind.missed == 0


def test_early_and_late_add_up_in_afd_and_cancel_in_the_bias():
    found = frame_difference([[3.0], [-3.0], [1.0, -5.0]], [0.02, 0.02, 0.04])
    assert found.frames.value == pytest.approx(3)
    assert found.bias.value == pytest.approx(-2 / 3)
    assert found.ms.value == pytest.approx((60 + 60 + 120) / 3)
    assert (found.sd_frames, found.frames.n) == (0, 3)
    assert found.sd_ms == pytest.approx(np.std([60, 60, 120], ddof=1))


def test_a_clip_counts_once_however_many_beats_it_has():
    assert frame_difference([[4.0] * 9, [0.0]], [0.02, 0.02]).frames.value == 2


def test_the_interval_is_by_clip():
    many = frame_difference([[1.0] * 50, [5.0] * 50], [0.02, 0.02])
    few = frame_difference([[1.0], [5.0]], [0.02, 0.02])
    assert (many.frames.low, many.frames.high) == (few.frames.low, few.frames.high) == (1, 5)


def test_an_event_without_an_estimate_is_missed_and_in_no_mean():
    flat = ClipCurve("flat", np.full(90, 1000.0), Phases((10, 50), (30,)), 0.02)
    found = conditioned([flat, known("a", [45, 50])])
    assert (found["ED"].missed, found["ES"].missed, found["ED"].frames.n) == (2, 1, 1)
    assert found["ED"].frames.value < 4
    alone = conditioned([flat], find_phases)["ES"]
    assert math.isnan(alone.frames.value)
    assert alone.missed == 1


def test_clips_without_truth_and_no_clips_give_no_number():
    for clips in ([], [blank(Phases())]):
        assert math.isnan(conditioned(clips)["ED"].frames.value)
        assert free_running(clips)["ED"].found == 0


def test_the_published_rule_with_a_reference_hides_the_false_events_that_it_makes_without_one():
    rng = np.random.default_rng(0)
    clips = [known(str(n), [45, 50, 42]) for n in range(6)]
    clips = [ClipCurve(c.clip, c.curve * (1 + 0.03 * rng.standard_normal(len(c.curve))), c.truth, c.frame_time)
             for c in clips]
    assert all(found.missed == 0 for found in conditioned(clips).values())
    free = free_running(clips, lambda curve, _: published_phases(curve))
    ours = free_running(clips)
    for phase in ("ED", "ES"):
        assert free[phase].precision < 0.7 < 0.8 < ours[phase].precision
        assert ours[phase].f1.value > free[phase].f1.value


def test_a_detector_that_finds_all_scores_one():
    clips = [known(str(n), [40 + n, 50, 44]) for n in range(5)]
    for score in free_running(clips).values():
        assert (score.precision, score.recall, score.f1.value, score.f1.low, score.f1.high) == (1, 1, 1, 1, 1)
        assert (score.missed, score.false) == (0, 0)
        assert score.difference.frames.value <= 1


def test_missed_and_false_events_are_counted_by_hand():
    clips = [blank(Phases(ed=(20, 50, 80)))]
    score = event_score(clips, [(21, 40, 53, 60)], "ED")  # 21 is found; 53 is 3 off; 40 and 60 are nowhere near
    assert (score.found, score.missed, score.false) == (1, 2, 3)
    assert score.precision == pytest.approx(1 / 4)
    assert score.recall == pytest.approx(1 / 3)
    assert score.f1.value == pytest.approx(2 / 7)
    assert score.difference.frames.value == pytest.approx((1 + 3) / 2)  # 80 has no partner within reach
    assert score.difference.missed == 1


@pytest.mark.parametrize(("distance", "found"), [(2, 1), (3, 0)])
def test_two_frames_off_is_found_and_three_are_not(distance, found):
    assert event_score([blank(Phases(es=(50,)))], [(50 + distance,)], "ES").found == found


def test_one_event_answers_for_one_true_event_only():
    score = event_score([blank(Phases(ed=(50, 52)))], [(51,)], "ED")
    assert (score.found, score.missed, score.false) == (1, 1, 0)
    double = event_score([blank(Phases(ed=(50,)))], [(49, 50, 51)], "ED")
    assert (double.found, double.missed, double.false) == (1, 0, 2)
    assert double.difference.frames.value == 0


def test_as_many_events_are_paired_as_can_be():
    assert pair((50, 48), (49, 51), 2) == {49: 48, 51: 50}
    assert pair((12, 9), (10, 14), 3) == {10: 9, 14: 12}  # 10-12 alone would leave 14 without a partner
    assert pair((), (10,), 3) == pair((10,), (), 3) == {}


def test_events_at_the_ends_that_nobody_can_see_count_for_nothing_but_found_ones_do():
    clips = [blank(Phases(ed=(1, 50, 99)))]
    unseen = event_score(clips, [(50,)], "ED")
    assert (unseen.found, unseen.missed, unseen.false, unseen.border) == (1, 0, 0, 2)
    claimed = event_score(clips, [(2, 50, 99)], "ED")
    assert (claimed.found, claimed.border) == (3, 0)
    inner = event_score([blank(Phases(ed=(3, 50)))], [(50, 96)], "ED")
    assert (inner.missed, inner.false, inner.border) == (1, 1, 0)


def test_nothing_to_find_and_nothing_claimed_is_no_error():
    score = event_score([blank(Phases())], [()], "ED")
    assert (score.precision, score.recall, score.f1.value) == (1, 1, 1)
    assert math.isnan(score.difference.frames.value)


def test_f1_is_pooled_over_events_and_its_interval_over_clips():
    good, bad = blank(Phases(ed=(20, 40, 60))), blank(Phases(ed=(50,)))
    score = event_score([good, bad], [(20, 40, 60), (30,)], "ED")
    assert score.f1.value == pytest.approx(6 / 8)
    assert (score.f1.low, score.f1.high, score.f1.n) == (0, 1, 2)


def test_a_later_frame_by_the_nearest_event_is_another_beat_when_its_own_was_missed():
    clips = [ClipCurve("a", np.ones(100), Phases(ed=(20, 60)), 0.02)]
    found = conditioned(clips, lambda *_: Phases(ed=(61,)))
    assert found["ED"].frames.value == pytest.approx((41 + 1) / 2)
