"""The gate that only a recurrent network has: the drift of its INT8 file over a stream (`measure.drift`)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeseg.bundle.admission import gate
from edgeseg.bundle.score import estimate
from edgeseg.case import Case
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.manifest import Gate
from edgeseg.measure.drift import EARLY, LATE, LIMIT, drift, frame_dice, there_and_back
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import Dataset
from edgeseg.runtime.backends import load_backend


def play(path: Path, backend: str, precision: str, data: Dataset, preprocessing: Preprocessing,
         threads: int | None = None) -> list[np.ndarray]:
    """Class indices uint8 [200, H, W] that a model file gives for each clip, played forwards and backwards until it is
    long enough."""
    net = load_backend(backend, path, threads, precision)
    return [preprocessing.segment(case.frames[there_and_back(len(case.frames))], case.spacing, net) for case in data]


def drift_gate(subject: str, mine: Sequence[np.ndarray], fp32: Sequence[np.ndarray], data: Dataset,
               scheme: LabelScheme) -> Gate:
    """Held against the labels; of a clip that has none among its first or its last 20 frames (EchoNet labels two) the
    labels that FP32 gives take their place."""
    classes = len(scheme.names)
    scored: list[list[np.ndarray]] = [[], []]
    for case, *played in zip(data, mine, fp32, strict=True):
        truth = labels_of(case, scheme, data.ignore)
        if truth is None or not all((truth[part] != IGNORE).any() for part in (EARLY, LATE)):
            truth = played[1]
        for found, labels in zip(scored, played, strict=True):
            found.append(frame_dice(labels, truth, classes))
    return gate("drift of Dice", subject, "accuracy", estimate(drift(*scored)), ">=", LIMIT)


def labels_of(case: Case, scheme: LabelScheme, ignore: int | None) -> np.ndarray | None:
    """Class indices uint8 [200, H, W], as `play` plays the clip."""
    if case.labels is None or case.scheme is None:
        return None
    return scheme.encode(case.labels, case.scheme, ignore)[there_and_back(len(case.labels))]
