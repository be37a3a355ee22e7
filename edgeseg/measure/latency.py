"""Latencies of one thing that was called again and again: percentiles that say when they cannot be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.special import bdtr, bdtrik  # scipy.stats has the same, and takes a second to import

CONFIDENCE = 0.99


@dataclass(frozen=True)
class Latency:
    """Latencies in ms of `n` calls in a row, the next starting when the last is done.

    A percentile is None when there were too few calls for it (`fewest_calls`). `*_bound_ms` is what MLPerf's early
    stopping would report: with 99 % confidence the true percentile lies below it.
    jitter_ms is p99 - p50. images_per_second is 1000 / median.
    """

    n: int
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    p50_bound_ms: float | None
    p90_bound_ms: float | None
    p99_bound_ms: float | None
    max_ms: float | None
    jitter_ms: float | None
    images_per_second: float | None


def summarise(milliseconds: Sequence[float] | np.ndarray) -> Latency:
    """Percentiles of single-call latencies in ms (linear interpolation between calls)."""
    ms = np.sort(np.asarray(milliseconds, float))
    points, bounds = [], []
    for percent in (50, 90, 99):
        bound = early_stopping(ms, percent / 100)
        bounds.append(bound)
        points.append(None if bound is None else float(np.percentile(ms, percent)))
    p50, p90, p99 = points
    return Latency(len(ms), p50, p90, p99, bounds[0], bounds[1], bounds[2], float(ms[-1]) if len(ms) else None,
                   p99 - p50 if p50 is not None and p99 is not None else None, 1000 / p50 if p50 else None)


def early_stopping(milliseconds: np.ndarray, share: float, confidence: float = CONFIDENCE) -> float | None:
    """Upper bound on the `share` quantile (0.9 = p90) of sorted latencies, or None with too few of them.

    MLPerf Inference, early stopping for single stream: take the most calls t over the estimate for which n calls still
    show, at `confidence`, that a new call is below it with probability >= share; leave out the t - 1 worst and report
    the largest of the rest. t is the largest with P(Binomial(n, 1 - share) <= t) <= 1 - confidence.
    """
    n = len(milliseconds)
    if n < fewest_calls(share, confidence):
        return None
    t = math.ceil(bdtrik(1 - confidence, n, 1 - share))  # the smallest t with cdf >= 1 - confidence ...
    while bdtr(t, n, 1 - share) > 1 - confidence:  # ... and the largest with cdf <= 1 - confidence
        t -= 1
    return float(milliseconds[n - t])


@cache
def fewest_calls(share: float, confidence: float = CONFIDENCE) -> int:
    """Calls that `early_stopping` needs: 11 for the median, 64 for p90, 662 for p99 (MLPerf's own numbers)."""
    n = 1
    while bdtr(1, n, 1 - share) > 1 - confidence:
        n += 1
    return n
