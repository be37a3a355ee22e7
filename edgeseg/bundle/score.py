"""Scores of a model file on labelled cases, and of two files against each other."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from edgeseg.case import Case
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.manifest import BackendName, Estimate, PrecisionName, Scores
from edgeseg.measure.evaluate import Evaluation, evaluate
from edgeseg.measure.statistics import Interval, bootstrap_interval
from edgeseg.preprocess import Net, Preprocessing
from edgeseg.readers import Dataset
from edgeseg.runtime.backends import load_backend


def score_file(path: Path, backend: str, precision: str, data: Dataset, preprocessing: Preprocessing,
               scheme: LabelScheme, threads: int | None = None) -> Evaluation:
    """Evaluate a core model file as the runtime uses it, statistics of each volume."""
    net = load_backend(backend, path, threads, precision)
    return evaluate(lambda case: preprocessing.segment(case.frames, case.spacing, net), data, scheme, data.ignore)


def score_streaming(net: Net, data: Dataset, preprocessing: Preprocessing, scheme: LabelScheme) -> Evaluation:
    """As `score_file`, with the statistics of each frame by itself: all that a live stream has."""

    def segment(case: Case) -> np.ndarray:
        return np.concatenate([preprocessing.segment(case.frames[i : i + 1], case.spacing, net)
                               for i in range(len(case.frames))])

    return evaluate(segment, data, scheme, data.ignore)


def score_label_return(net: Net, data: Dataset, preprocessing: Preprocessing, scheme: LabelScheme) -> Evaluation:
    """As `score_file`, with the arg-max before the way back to the native grid (frame graphs with `back` "labels"):
    its mean Dice below that of `score_file` with the same network is what this way back costs."""
    return evaluate(lambda case: preprocessing.segment(case.frames, case.spacing, net, back="labels"), data, scheme,
                    data.ignore)


def agreement(a: Net, b: Net, cases: Iterable[Case], preprocessing: Preprocessing, structures: int
              ) -> tuple[float, float]:
    """Two networks on the same cases: share of equal labels where either sees foreground (0..1), and the least Dice of
    a structure between them, pooled over all pixels. 1 where neither sees anything."""
    equal = either = 0
    overlap, sizes = np.zeros(structures), np.zeros(structures)
    for case in cases:
        x, y = (preprocessing.segment(case.frames, case.spacing, net) for net in (a, b))
        foreground = (x > 0) | (y > 0)
        equal, either = equal + int((x == y)[foreground].sum()), either + int(foreground.sum())
        for k in range(structures):
            mine, theirs = x == k + 1, y == k + 1
            overlap[k] += np.count_nonzero(mine & theirs)
            sizes[k] += np.count_nonzero(mine) + np.count_nonzero(theirs)
    dice = np.where(sizes > 0, 2 * overlap / np.maximum(sizes, 1), 1.0)
    return (equal / either if either else 1.0), float(dice.min(initial=1.0))


def labelled_split(run: Run, data: Dataset, split: str) -> Dataset | None:
    """The cases of `split`, or None when there are none or they have no labels.

    Raises:
        EdgesegError: one of its patients was in another split when the run was trained.
    """
    chosen = data.select(split)
    for patient in chosen.patients():
        if patient not in run.data["splits"].get(split, ()):
            raise EdgesegError(f"{data.spec}: patient {patient} is in {split} now but was not when {run.folder} was "
                               "trained: restore the split of the run")
    return chosen if len(chosen) and chosen.refs[0].load().labels is not None else None


def estimate(interval: Interval, sign: Callable[[float], float] = float) -> Estimate:
    """An `Interval` as the manifest holds it; NaN ends become None."""
    low, high = (sign(x) if np.isfinite(x) else None for x in (interval.low, interval.high))
    return Estimate(value=sign(interval.value), low=low, high=high, n=interval.n)


def scores(found: Evaluation, backend: BackendName, precision: PrecisionName, split: str) -> Scores:
    """Dice of every structure and their mean, over patients."""
    dice = {name or "mean": estimate(bootstrap_interval(list(found.patient_dice(name).values())))
            for name in (None, *found.scheme.foreground)}
    return Scores(backend=backend, precision=precision, split=split, dice=dice)
