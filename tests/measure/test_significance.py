import itertools
import math

import numpy as np
import pytest
from scipy import stats

from edgeseg.measure import significance
from edgeseg.measure.overlap import counts_per_class, dice, iou, macro, micro, precision, recall, scores
from edgeseg.measure.significance import (
    cohen_dz,
    compare_paired,
    corrected,
    crossed_interval,
    holm,
    rank_biserial,
    sign_flip_p,
)


def by_hand(difference) -> float:
    """The share of all 2^n patterns of signs, each written out."""
    d = np.asarray(difference)
    sums = [abs(np.dot(signs, d)) for signs in itertools.product((-1, 1), repeat=len(d))]
    return float(np.mean([s >= abs(d.sum()) - 1e-12 for s in sums]))


@pytest.mark.parametrize("difference", [[0.3], [0.1, 0.2, -0.05], [0.5, 0.5, 0.5, 0.5, -0.5], [0.02, 0.0, 0.01, -0.03],
                                        list(np.random.default_rng(3).normal(0.4, 1, 11))])
def test_the_permutation_test_is_exact_for_few_patients(difference):
    assert sign_flip_p(difference) == pytest.approx(by_hand(difference))


def test_the_exact_permutation_test_agrees_with_scipy():
    d = np.random.default_rng(1).normal(0.3, 1, 12)
    theirs = stats.permutation_test((d,), lambda x, axis: x.mean(axis), permutation_type="samples", vectorized=True,
                                    n_resamples=np.inf)
    assert sign_flip_p(d) == pytest.approx(theirs.pvalue)


def test_all_differences_of_one_sign_have_the_least_p_that_n_patients_can_give():
    assert sign_flip_p([0.01, 0.02, 0.03, 0.04, 0.05, 0.06]) == 2 / 2**6


def test_random_flips_agree_with_all_of_them_and_are_never_zero(monkeypatch):
    d = np.random.default_rng(2).normal(0.5, 1, 16)
    exact = sign_flip_p(d)
    monkeypatch.setattr(significance, "EXACT", 4)
    assert sign_flip_p(d) == pytest.approx(exact, abs=0.005)
    assert sign_flip_p(np.arange(1.0, 60)) == 1 / (significance.FLIPS + 1)


def test_p_is_uniform_where_nothing_differs(monkeypatch):
    """Differences that are symmetric about 0: p below any level as often as that level says, exact and random."""
    monkeypatch.setattr(significance, "FLIPS", 10_000)
    rng = np.random.default_rng(0)
    for n, rounds in ((10, 800), (25, 150)):
        found = np.array([sign_flip_p(rng.standard_t(4, n), seed) for seed in range(rounds)])
        assert stats.kstest(found, "uniform").pvalue > 0.01
        assert (found <= 0.05).mean() < 0.05 + 3 * math.sqrt(0.05 * 0.95 / rounds)


def test_differences_of_zero_say_nothing():
    assert sign_flip_p([0.0, 0.0, 0.0]) == 1.0
    assert math.isnan(sign_flip_p([]))
    assert sign_flip_p([0.0, 0.1, 0.2]) == sign_flip_p([0.1, 0.2])


def test_holm_by_hand():
    # sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 -> kept monotone: 0.04 becomes 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_keeps_the_order_is_never_below_p_and_never_above_bonferroni():
    for seed in range(30):
        p = np.random.default_rng(seed).uniform(0, 1, 9) ** 3
        found = np.array(holm(p))
        assert (np.diff(found[np.argsort(p)]) >= 0).all()
        assert (found >= p).all()
        assert (found <= np.minimum(1, 9 * p) + 1e-15).all()
        assert found.min() == pytest.approx(min(1, 9 * p.min()))


def test_a_comparison_that_was_not_made_costs_the_others_nothing():
    found = holm([0.01, float("nan"), 0.04])
    assert found[0] == pytest.approx(0.02)
    assert math.isnan(found[1])
    assert holm([]) == []


def test_holm_finds_a_false_difference_in_at_most_5_of_100_families():
    rng = np.random.default_rng(4)
    wrong = sum(min(holm(rng.uniform(0, 1, 8))) <= 0.05 for _ in range(2000))
    assert 0.03 < wrong / 2000 < 0.065


def test_rank_biserial_by_hand_and_from_scipys_ranks():
    # ranks of |d|: 0.1 -> 1, 0.2 -> 2, 0.3 -> 3, 0.4 -> 4; W+ = 1 + 3 + 4, W- = 2
    assert rank_biserial([0.1, -0.2, 0.3, 0.4]) == pytest.approx((8 - 2) / 10)
    d = np.random.default_rng(5).normal(0.2, 1, 30)
    plus = stats.wilcoxon(d, alternative="greater").statistic
    assert rank_biserial(d) == pytest.approx(2 * plus / (30 * 31 / 2) - 1)
    assert (rank_biserial([1.0, 2.0]), rank_biserial([-1.0, 0.0]), rank_biserial([0.0])) == (1, -1, 0)


