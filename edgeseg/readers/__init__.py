"""Readers: one file per format, each yields Case. `open_data` is the one door; nothing here imports torch.

A format is named by its prefix: acdc:PATH, mnms:PATH, nnunet:PATH, nifti:PATH, dicom:PATH, echonet:PATH,
echonet-synthetic:PATH, camus:PATH, video:PATH, msd:PATH, slices:PATH, phantom:cine?n=60&seed=0; several joined by
" + " are merged. Options follow a question mark: acdc:PATH?frames=4d, nifti:PATH?frames=all,
phantom:cine?n=300&seed=0&domain=wide, phantom:ct?n=40&labels=all, camus:PATH?view=4CH&labels=all, msd:PATH?hu=any.
A share follows a colon, last: echonet:PATH:0.7 + echonet-synthetic:PATH:0.3.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.readers.dataset import CaseRef, Dataset, draw_probabilities
from edgeseg.readers.splits import split_of_patients

__all__ = ["CaseRef", "Dataset", "draw_probabilities", "merge", "open_data", "split_weight"]

OPTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "acdc": {"frames": ("4d",)}, "mnms": {}, "nnunet": {"hu": ("any",)}, "nifti": {"frames": ("all",)}, "dicom": {},
    "echonet": {}, "echonet-synthetic": {}, "camus": {"view": ("2CH", "4CH"), "labels": ("all",)}, "video": {},
    "msd": {"hu": ("any",)}, "slices": {}}
"""What may follow the question mark, per format read from files."""
FILES = ("nifti", "dicom", "video")
"""Formats whose PATH may be one file."""


def open_data(spec: str, split_file: Path | None = None) -> Dataset:
    """Open the data set (or the merged data sets) that `spec` names; headers at most are read here.

    The split comes from `split_file`, else from split.json in the folder or beside it, else it is a seeded one over
    patients (70 / 10 / 20).

    Raises:
        EdgesegError: an unknown format or option, a missing or empty folder, half a case, a bad split.
    """
    several = re.split(rf" \+ (?=(?:{'|'.join(OPTIONS)}|phantom):)", spec)
    if len(several) > 1:
        return merge([open_data(s, split_file) for s in several])
    plain, share = split_weight(spec)
    if share is not None:
        data = open_data(plain, split_file)
        return replace(data, spec=spec, refs=tuple(replace(r, origin=spec, share=share) for r in data.refs))
    kind, colon, rest = spec.partition(":")
    if kind == "phantom" and colon:
        return open_phantom(rest, spec, split_file)
    if not colon or kind not in OPTIONS:
        raise EdgesegError(f"{spec}: name the format first, one of {', '.join(f'{k}:PATH' for k in OPTIONS)} "
                           "or phantom:cine, phantom:echo, phantom:ct")
    path, options = split_options(rest, spec)
    for key, value in options.items():
        if value not in OPTIONS[kind].get(key, ()):
            raise EdgesegError(f"{spec}: {kind}: has no option {key}={value}")
    root = Path(path).expanduser()
    if not path or not root.exists():
        raise EdgesegError(f"{spec}: no such folder{' or file' if kind in FILES else ''}: check the path")
    if kind not in FILES and not root.is_dir():
        raise EdgesegError(f"{spec}: is a file, but {kind}: reads a folder")
    return opener(kind)(root, spec=spec, split_file=split_file, **options)


def split_weight(spec: str) -> tuple[str, float | None]:
    """`SPEC:0.7` -> SPEC and 0.7, the share of a data set in a mixture; a spec without a share -> itself and None.

    Raises:
        EdgesegError: a share that is not positive.
    """
    match = re.fullmatch(r"(.*:.*):([+-]?(?:\d+\.?\d*|\.\d+))", spec)
    if match is None:
        return spec, None
    if float(match[2]) <= 0:
        raise EdgesegError(f"{spec}: the share of a data set ({match[2]}) must be positive")
    return match[1], float(match[2])


def opener(kind: str) -> Callable[..., Dataset]:
    """`open_KIND` of the file that reads this format (imported late: nibabel and OpenCV take their time)."""
    name = kind.replace("-", "_")
    return getattr(import_module(f"edgeseg.readers.{name}"), f"open_{name}")


def open_phantom(rest: str, spec: str, split_file: Path | None) -> Dataset:
    """`rest` of phantom:cine?n=60&seed=0 -> the phantom's data set, on the split of `split_file` if there is one."""
    name, options = split_options(rest, spec)
    if name == "cine":
        from edgeseg.phantoms.cine import cine_dataset as dataset
    elif name == "echo":
        from edgeseg.phantoms.echo import echo_dataset as dataset
    elif name == "ct":
        from edgeseg.phantoms.ct import ct_dataset as dataset
    else:
        raise EdgesegError(f"{spec}: unknown phantom {name!r}: there are phantom:cine, phantom:echo and phantom:ct")
    data = dataset(options, spec)
    if split_file is None:
        return data
    split = split_of_patients(data.patients(), Path(), split_file)
    return replace(data, refs=tuple(replace(r, split=split.get(r.patient)) for r in data.refs))


