import numpy as np
import pytest

from edgeseg.measure.latency import early_stopping, fewest_calls, summarise


def test_fewest_calls_are_those_of_mlperf():
    assert [fewest_calls(p) for p in (0.5, 0.9, 0.99)] == [11, 64, 662]


@pytest.mark.parametrize(("calls", "known"), [(10, ""), (11, "p50"), (63, "p50"), (64, "p50 p90"), (661, "p50 p90"),
                                              (662, "p50 p90 p99")])
def test_a_percentile_with_too_few_calls_is_not_given(calls, known):
    found = summarise(np.linspace(1, 2, calls))
    given = [p for p in ("p50", "p90", "p99") if getattr(found, f"{p}_ms") is not None]
    assert given == known.split()
    assert (found.images_per_second is None) == (calls < 11)
    assert (found.jitter_ms is None) == ("p99" not in known)


def test_percentiles_and_rate_by_hand():
    found = summarise(np.random.default_rng(0).permutation(np.arange(1.0, 1002.0)))
    assert (found.p50_ms, found.p90_ms, found.p99_ms, found.max_ms, found.n) == (501, 901, 991, 1001, 1001)
    assert found.images_per_second == pytest.approx(1000 / 501)
    assert found.jitter_ms == 991 - 501


def test_the_bound_lies_above_the_true_percentile_99_times_in_100():
    rng = np.random.default_rng(2)
    true = -np.log(0.1)  # p90 of the unit exponential
    hits = sum(early_stopping(np.sort(rng.exponential(size=200)), 0.9) >= true for _ in range(2000))
    assert hits / 2000 >= 0.985


def test_the_bound_tightens_with_more_calls():
    rng = np.random.default_rng(3)
    few, many = (early_stopping(np.sort(rng.exponential(size=n)), 0.9) for n in (100, 100_000))
    assert few > many > -np.log(0.1)
    assert many == pytest.approx(-np.log(0.1), rel=0.05)


def test_no_call_at_all_gives_nothing():
    found = summarise([])
    assert found.n == 0
    assert found.p50_ms is None
    assert found.max_ms is None
    assert found.jitter_ms is None