def test_d_z_is_the_t_statistic_over_the_root_of_n():
    a, b = np.random.default_rng(6).normal(size=(2, 15))
    assert cohen_dz(a - b) == pytest.approx(stats.ttest_rel(a, b).statistic / math.sqrt(15))
    assert cohen_dz([0.0, 0.0]) == 0
    assert math.isnan(cohen_dz([0.1]))
    assert math.isnan(cohen_dz([0.1, 0.1, 0.1]))


def test_a_network_is_not_inferior_when_its_bound_lies_above_the_margin():
    rng = np.random.default_rng(7)
    base = rng.uniform(0.8, 0.9, 20)
    worse = base - 0.015 + rng.normal(0, 0.002, 20)
    bound = stats.ttest_rel(worse, base).confidence_interval(0.95).low
    found = compare_paired(worse, base, 0.02)
    assert found.bound == pytest.approx(bound)
    assert found.non_inferior is True
    assert compare_paired(worse, base, 0.015).non_inferior is False
    assert found.difference.p < 0.01  # it is worse, and yet not inferior at this margin
    assert compare_paired([0.5], [0.5]).non_inferior is None


def test_a_network_at_the_margin_passes_no_more_than_2_5_of_100_times():
    rng = np.random.default_rng(8)
    passed = 0
    for k in range(1500):
        d = rng.normal(-0.02, 0.01, 12)
        low = stats.t.interval(0.95, 11, d.mean(), stats.sem(d))[0]
        passed += low > -0.02
        if k < 20:
            assert compare_paired(d, np.zeros(12), 0.02).non_inferior is bool(low > -0.02)
    assert passed / 1500 < 0.025 + 3 * math.sqrt(0.025 * 0.975 / 1500)


def test_a_family_of_comparisons_is_corrected_together():
    rng = np.random.default_rng(9)
    base = rng.uniform(0.7, 0.9, 15)
    family = corrected([compare_paired(base + shift + rng.normal(0, 0.02, 15), base) for shift in (0.0, 0.02, 0.05)])
    assert [c.permutation_holm for c in family] == holm([c.permutation_p for c in family])
    assert [c.wilcoxon_holm for c in family] == holm([c.difference.p for c in family])
    assert family[2].permutation_holm < 0.05 < family[0].permutation_holm


def test_an_interval_over_seeds_too_is_wider_where_seeds_differ_and_the_same_where_they_do_not():
    rng = np.random.default_rng(10)
    patients = rng.normal(0.01, 0.01, 20)
    same = crossed_interval(np.tile(patients, (5, 1)))
    apart = crossed_interval(patients + np.linspace(-0.02, 0.02, 5)[:, None])
    alone = compare_paired(patients, np.zeros(20)).difference
    assert (same.low, same.high) == pytest.approx((alone.low, alone.high), abs=4e-4)
    assert apart.value == pytest.approx(same.value)
    assert apart.high - apart.low > 2 * (same.high - same.low)
    assert math.isnan(crossed_interval(patients[None]).low)


@pytest.fixture
def cases() -> list[tuple[np.ndarray, np.ndarray]]:
    """Predicted and manual labels 0..2 of four cases of unlike sizes; class 2 is in neither array of the last."""
    rng = np.random.default_rng(11)
    made = [(rng.integers(0, 3, (n, 7)), rng.integers(0, 3, (n, 7))) for n in (3, 8, 20)]
    return [*made, (np.zeros((4, 7), int), np.eye(4, 7, dtype=int))]


def test_scores_of_counts_are_those_of_the_masks(cases):
    for predicted, manual in cases:
        found = scores(counts_per_class(predicted, manual, 3))
        for k in (1, 2):
            masks = predicted == k, manual == k
            wanted = {f.__name__: f(*masks) for f in (dice, iou, recall, precision)}
            assert {name: v[k - 1] for name, v in found.items()} == pytest.approx(wanted)


def test_micro_pools_the_pixels_and_macro_averages_the_cases(cases):
    counted = np.array([counts_per_class(p, m, 3) for p, m in cases])
    pooled = [np.concatenate([pair[i].ravel() for pair in cases]) for i in (0, 1)]
    assert micro(counted)["dice"][0] == pytest.approx(dice(pooled[0] == 1, pooled[1] == 1))
    assert micro(counted)["precision"][1] == pytest.approx(precision(pooled[0] == 2, pooled[1] == 2))
    assert macro(counted)["iou"][0] == pytest.approx(np.mean([iou(p == 1, m == 1) for p, m in cases]))
    assert macro(counted)["recall"][1] == pytest.approx(np.mean([recall(p == 2, m == 2) for p, m in cases]))


def test_ignored_pixels_count_for_nobody():
    manual = np.array([1, 1, 255, 255, 0])
    assert counts_per_class(np.array([1, 0, 1, 2, 2]), manual, 3).tolist() == [[1, 1, 2], [0, 1, 0]]
