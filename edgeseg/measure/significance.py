"""Is one network better than another, or not worse? Paired tests over patients, corrected for how many are made."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeseg.measure.statistics import LEVEL, RESAMPLES, Difference, Interval, paired_difference, paired_t_interval

EXACT = 20
"""Up to so many non-zero differences every pattern of signs is tried (2^19 after symmetry), beyond it FLIPS of them."""
FLIPS = 100_000
"""Random patterns of signs: a p of 0.05 then has a standard error of 0.0007."""
MARGIN = 0.02
"""Default margin of non-inferiority in Dice: a choice, to be made before the results are looked at."""


@dataclass(frozen=True)
class Comparison:
    """One network against a baseline on the same patients; every p is two-sided, NaN without a patient.

    Attributes:
        difference: mean of the paired differences, its bootstrap interval, Wilcoxon's signed-rank p.
        permutation_p: `sign_flip_p`. wilcoxon_holm, permutation_holm: after `holm`.
        rank_biserial: -1..1. d_z: in standard deviations of the differences.
        bound: lower end of the one-sided 97.5 % interval of the difference, of Student's t. margin: what the network
            may be worse by.
    """

    difference: Difference
    permutation_p: float
    rank_biserial: float
    d_z: float
    bound: float
    margin: float
    wilcoxon_holm: float = float("nan")
    permutation_holm: float = float("nan")

    @property
    def non_inferior(self) -> bool | None:
        """Whether the bound lies above -margin; None where there is no bound (one patient)."""
        return None if self.bound != self.bound else self.bound > -self.margin


def compare_paired(a: Sequence[float], b: Sequence[float], margin: float = MARGIN, seed: int = 0) -> Comparison:
    """a[i] against the baseline b[i] of patients i. Pairs with a NaN are left out.

    Non-inferiority is shown when the one-sided 97.5 % bound of a - b lies above -margin (Piaggio et al., JAMA 2012, the
    CONSORT extension; ICH E9): the lower end of the two-sided 95 % interval, here Student's t (`paired_t_interval`).

    Raises:
        ValueError: lengths differ.
    """
    found = paired_difference(a, b, seed=seed)
    difference = np.subtract(np.asarray(a, float), np.asarray(b, float))
    difference = difference[~np.isnan(difference)]
    return Comparison(found, sign_flip_p(difference, seed), rank_biserial(difference), cohen_dz(difference),
                      paired_t_interval(a, b, LEVEL).low, margin)


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons, all of them one family, with Holm's corrected p of either test."""
    wilcoxon, permutation = holm([c.difference.p for c in comparisons]), holm([c.permutation_p for c in comparisons])
    return [replace(c, wilcoxon_holm=w, permutation_holm=p)
            for c, w, p in zip(comparisons, wilcoxon, permutation, strict=True)]


def sign_flip_p(difference: Sequence[float] | np.ndarray, seed: int = 0) -> float:
    """Two-sided p of the mean of paired differences under random exchange of each pair: the share of the patterns of
    signs whose |mean| is at least the observed one (Fisher 1935, section 21; Good, Permutation Tests, 2000).

    All patterns up to EXACT non-zero differences (a zero has no sign and changes no sum), else FLIPS random ones, the
    observed one counted in, so that p is never 0 (Phipson and Smyth 2010). Only zeros: 1. Nothing: NaN.
    """
    d = np.asarray(difference, float)
    nonzero = d[d != 0]
    if not nonzero.size:
        return 1.0 if d.size else float("nan")
    least = abs(nonzero.sum()) - 1e-9 * np.abs(nonzero).sum()  # sums of one value in another order differ by rounding
    if nonzero.size <= EXACT:
        sums = nonzero[:1]  # |sum| of a pattern is that of the opposite one
        for value in nonzero[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= least))
    rng, reached, block = np.random.default_rng(seed), 0, 10_000
    for _ in range(FLIPS // block):
        signs = rng.integers(0, 2, (block, nonzero.size), dtype=np.int8) * 2 - 1
        reached += int(np.count_nonzero(np.abs(signs @ nonzero) >= least))
    return (reached + 1) / (FLIPS + 1)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Scand. J. Statist. 1979): the k-th smallest of m times m - k + 1, at most 1, never
    below that of a smaller p. NaN stays NaN and is not counted as a test."""
    values = np.asarray(p, float)
    order = [i for i in np.argsort(values, kind="stable") if values[i] == values[i]]
    found, least = [float("nan")] * len(values), 0.0
    for k, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - k) * float(values[i])))
        found[i] = least
    return found


def rank_biserial(difference: Sequence[float] | np.ndarray) -> float:
    """Matched-pairs rank-biserial correlation (Kerby 2014): (W+ - W-) / (W+ + W-) over the ranks of the non-zero
    |differences|; 1 when all are positive, 0 when there is none, NaN of nothing."""
    d = np.asarray(difference, float)
    nonzero = d[d != 0]
    if not nonzero.size:
        return 0.0 if d.size else float("nan")
    from scipy.stats import rankdata  # takes a second to import, which latencies need not wait for

    ranks = rankdata(np.abs(nonzero))
    return float((np.sign(nonzero) * ranks).sum() / ranks.sum())


def cohen_dz(difference: Sequence[float] | np.ndarray) -> float:
    """Cohen's d_z (1988; Lakens 2013): mean of the paired differences over their SD (n - 1). Differences that are all
    zero: 0; one, or several that are all the same: NaN."""
    d = np.asarray(difference, float)
    if d.size < 2:
        return float("nan")
    if not d.any():
        return 0.0
    sd = float(d.std(ddof=1))
    return float(d.mean()) / sd if sd > 1e-12 * float(np.abs(d).max()) else float("nan")


def crossed_interval(values: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Interval:
    """Mean of `values` [seeds, patients] with a bootstrap that draws seeds and patients, each with replacement and
    independently (Owen 2007, the pigeonhole bootstrap): what another set of patients and other seeds would give.

    With few seeds it is rough. The ends are NaN for one seed or one patient. `n` is the number of patients.
    """
    table = np.asarray(values, float)
    seeds, patients = table.shape
    mean = float(table.mean())
    if min(table.shape) < 2:
        return Interval(mean, float("nan"), float("nan"), patients, 0, level)
    rng = np.random.default_rng(seed)
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), resamples) / seeds
    of_patients = rng.multinomial(patients, np.full(patients, 1 / patients), resamples) / patients
    drawn = ((of_seeds @ table) * of_patients).sum(axis=1)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), patients, resamples, level)
