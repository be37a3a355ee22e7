"""Cases brought to the student's canvas once, on disk, memory-mapped by training.

The folder lies inside the run and is removed when the run is finished: it holds images.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgeseg import geometry
from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.files import write_text
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import Dataset

SoftTargets = Callable[[Case], np.ndarray]
"""Case -> class probabilities float32 [N, K, H, W] in the native grid."""


KEY = "key.txt"


def key_of(folder: Path) -> str | None:
    try:
        return (folder / KEY).read_text()
    except OSError:
        return None


@dataclass(frozen=True)
class CachedCase:
    """Where one prepared case lies: `<stem>.image.npy` float32 [N, C, h, w], `.labels.npy` uint8 [N, h, w] (class
    indices, IGNORE where unknown), `.soft.npy` uint8 [N, K, h, w] = round(255 p) when there are stored targets."""

    id: str
    patient: str
    stem: str
    slices: int
    soft: bool


@dataclass(frozen=True)
class Cache:
    folder: Path
    cases: tuple[CachedCase, ...]
    outside: float
    """Share of the labelled foreground that a centred window of the fixed grid leaves out (0..1)."""

    def array(self, case: CachedCase, kind: str) -> np.ndarray:
        """Memory-mapped "image", "labels" or "soft" array of a case."""
        return np.load(self.folder / f"{case.stem}.{kind}.npy", mmap_mode="r")


@dataclass(frozen=True)
class Preparation:
    """How cases become training arrays.

    Attributes:
        scheme: the task's classes; labels are mapped into it by name.
        need_labels: refuse a case without labels. soft_targets: the teacher, when its predictions are stored.
    """

    dataset: Dataset
    scheme: LabelScheme
    preprocessing: Preprocessing
    need_labels: bool = True
    soft_targets: SoftTargets | None = None

    @property
    def key(self) -> str:
        """What the arrays depend on, as text."""
        ids = [ref.id for ref in self.dataset.refs]
        grid = {k: v for k, v in asdict(self.preprocessing).items() if k != "window"}  # that is for inference
        return json.dumps([ids, self.scheme.names, grid, self.soft_targets is not None])

    def run(self, folder: Path, say: Callable[[str], None] = print) -> Cache:
        """Prepare every case, one at a time, into `folder`; cases that are already there are kept.

        Raises:
            EdgesegError: no cases, a case without labels although they are needed, or labels outside the scheme.
        """
        if key_of(folder) != self.key:  # another grid, split or teacher made it
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / KEY).write_text(self.key)
        cases, shares = [], []
        for number, ref in enumerate(self.dataset.refs):
            stem = f"{number:05d}"
            record = folder / f"{stem}.json"
            if not record.exists():
                write_text(record, json.dumps(self.one(ref.load(), folder / stem)))
                if self.soft_targets is not None:
                    say(f"  stored targets {number + 1}/{len(self.dataset)}: {ref.id}")
            values = json.loads(record.read_text())
            shares.append(values.pop("outside"))
            cases.append(CachedCase(**values))
        if not cases:
            raise EdgesegError(f"{self.dataset.spec}: no cases to train on")
        outside, labelled = (sum(pair) for pair in zip(*shares, strict=True))
        return Cache(folder, tuple(cases), outside / max(1, labelled))

    def one(self, case: Case, base: Path) -> dict:
        """Write the arrays of one case beside `base` and return its record."""
        check_case(case, self.preprocessing)
        canvas = self.preprocessing.to_canvas(case.frames, case.spacing)
        shape = canvas.shape[-2:]
        classes, share = np.full(canvas.shape[:1] + shape, IGNORE, np.uint8), (0, 0)
        if case.labels is not None and case.scheme is not None:
            native = self.scheme.encode(case.labels, case.scheme, self.dataset.ignore)
            known = np.where(native == IGNORE, 0, native)
            share = geometry.outside_window(known, case.spacing, self.preprocessing.extent_mm)
            classes = geometry.resize_labels(native, shape)
        elif self.need_labels:
            raise EdgesegError(f"{case.source or case.id}: no labels; label it, leave it out, or distil with "
                               "kd_weight = 1")
        np.save(f"{base}.image.npy", canvas)
        np.save(f"{base}.labels.npy", classes)
        if self.soft_targets is not None:
            soft = geometry.resize_linear(self.soft_targets(case), shape)
            np.save(f"{base}.soft.npy", np.round(soft * 255).astype(np.uint8))
        found = CachedCase(case.id, case.patient, base.name, len(canvas), self.soft_targets is not None)
        return {**asdict(found), "outside": share}


def check_case(case: Case, preprocessing: Preprocessing) -> None:
    """Raise EdgesegError when a case has other channels than the task, or lost what the task's window shows."""
    where, wanted = case.source or case.id, len(preprocessing.channels)
    if case.frames.shape[1] != wanted:
        raise EdgesegError(f"{where}: {case.frames.shape[1]} channels, the task has {wanted}")
    low, high = case.provenance.get("hu_window", (-np.inf, np.inf))
    for channel in preprocessing.channels:
        if channel.kind == "ct" and not low <= channel.low < channel.high <= high:
            raise EdgesegError(f"{where}: was kept with a window of {low:g} to {high:g} HU, and what the task's "
                               f"{channel.low:g} to {channel.high:g} shows beyond is lost: choose an hu_window within")
