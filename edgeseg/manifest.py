"""The bundle's manifest: its schema is the documentation of the format, and what every front end reads first.

Every value that was measured lies in `measured`; without that block, two exports of one run have equal manifests.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from edgeseg.errors import EdgesegError
from edgeseg.evidence import (
    Admission,
    BackendName,
    Change,
    CpuClass,
    Estimate,
    FileCheck,
    FrameCheck,
    Gate,
    Measured,
    Part,
    PrecisionName,
    Rung,
    Scores,
    Speed,
    Speeds,
)
from edgeseg.preprocess import Normalisation, Preprocessing

__all__ = [
    "SCHEMA_VERSION",
    "Admission",
    "BackendName",
    "Calibration",
    "CalibrationFrame",
    "Change",
    "ChannelNormalisation",
    "CpuClass",
    "Data",
    "Estimate",
    "FileCheck",
    "FrameCheck",
    "FrameProtocol",
    "Gate",
    "Grid",
    "Labels",
    "Manifest",
    "Measured",
    "Part",
    "PrecisionName",
    "Recurrence",
    "Rung",
    "Scores",
    "Speed",
    "Speeds",
    "grid_of",
    "preprocessing_of",
    "split_sha256",
]

SCHEMA_VERSION = 1


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
    """`preprocess.Preprocessing`: the fixed grid in pixels, its pixel size in mm, normalisation, overlap of tiles,
    and whether one centred window or tiles cover an image that is larger than the grid."""

    size: tuple[int, int]
    spacing: tuple[float, float]
    channels: tuple[ChannelNormalisation, ...]
    overlap: float
    window: Literal["centre", "tiles"]


class Data(Part):
    """Where the training data came from: never a path, never a patient's name, only how many were in each split and
    `split_sha256` of them, by which `evaluate` knows these patients again."""

    name: str
    licence: str
    patients: dict[str, int]
    split_sha256: dict[str, str]


def split_sha256(patients: Iterable[str]) -> str:
    """SHA-256 of the sorted patient names of one split, one a line. Without salt: anybody may recompute it."""
    return sha256_of("\n".join(sorted(set(patients))).encode()).hexdigest()


class CalibrationFrame(Part):
    """One frame. `patient` and `case` are SHA-256 hashes salted with the run's weights, or plain ids with `--keep-ids`:
    whoever holds the run can prove which they are, and from the name alone nobody else can. `sha256` is that of the
    float32 network input, without salt: whoever holds the same images can recompute it and so find which these are.
    It is a fingerprint to check by, not anonymisation."""

    patient: str
    case: str
    slice: int
    sha256: str


class Calibration(Part):
    """Calibration sheet: the frames (not batches) that set the INT8 scales.

    Attributes:
        recipe: name of the calibration recipe. source: "run" or a data spec without its path.
        data: name of the data set. synthetic: no patient's image among them.
        ids: "salted" or "kept". strata: for each property that the data set knows, value -> number of frames.
    """

    recipe: str
    source: str
    data: str
    synthetic: bool
    ids: Literal["salted", "kept"]
    seed: int
    patients: int
    strata: dict[str, dict[str, int]]
    frames: tuple[CalibrationFrame, ...]


class FrameProtocol(Part):
    """One frame graph: raw frames of this shape, spacing (mm) and type in, label values uint8 in the same grid out.

    Attributes:
        name: its folder below frames/, for example 256x216@1.40625-uint16.
        back: "logits" go back to the native grid linearly before the arg-max, or "labels" after it (nearest).
    """

    name: str
    size: tuple[int, int]
    spacing: tuple[float, float]
    dtype: Literal["uint8", "int16", "uint16", "float32"]
    back: Literal["logits", "labels"]


class Recurrence(Part):
    """A network for clips, exported as one step: what it remembers from one frame to the next (`runtime.stream`).

    Attributes:
        states: name -> shape of each state. The graph takes `x` and these, in this order, and gives `y` and the same
            with `_next` behind their names; zeros before the first frame.
        frame_time: seconds between the frames of the clips that it learnt from; None where nobody knew.
    """

    states: dict[str, tuple[int, ...]]
    frame_time: float | None


class Manifest(Part):
    """Everything that a bundle says of itself.

    Attributes:
        stream: of a recurrent network; None for one that takes each frame by itself.
        limits: those that admission held. frames: protocols of the frame graphs.
        golden: whose frames golden.npz holds: "phantom", or the name of a data set that its maker may share.
    """

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
    limits: dict[str, float] = Field(default_factory=dict)
    frames: tuple[FrameProtocol, ...] = ()
    golden: str = "phantom"
    stream: Recurrence | None = None
    versions: dict[str, str]
    measured: Measured

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read manifest.json.

        Raises:
            EdgesegError: no JSON, a newer schema, or a field that is missing, unknown or of another kind.
        """
        try:
            values = json.loads(path.read_text("utf-8"), parse_float=finite, parse_constant=finite)
        except (OSError, ValueError, RecursionError):
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


def finite(number: str) -> float:
    """A number of a JSON text; NaN and infinities (also as 1e999), which Python would read, are no JSON."""
    if not math.isfinite(value := float(number)):
        raise ValueError(f"{number} is not finite")
    return value


def grid_of(preprocessing: Preprocessing) -> Grid:
    return Grid.model_validate(asdict(preprocessing))


def preprocessing_of(grid: Grid) -> Preprocessing:
    channels = tuple(Normalisation(**c.model_dump()) for c in grid.channels)
    return Preprocessing(grid.size, grid.spacing, channels, grid.overlap, grid.window)


if __name__ == "__main__":  # python -m edgeseg.manifest > docs/manifest.schema.json
    print(json.dumps(Manifest.model_json_schema(), indent=1, ensure_ascii=False))