def split_options(text: str, spec: str) -> tuple[str, dict[str, str]]:
    """`PATH?key=value&key=value` -> PATH and the options."""
    path, mark, query = text.partition("?")
    if not mark or Path(text).exists():  # a question mark may be part of a name
        return text, {}
    try:
        return path, dict(parse_qsl(query, strict_parsing=True))
    except ValueError:
        raise EdgesegError(f"{spec}: write options as ?key=value&key=value") from None


def merge(datasets: list[Dataset]) -> Dataset:
    """Several data sets as one, labels mapped by name into the first one's scheme.

    Patients and cases are prefixed with the name of their data set. Structures that the first one does not name
    become background. A single data set is returned as it is.

    Raises:
        EdgesegError: a data set without a structure of the first one, a case twice, a patient in two splits, a share
            for some of the data sets only.
    """
    if not datasets:
        raise EdgesegError("no data set to merge: name at least one")
    if len(datasets) == 1:
        return datasets[0]
    mixed = [r.share is not None for d in datasets for r in d.refs[:1]]
    if any(mixed) and not all(mixed):
        raise EdgesegError(f"{' + '.join(d.spec for d in datasets)}: give every data set a share (SPEC:0.7), or none")
    target = next((d.scheme for d in datasets if d.scheme is not None), None)
    refs = []
    for data in datasets:
        if target is not None and data.scheme is not None:
            missing = [n for n in target.foreground if n not in data.scheme.names]
            if missing:
                raise EdgesegError(f"{data.spec}: has no label {', '.join(missing)}, which {datasets[0].spec} has: "
                                   "these data sets cannot be merged")
        for ref in data.refs:
            name, patient = f"{data.name}_{ref.id}", f"{data.name}_{ref.patient}"
            refs.append(replace(ref, id=name, patient=patient,
                                load=partial(load_as, ref, target, id=name, patient=patient)))
    return Dataset(
        name="+".join(dict.fromkeys(d.name for d in datasets)),
        spec=" + ".join(d.spec for d in datasets),
        refs=tuple(refs),
        scheme=target,
        licence="; ".join(dict.fromkeys(d.licence for d in datasets)),
        ignore=IGNORE if any(d.ignore is not None for d in datasets) else None,
    )


def load_as(ref: CaseRef, target: LabelScheme | None, id: str, patient: str) -> Case:
    """The case of `ref` under a new id and patient, its labels in `target`."""
    case = ref.load()
    if case.labels is None or case.scheme is None or target is None:
        return replace(case, id=id, patient=patient)
    value_of = np.full(256, IGNORE, np.uint8)
    value_of[: len(target.values)] = target.values
    labels = value_of[target.encode(case.labels, case.scheme)]
    return replace(case, id=id, patient=patient, labels=labels, scheme=target)
