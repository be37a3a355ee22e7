"""Scores of an image-text judge: what it is shown, what its similarities become, and how its order is compared."""

import numpy as np
import pytest
from scipy import stats

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.measure.judge_score import (
    blacked_out,
    dilated,
    mask_score,
    rank_agreement,
    score_masks,
    spearman,
    valve_phases,
    valve_signal,
)
from edgeseg.measure.judged import known_ranking, spoiled
from edgeseg.phantoms.echo import SCHEME, echo_patient, truth
from edgeseg.phantoms.echo_domain import DOMAINS

RNG = np.random.default_rng(0)
CAVITY, WALL, AROUND = 20, 200, 60


def ventricle(frames: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Grey [T, 64, 64] with a ring of wall round a cavity, and the cavity."""
    y, x = np.mgrid[:64, :64]
    inside = np.stack([np.hypot((y - 32) / 1.4, x - 30) < 12 + t for t in range(frames)])
    ring = np.stack([np.hypot((y - 32) / 1.4, x - 30) < 22 + t for t in range(frames)]) & ~inside
    return np.where(inside, CAVITY, np.where(ring, WALL, AROUND)).astype(np.uint8), inside


def perfect(frames: np.ndarray) -> np.ndarray:
    """A judge that sees how many pixels of wall and cavity are left: similarities [T, 3] to WALL, LV, NOTHING."""
    original, _ = ventricle(len(frames))
    wall, lv = (((frames == grey).sum((1, 2)) / (original == grey).sum((1, 2))) for grey in (WALL, CAVITY))
    return np.stack([wall, lv, 1 - lv], axis=1)


def test_the_dilation_reaches_two_pixels_in_every_direction_of_the_same_frame():
    masks = np.zeros((2, 9, 9), bool)
    masks[0, 4, 4] = True
    grown = dilated(masks)
    assert grown[0].sum() == 25
    assert grown[0, 2:7, 2:7].all()
    assert not grown[1].any()


def test_the_dilated_mask_is_what_hides_the_ventricle_and_the_mask_itself_what_leaves_the_wall():
    """The published script computes the dilation and forgets it, and lets both pictures share their pixels."""
    frames, inside = ventricle()
    before, seen = frames.copy(), []

    def similarities(pictures):
        seen.append(pictures)
        return perfect(pictures)

    found = score_masks(similarities, frames, inside)
    masked, expanded = seen
    assert np.array_equal(masked == 0, inside)
    assert np.array_equal(expanded == 0, dilated(inside))
    assert (expanded == 0).sum() > (masked == 0).sum()
    assert np.array_equal(frames, before)
    assert not any(np.shares_memory(a, b) for a, b in ((masked, expanded), (masked, frames), (expanded, frames)))
    assert found.hidden == pytest.approx(1)
    assert found.wall == pytest.approx(1)


def test_outside_the_mask_every_pixel_stays():
    frames, inside = ventricle()
    black = blacked_out(frames, inside)
    assert black.dtype == frames.dtype
    assert np.array_equal(black[~inside], frames[~inside])
    assert not black[inside].any()


def test_a_score_is_the_mean_of_its_terms_over_the_frames():
    masked, expanded = RNG.normal(size=(2, 5, 3))
    found = mask_score(masked, expanded)
    assert found.hidden == pytest.approx(expanded[:, 2].mean() - expanded[:, 1].mean())
    assert found.score == pytest.approx(found.hidden + masked[:, 0].mean())


def test_a_stored_target_is_inside_above_127():
    frames, inside = ventricle()
    stored = np.where(inside, 128, 127).astype(np.uint8)
    assert score_masks(perfect, frames, stored) == score_masks(perfect, frames, inside)


def test_masks_of_another_shape_are_refused():
    frames, inside = ventricle()
    with pytest.raises(ValueError, match="do not fit"):
        score_masks(perfect, frames, inside[:1])


def test_neither_nothing_nor_everything_is_the_best_mask():
    frames, inside = ventricle()
    scores = {name: score_masks(perfect, frames, masks).score for name, masks in spoiled(inside).items()}
    assert max(scores, key=scores.get) == "true"
    assert scores["grown by 3"] > scores["grown by 6"] > scores["everything"]
    assert scores["eroded by 3"] > scores["eroded by 5"] > scores["eroded by 8"] > scores["empty"]
    assert scores["shifted by 3"] > scores["shifted by 6"] > scores["shifted by 10"]


def test_a_judge_is_believed_by_its_order_of_masks_whose_dice_is_known():
    frames, inside = ventricle()
    cases = [Case("a", "a", frames[:, None].astype(np.float32), (1.0, 1.0), "time", frame_time=0.02,
                  labels=inside.astype(np.uint8), scheme=SCHEME)]
    found, table = known_ranking(perfect, cases, every=1)
    assert found.value > 0.8
    assert table["true"][1] == 1
    assert table["empty"][1] == 0
    blind, _ = known_ranking(lambda pictures: np.zeros((len(pictures), 3)), cases, every=1)
    assert blind.value == 0
    with pytest.raises(EdgesegError, match="no labelled clip"):
        known_ranking(perfect, [])


@pytest.mark.parametrize("index", range(6))
def test_a_valve_that_is_seen_tells_ed_and_es(index):
    """From how far the phantom's valve is open, ED and ES of its volume come out within 3 frames, away
    from the ends of the clip. The published sign, CLOSED - OPEN, would swap them."""
    patient = echo_patient(index, 3, DOMAINS["other"])
    known = truth(patient)
    opening = np.array(known["mitral"])
    signal = valve_signal(np.stack([1 - opening, opening], axis=1) + 0.3)
    assert signal.mean() == pytest.approx(0, abs=1e-9)
    assert signal.std() == pytest.approx(1)
    assert np.corrcoef(signal, known["volume"])[0, 1] > 0.8
    found = valve_phases(signal, 1 / patient.fps)
    for events, true in ((found.ed, known["ed"]), (found.es, known["es"])):
        inner = [t for t in true if 8 <= t < patient.count - 8]
        assert inner
        assert all(min(abs(e - t) for e in events) <= 3 for t in inner)
        assert len(events) <= len(true) + 1


def test_what_a_judge_always_prefers_does_not_move_the_valve_signal():
    valve = RNG.normal(size=(80, 2))
    assert np.allclose(valve_signal(valve), valve_signal(valve + np.array([0.7, -0.2])))


def test_a_judge_that_sees_no_valve_sees_no_events():
    signal = valve_signal(np.full((90, 2), 0.25))
    assert not signal.any()
    assert valve_phases(signal, 0.02).ed == valve_phases(signal, 0.02).es == ()


@pytest.mark.parametrize("ties", [False, True])
def test_the_rank_correlation_is_spearmans(ties):
    a, b = (RNG.integers(0, 4 if ties else 10**6, (9, 20)).astype(float) for _ in range(2))
    wanted = [stats.spearmanr(a[:, i], b[:, i]).statistic for i in range(20)]
    assert np.allclose(spearman(a, b), wanted)


def test_members_in_the_same_order_agree_and_in_the_opposite_one_disagree():
    dice = np.linspace(0.7, 0.9, 8)[:, None] + RNG.normal(0, 0.001, (8, 12))
    same = rank_agreement(3 * dice - 7, dice)
    assert (same.value, same.low, same.n) == (pytest.approx(1), pytest.approx(1), 12)
    assert rank_agreement(-dice, dice).value == pytest.approx(-1)


def test_the_interval_is_wider_when_clips_disagree_on_the_order():
    level = np.linspace(0, 1, 8)[:, None]
    calm, noisy = (level + RNG.normal(0, spread, (8, 12)) for spread in (0.05, 2.0))
    sure, unsure = rank_agreement(calm, level + np.zeros((8, 12))), rank_agreement(noisy, level + np.zeros((8, 12)))
    assert sure.high - sure.low < unsure.high - unsure.low


def test_a_clip_without_a_value_of_some_member_counts_for_none():
    dice = RNG.uniform(size=(4, 6))
    scores = dice.copy()
    scores[:, 2] = [9, 5, 1, -4]
    scores[1, 2] = np.nan
    found = rank_agreement(scores, dice)
    assert found.n == 5
    assert found.value == pytest.approx(1)
    with pytest.raises(ValueError, match="at least 3 members"):
        rank_agreement(dice[:2], dice[:2])
