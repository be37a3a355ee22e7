"""Dataset: what a reader hands over, a list of references to cases that are read one at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers.splits import SPLITS


@dataclass(frozen=True)
class CaseRef:
    """Where a case is and what is known of it without reading its pixels.

    Attributes:
        id: unique within the data set. patient: what splits are made by.
        split: "train", "dev", "val", or None for a case that belongs to no set.
        phase, group, vendor: as in Case. load: reads the case; may be pickled.
        origin, share: in a mixture (`--data A:0.7 --data B:0.3`) the data set that the case comes from, and that data
            set's share of what is drawn; else "" and None.
    """

    id: str
    patient: str
    split: str | None
    phase: str | None
    group: str | None
    vendor: str | None
    load: Callable[[], Case]
    origin: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Dataset:
    """Cases of one data set (or of several merged), never more than one of them in memory.

    Attributes:
        name: short name ("acdc"). spec: what `open_data` opens again ("acdc:PATH").
        scheme: classes of the labels, None for unlabelled data. licence: of the images and labels.
        ignore: value in `Case.labels` of pixels that no loss may look at (always 255), None when there are none.

    Raises:
        EdgesegError: two cases of one id, or a patient in two splits.
    """

    name: str
    spec: str
    refs: tuple[CaseRef, ...]
    scheme: LabelScheme | None
    licence: str
    ignore: int | None = None

    def __post_init__(self) -> None:
        twice = [i for i, n in Counter(r.id for r in self.refs).items() if n > 1]
        if twice:
            raise EdgesegError(f"{self.spec}: case {twice[0]} is there twice: rename or remove one of them")
        seen: dict[str, str] = {}
        for ref in self.refs:
            if ref.split is not None and seen.setdefault(ref.patient, ref.split) != ref.split:
                raise EdgesegError(f"{self.spec}: patient {ref.patient} is in two splits ({seen[ref.patient]} and "
                                   f"{ref.split}): keep every patient in one")

    def select(self, split: str | None) -> "Dataset":
        """Only the cases of `split` (maybe none); every case when it is None."""
        if split is None:
            return self
        if split not in SPLITS:
            raise EdgesegError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
        return replace(self, refs=tuple(r for r in self.refs if r.split == split))

    def patients(self) -> tuple[str, ...]:
        return tuple(sorted({r.patient for r in self.refs}))

    def __len__(self) -> int:
        return len(self.refs)

    def __iter__(self) -> Iterator[Case]:
        for ref in self.refs:
            yield ref.load()


def draw_probabilities(refs: Sequence[CaseRef]) -> np.ndarray:
    """Probability of each of `refs` [n], sum 1: every data set of a mixture gets its share, divided evenly over its
    cases among `refs`; all cases are equally likely where there are no shares. Shares need not sum to 1.
    """
    share = {r.origin: 1.0 if r.share is None else r.share for r in refs}
    count = Counter(r.origin for r in refs)
    if all(r.share is None for r in refs):
        return np.full(len(refs), 1 / max(len(refs), 1))
    weights = np.array([share[r.origin] / count[r.origin] for r in refs])
    return weights / weights.sum()
