"""The bundle's manifest and its hashes: what every front end reads before it runs anything.

    NAME.edgeseg/
      manifest.json    `Manifest` below        SHA256SUMS    every other file, exactly those that are there
      model.fp32.onnx  model.fp32.xml/.bin     model.int8.onnx  model.int8.xml/.bin (without --no-int8)
      golden.npz       MODEL_CARD.md  LICENSE

Needs only the standard library, numpy and pydantic. Hashes detect accidents, not intent.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing

SCHEMA_VERSION = 1
SUFFIX = ".edgeseg"
MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"
SUM_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\\]+)")

INT8_AGREEMENT = 0.95
"""Label agreement with the torch student from which `precision="auto"` takes the INT8 file. A disagreement of 5 % of
the union of both foregrounds is a Dice of 0.974 between the two (Dice = 2 J / (1 + J))."""


class Part(BaseModel):
    """Frozen, and nothing may be in the file that is not written here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Labels(Part):
    names: tuple[str, ...]
    values: tuple[int, ...]


class ChannelNormalisation(Part):
    """`preprocess.Normalisation`, one for each channel."""

    kind: Literal["zscore", "ct", "rescale", "rgb", "none"]
    masked: bool
    mean: float
    std: float
    low: float
    high: float


class Grid(Part):
    """`preprocess.Preprocessing`: the fixed grid in pixels, its pixel size in mm, normalisation, overlap of tiles."""

    size: tuple[int, int]
    spacing: tuple[float, float]
    channels: tuple[ChannelNormalisation, ...]
    overlap: float


class Data(Part):
    """Where the training data came from: never a path, never a patient's name, only how many were in each split and
    `split_sha256` of them, by which `evaluate` knows these patients again."""

    name: str
    licence: str
    patients: dict[str, int]
    split_sha256: dict[str, str]


def split_sha256(patients: Iterable[str]) -> str:
    """SHA-256 of the sorted patient names of one split, one a line. Without salt: anybody may recompute it."""
    return hashlib.sha256("\n".join(sorted(set(patients))).encode()).hexdigest()


class CalibrationFrame(Part):
    """One frame. Patient and case are SHA-256 hashes salted with the run's weights: whoever holds the run can prove
    which they are, nobody else can guess them. `sha256` is that of the float32 network input."""

    patient: str
    case: str
    slice: int
    sha256: str


class Calibration(Part):
    """Calibration sheet: the frames (not batches) that set the INT8 scales, all of the training split."""

    data: str
    seed: int
    patients: int
    strata: dict[str, dict[str, int]]
    frames: tuple[CalibrationFrame, ...]


class FileCheck(Part):
    """One model file against torch on real frames.

    Attributes:
        bytes: of the file, with the .bin of an IR.
        max_logit_difference: in units of the logits; `logit_range` is their maximum minus their minimum.
        relative_error: RMS difference over the standard deviation of torch's logits.
        label_agreement: share of equal labels among the pixels where either sees foreground (0..1).
    """

    file: str
    backend: Literal["openvino", "onnxruntime"]
    precision: Literal["fp32", "int8"]
    bytes: int
    max_logit_difference: float
    logit_range: float
    relative_error: float
    label_agreement: float


class Measured(Part):
    """Every measured value: `checks` on `frames` frames of the split `frames_from`, and what training reported."""

    frames: int
    frames_from: str
    checks: tuple[FileCheck, ...]
    training: dict[str, Any]


