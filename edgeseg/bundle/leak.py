"""No frame of a dev or val patient may calibrate: who was held out of a run, told by name and by content."""

import hashlib
import re
from collections.abc import Iterable, Iterator

import numpy as np

from edgeseg import geometry
from edgeseg.case import Case
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import Dataset

HELD_OUT = ("dev", "val")
"""Patients of dev choose, patients of val report: neither may shape the model."""


def check_own(run: Run, train: Dataset) -> None:
    """Raise EdgesegError unless every patient of `train` was a training patient of the run, and no other."""
    splits = {name: set(patients) for name, patients in run.data["splits"].items()}
    for patient in train.patients():
        for held_out in HELD_OUT:
            if patient in splits.get(held_out, ()):
                raise EdgesegError(f"{train.spec}: patient {patient} was in {held_out} when {run.folder} was trained, "
                                   "so must not calibrate it: restore the split of the run")
        if patient not in splits["train"]:
            raise EdgesegError(f"{train.spec}: patient {patient} is new since {run.folder} was trained: restore the "
                               "data or the split of the run")


def check_names(run: Run, data: Dataset, source: Dataset) -> None:
    """Raise EdgesegError when a patient or case of `source` has the name of a held-out patient or case of the run.

    A name that goes on after a held-out one with anything but a letter or digit is refused too: patient014_4d is
    patient014. `data` is the run's own data set.
    """
    held = held_out_names(run, data)
    for ref in source.refs:
        for name in (ref.patient, ref.id):
            if found := next((held[b] for n in plain_names(name, source) for b in beginnings(n) if b in held), None):
                raise EdgesegError(f"{source.spec}: {name} has the name of a {found} patient of {run.folder}, so must "
                                   'not calibrate it: leave it out (rename another patient), or take source = "run"')


def held_out_names(run: Run, data: Dataset) -> dict[str, str]:
    """Patients and cases of dev and val, with and without the prefix that merged data sets have -> dev or val."""
    names: dict[str, str] = {}
    for split in HELD_OUT:
        patients = set(run.data["splits"].get(split, ()))
        for name in patients | {r.id for r in data.refs if r.patient in patients}:
            names |= dict.fromkeys(plain_names(name, data), split)
    return names


def plain_names(name: str, data: Dataset) -> list[str]:
    """The name, and without the prefix that it has where data sets were merged."""
    return [name, *(name.removeprefix(f"{part}_") for part in data.name.split("+"))]


def beginnings(name: str) -> Iterator[str]:
    """The name, and what comes before each of its characters that is no letter or digit."""
    yield name
    yield from (name[: m.start()] for m in re.finditer(r"[^0-9A-Za-z]", name))


def held_out_contents(run: Run, data: Dataset) -> dict[str, str]:
    """SHA-256 of every frame of the dev and val patients, raw and as the network gets it -> whose it is.

    Reads them all (ACDC: 70 volumes in 3 s).

    Raises:
        EdgesegError: some of them are not there any more, so that nothing can be compared with them.
    """
    found: dict[str, str] = {}
    for split in HELD_OUT:
        patients = set(run.data["splits"].get(split, ()))
        if missing := sorted(patients - set(data.patients())):
            raise EdgesegError(f"{data.spec}: {split} patient {missing[0]} of {run.folder} is not there, so no other "
                               "patient can be told from them: restore the data")
        for ref in data.refs:
            if ref.patient in patients:
                found |= dict.fromkeys(fingerprints(ref.load(), run.preprocessing), f"{ref.id} of {split}")
    return found


def fingerprints(case: Case, preprocessing: Preprocessing) -> Iterator[str]:
    """SHA-256 of each frame of a case as it was read, and of each window that the network may get of it."""
    canvas = preprocessing.to_canvas(case.frames, case.spacing)
    starts = preprocessing.starts((canvas.shape[-2], canvas.shape[-1]))
    for raw, image in zip(case.frames, canvas, strict=True):
        yield sha256(raw)
        yield from (sha256(geometry.take_window(image, start, preprocessing.size)) for start in starts)


def check_contents(run: Run, held: dict[str, str], drawn: Iterable[tuple[str, Iterable[np.ndarray]]], spec: str
                   ) -> None:
    """Raise EdgesegError when one of `drawn` (name of a frame, its arrays) is a held-out frame, whatever its name."""
    for name, arrays in drawn:
        if found := next((held[h] for h in map(sha256, arrays) if h in held), None):
            raise EdgesegError(f"{spec}: {name} is a copy of a frame of {found} of {run.folder}, so must not calibrate "
                               "it: take that patient out")


def sha256(pixels: np.ndarray) -> str:
    """SHA-256 of float32 pixels, row by row."""
    return hashlib.sha256(np.asarray(pixels, np.float32).tobytes()).hexdigest()
