import math

import numpy as np
import pytest
from scipy import stats

from edgeseg.measure.statistics import agreement, bootstrap_interval, paired_difference, per_patient, ratio_interval


def test_the_interval_agrees_with_scipy():
    values = np.random.default_rng(1).normal(10, 2, 25)
    ours = bootstrap_interval(values, seed=3)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile",
                             rng=np.random.default_rng(5)).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.04)
    assert (ours.n, ours.resamples) == (25, 10_000)


def test_a_95_percent_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        found = bootstrap_interval(rng.normal(0, 1, 40), resamples=1000, seed=seed)
        hits += found.low <= 0 <= found.high
    assert 0.90 <= hits / 300 <= 0.98


def test_one_seed_gives_one_interval_and_another_seed_another():
    values = [0.9, 0.8, 0.95, 0.7]
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(np.arange(9.0) ** 2, seed=1) != bootstrap_interval(np.arange(9.0) ** 2, seed=2)


def test_nan_values_are_left_out_and_counted_out():
    found = bootstrap_interval([1.0, float("nan"), 3.0])
    assert (found.value, found.n) == (2.0, 2)


def test_one_value_has_no_interval_and_none_has_nothing():
    one, none = bootstrap_interval([0.5]), bootstrap_interval([])
    assert one.value == 0.5
    assert math.isnan(one.low)
    assert one.n == 1
    assert math.isnan(none.value)
    assert none.n == 0


def test_other_statistics_are_bootstrapped_too():
    values = np.arange(101.0)
    found = bootstrap_interval(values, np.median)
    assert found.value == 50
    assert 30 < found.low < 50 < found.high < 70


def test_paired_difference_by_hand_and_p_from_wilcoxon():
    a, b = [0.90, 0.85, 0.92, 0.81, 0.77, 0.95], [0.88, 0.80, 0.91, 0.80, 0.70, 0.89]
    found = paired_difference(a, b)
    assert found.value == pytest.approx(0.22 / 6)
    assert found.low > 0
    assert found.n == 6
    assert found.p == pytest.approx(2 / 2**6)  # all six have one sign: the smallest two-sided exact p
    mirrored = paired_difference(b, a)
    assert mirrored.value == pytest.approx(-found.value)
    assert mirrored.p == pytest.approx(found.p)


def test_no_difference_at_all_has_p_1():
    found = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1.0)


def test_pairs_with_a_nan_are_left_out_as_pairs():
    assert paired_difference([1.0, float("nan"), 3.0], [0.0, 0.0, float("nan")]).n == 1


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="lengths"):
        paired_difference([1.0], [1.0, 2.0])


def test_agreement_by_hand():
    found = agreement([52.0, 58.0, 66.0, 40.0], [50.0, 60.0, 60.0, 38.0])  # differences 2 -2 6 2
    assert found.bias.value == pytest.approx(2.0)
    assert found.mae.value == pytest.approx(3.0)
    assert found.sd == pytest.approx(math.sqrt((0 + 16 + 16 + 0) / 3))
    assert found.limits == pytest.approx((2 - 1.96 * found.sd, 2 + 1.96 * found.sd))
    assert found.n == 4


def test_the_patient_is_the_unit():
    found = per_patient([1.0, 0.0, 0.5, float("nan"), float("nan")], ["b", "b", "a", "a", "c"])
    assert found == {"a": 0.5, "b": 0.5}
    assert list(found) == ["a", "b"]


def test_a_drift_that_both_share_cancels_in_the_paired_ratio():
    drift = np.linspace(1, 3, 12)
    found = ratio_interval(20 * drift, 2 * drift)
    assert (found.value, found.low, found.high) == pytest.approx((10, 10, 10))


def test_the_ratio_is_the_geometric_mean_over_blocks():
    assert ratio_interval([2.0, 8.0], [1.0, 1.0]).value == pytest.approx(4.0)