class Manifest(Part):
    """Everything that a bundle says of itself."""

    schema_version: Literal[1] = 1
    name: str
    task: str
    intended_use: str
    labels: Labels
    channels: tuple[str, ...]
    preprocessing: Grid
    student: dict[str, Any]
    teacher: dict[str, Any]
    data: Data
    distillation: dict[str, Any]
    licences: dict[str, str]
    calibration: Calibration | None
    versions: dict[str, str]
    measured: Measured

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read manifest.json.

        Raises:
            EdgesegError: no JSON, a newer schema, or a field that is missing, unknown or of another kind.
        """
        try:
            values = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            raise EdgesegError(f"{path}: not a readable manifest: copy the bundle again") from None
        version = values.get("schema_version") if isinstance(values, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise EdgesegError(f"{path}: schema version {version} is newer than this edgeseg reads "
                               f"({SCHEMA_VERSION}): update edgeseg")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise EdgesegError(f"{path}: {where}: {first['msg']}: export the bundle again") from None

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n",
                        encoding="utf-8")


def grid_of(preprocessing: Preprocessing) -> Grid:
    return Grid.model_validate(asdict(preprocessing))


def preprocessing_of(grid: Grid) -> Preprocessing:
    channels = tuple(Normalisation(**c.model_dump()) for c in grid.channels)
    return Preprocessing(grid.size, grid.spacing, channels, grid.overlap)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every hash was right when it was opened. `files` are the names that it holds."""

    path: Path
    manifest: Manifest
    files: frozenset[str]

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return preprocessing_of(self.manifest.preprocessing)

    @cached_property
    def scheme(self) -> LabelScheme:
        return LabelScheme(self.manifest.labels.names, self.manifest.labels.values)

    def file(self, name: str) -> Path:
        """Path of a file of the bundle; EdgesegError when it has none of that name."""
        if name not in self.files:
            raise EdgesegError(f"{self.path}: this bundle has no {name}; it holds {', '.join(sorted(self.files))}")
        return self.path / name


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle folder: every hash first, then the manifest.

    Raises:
        EdgesegError: no bundle, a changed, missing or extra file, a link, a name that leaves the folder, or a manifest
            that this version cannot read.
    """
    folder = Path(path)
    if not folder.is_dir():
        hint = "unpack it first" if folder.is_file() else "`edgeseg export` makes one"
        raise EdgesegError(f"{folder}: no bundle folder: {hint}")
    if folder.is_symlink():
        folder = folder.resolve()
    sums = read_sums(folder)
    present = list_files(folder)
    if missing := sorted(set(sums) - present):
        raise EdgesegError(f"{folder / missing[0]}: missing, but {SUMS} lists it: copy the bundle again")
    if extra := sorted(present - set(sums) - {SUMS}):
        raise EdgesegError(f"{folder / extra[0]}: does not belong to this bundle ({SUMS} does not list it): remove it")
    for name, digest in sums.items():
        if sha256(folder / name) != digest:
            raise EdgesegError(f"{folder / name}: changed since the bundle was made: copy the bundle again")
    if MANIFEST not in sums:
        raise EdgesegError(f"{folder}: the bundle has no {MANIFEST}: copy it again")
    return Bundle(folder, Manifest.read(folder / MANIFEST), frozenset(present))


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over every other file of `folder` (the format of `sha256sum`, sorted by name)."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(list_files(folder) - {SUMS})]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> hash.

    Raises:
        EdgesegError: no SHA256SUMS, a malformed line, a name twice, or a name that leaves the folder.
    """
    path = folder / SUMS
    if path.is_symlink() or not path.is_file():
        raise EdgesegError(f"{folder}: no bundle (it has no {SUMS}): name a folder that `edgeseg export` made")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        raise EdgesegError(f"{path}: damaged: copy the bundle again") from None
    sums: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):  # not splitlines: it takes other characters for line ends too
        match = SUM_LINE.fullmatch(line)
        if not match or match[2] in sums or not text.endswith("\n"):
            raise EdgesegError(f"{path}: damaged (line {line[:80]!r}): copy the bundle again")
        name = match[2]
        if name.startswith("/") or re.match(r"[A-Za-z]:", name) or not all(p.strip(". ") for p in name.split("/")):
            raise EdgesegError(f"{path}: the name {name!r} leaves the bundle: do not use this bundle")
        sums[name] = match[1]
    return sums


def list_files(folder: Path) -> set[str]:
    """Names of all files below `folder`, with forward slashes; EdgesegError for a link or anything but a file."""
    found = set()
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise EdgesegError(f"{path}: a bundle holds plain files only, no links: do not use this bundle")
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in files}
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def latest_bundle(root: Path = Path("runs")) -> Path:
    """The bundle below `root` that was made last.

    Raises:
        EdgesegError: there is none.
    """
    found = sorted(root.glob(f"*{SUFFIX}/{MANIFEST}"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise EdgesegError(f"no bundle in {root}/: `edgeseg export` makes one, or name a bundle folder")
    return found[-1].parent
