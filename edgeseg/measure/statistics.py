"""Intervals and paired comparisons. The patient is the unit: values are averaged within a patient first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

RESAMPLES = 10_000
"""Bootstrap resamples: the ends of a 95 % interval then move by about 1 % of its width between seeds."""
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A statistic with its bootstrap percentile interval; `n` values went in, `resamples` were drawn.

    With one value the ends are NaN, with none all three are.
    """

    value: float
    low: float
    high: float
    n: int
    resamples: int
    level: float = LEVEL


@dataclass(frozen=True)
class Difference(Interval):
    """Mean of paired differences a - b with its interval, and Wilcoxon's signed-rank p (two-sided; NaN if n = 0)."""

    p: float = float("nan")


@dataclass(frozen=True)
class Agreement:
    """How `measured` agrees with `reference` (Bland and Altman 1986): all in the unit of the values.

    bias = mean(measured - reference); the limits are bias -+ 1.96 SD (n - 1); mae = mean |difference|.
    """

    bias: Interval
    sd: float
    limits: tuple[float, float]
    mae: Interval
    n: int


def per_patient(values: Sequence[float], patients: Sequence[str]) -> dict[str, float]:
    """Mean of each patient's values, NaN left out (a patient with nothing but NaN is left out), sorted by patient."""
    array, names = np.asarray(values, float), np.asarray(patients)
    found = {str(p): array[(names == p) & ~np.isnan(array)] for p in sorted(set(patients))}
    return {p: float(v.mean()) for p, v in found.items() if v.size}


def bootstrap_interval(values: Sequence[float] | np.ndarray, statistic: Callable[..., np.ndarray] = np.mean,
                       resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Interval:
    """Percentile bootstrap of `statistic` over independent values (one a patient). NaN values are left out.

    Args:
        statistic: called as statistic(array, axis=-1).
    """
    array = np.asarray(values, float)
    array = array[~np.isnan(array)]
    if not array.size:
        return Interval(float("nan"), float("nan"), float("nan"), 0, 0, level)
    value = float(statistic(array, axis=-1))
    if array.size == 1:
        return Interval(value, float("nan"), float("nan"), 1, 0, level)
    chosen = np.random.default_rng(seed).integers(array.size, size=(resamples, array.size))
    drawn = statistic(array[chosen], axis=-1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), array.size, resamples, level)


def paired_difference(a: Sequence[float], b: Sequence[float], resamples: int = RESAMPLES, level: float = LEVEL,
                      seed: int = 0) -> Difference:
    """Mean of a[i] - b[i] over patients i, with interval and Wilcoxon's p. Pairs with a NaN are left out.

    Differences that are all zero have p = 1.

    Raises:
        ValueError: lengths differ.
    """
    difference = np.subtract(*(np.asarray(x, float) for x in checked_pair(a, b)))
    difference = difference[~np.isnan(difference)]
    interval = bootstrap_interval(difference, resamples=resamples, level=level, seed=seed)
    p = float("nan") if not difference.size else 1.0
    if difference.any():
        from scipy import stats  # takes a second to import, which latencies need not wait for

        p = float(stats.wilcoxon(difference).pvalue)
    return Difference(interval.value, interval.low, interval.high, interval.n, interval.resamples, level, p)


def paired_t_interval(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean of a[i] - b[i] with Student's t interval; the ends are NaN for one pair. Pairs with a NaN are left out.

    For tests of a margin on few patients: there the percentile bootstrap is too narrow (of 4 it lets a true difference
    at the margin pass 11 % of the time instead of 2.5 %).

    Raises:
        ValueError: lengths differ.
    """
    difference = np.subtract(*(np.asarray(x, float) for x in checked_pair(a, b)))
    difference = difference[~np.isnan(difference)]
    n = difference.size
    mean = float(difference.mean()) if n else float("nan")
    if n < 2:
        return Interval(mean, float("nan"), float("nan"), n, 0, level)
    half = float(stdtrit(n - 1, (1 + level) / 2) * difference.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - half, mean + half, n, 0, level)


def agreement(measured: Sequence[float], reference: Sequence[float], seed: int = 0) -> Agreement:
    """Bias, limits of agreement and mean absolute error of paired values, one pair a patient. NaN pairs are left out.

    Raises:
        ValueError: lengths differ.
    """
    difference = np.subtract(*(np.asarray(x, float) for x in checked_pair(measured, reference)))
    difference = difference[~np.isnan(difference)]
    bias = bootstrap_interval(difference, seed=seed)
    sd = float(difference.std(ddof=1)) if difference.size > 1 else float("nan")
    mae = bootstrap_interval(np.abs(difference), seed=seed)
    return Agreement(bias, sd, (bias.value - 1.96 * sd, bias.value + 1.96 * sd), mae, difference.size)


def ratio_interval(numerator: Sequence[float], denominator: Sequence[float], resamples: int = RESAMPLES,
                   seed: int = 0) -> Interval:
    """Geometric mean of numerator[i] / denominator[i] over paired blocks i, bootstrapped over the blocks.

    Blocks of one round ran next to each other in time, so a drift of the machine cancels in each ratio.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(np.divide(*(np.asarray(x, float) for x in checked_pair(numerator, denominator))))
    found = bootstrap_interval(logs, resamples=resamples, seed=seed)
    low, value, high = (float(np.exp(x)) for x in (found.low, found.value, found.high))
    return Interval(value, low, high, found.n, found.resamples, found.level)


def checked_pair(a: Sequence[float], b: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    if len(a) != len(b):
        raise ValueError(f"paired values of different lengths: {len(a)} and {len(b)}")
    return a, b
