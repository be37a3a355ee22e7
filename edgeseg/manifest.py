"""The bundle's manifest: its schema is the documentation of the format, and what every front end reads first.

Every value that was measured lies in `measured`; without that block, two exports of one run have equal manifests.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256 as sha256_of
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Normalisation, Preprocessing

SCHEMA_VERSION = 1

BackendName = Literal["openvino", "onnxruntime"]
PrecisionName = Literal["fp32", "bf16", "int8"]


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
    """One frame. `patient` and `case` are SHA-256 hashes salted with the run's weights (whoever holds the run can prove
    which they are, nobody else can guess them), or plain ids with `--keep-ids`. `sha256` is that of the float32 network
    input."""

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


class FileCheck(Part):
    """One model file against torch on real frames.

    Attributes:
        bytes: of the file, with the .bin of an IR.
        max_logit_difference: in units of the logits; `logit_range` is their maximum minus their minimum.
        relative_error: RMS difference over the standard deviation of torch's logits.
        label_agreement: share of equal labels among the pixels where either sees foreground (0..1).
    """

    file: str
    backend: BackendName
    precision: PrecisionName
    bytes: int
    max_logit_difference: float
    logit_range: float
    relative_error: float
    label_agreement: float


class Estimate(Part):
    """A measured value with its 95 % interval (None where it has none) over `n` patients or rounds."""

    value: float
    low: float | None
    high: float | None
    n: int


class Gate(Part):
    """One admission gate: what was measured of `subject`, against which limit.

    Attributes:
        name: for example "mean Dice drop". unit: of value and limit, "" for a plain number.
        subject: "openvino int8", "onnxruntime int8", "openvino bf16", "fp32 files", "int8 files".
        kind: "accuracy", "clinical", "distance", "parity" or "speed".
        tested: the number that is held against the limit: `estimate.value` or one end of its interval, as named.
    """

    name: str
    subject: str
    kind: Literal["accuracy", "clinical", "distance", "parity", "speed"]
    estimate: Estimate
    tested: Literal["value", "low", "high"]
    relation: Literal["<=", ">=", ">"]
    limit: float
    unit: str
    passed: bool


class Rung(Part):
    """One step of the quantisation ladder for one runtime; `failed`: the gates that it missed (none: admitted)."""

    rung: str
    backend: BackendName
    settings: dict[str, Any]
    dice: float
    failed: tuple[str, ...]


class Scores(Part):
    """Dice of one file on one split: structure (and "mean") -> estimate over patients."""

    backend: BackendName
    precision: PrecisionName
    split: str
    dice: dict[str, Estimate]


class Streaming(Part):
    """Mean Dice with every frame normalised by itself minus with the volume's statistics, on one split."""

    split: str
    volume: Estimate
    difference: Estimate


class CpuClass(Part):
    """What decides which precision is fastest: the instruction sets that runtimes use, and the cores to run on."""

    isa: tuple[str, ...]
    cores: int


class Speed(Part):
    """Network latency of one row of the paired, interleaved run: median in ms, and how many times as fast as FP32 in
    the same runtime."""

    backend: BackendName
    precision: PrecisionName
    median_ms: float
    over_fp32: Estimate | None


class Speeds(Part):
    """One speed measurement: on what (`cpu` is the model's name), with how many threads, whether others were busy."""

    cpu_class: CpuClass
    cpu: str
    threads: int
    busy: bool
    rows: tuple[Speed, ...]


class Admission(Part):
    """Every gate on `split` of the data set; dev chooses, so val is never here."""

    data: str
    split: str
    patients: int
    gates: tuple[Gate, ...]

    def admitted(self, backend: str, precision: str) -> bool:
        """Whether a precision of a runtime passed all its gates but speed, which depends on the machine."""
        own = [g for g in self.gates if g.subject in (f"{backend} {precision}", f"{precision} files")
               and g.kind != "speed"]
        return any(g.kind == "accuracy" for g in own) and all(g.passed for g in own)


class FrameCheck(Part):
    """A frame graph against the NumPy pipeline on real frames: share of equal labels where either sees foreground,
    and the least Dice of a structure between the two."""

    protocol: str
    backend: BackendName
    precision: PrecisionName
    agreement: float
    least_dice: float


class Measured(Part):
    """Every measured value.

    Attributes:
        checks: each file against torch on `frames` frames of the split `frames_from`.
        training: what training reported.
        ladder, admission, speeds: how the INT8 files were found, which gates they passed, how fast they are here.
        scores: of dev and (only reported) val. streaming: the price of statistics of a frame instead of a volume.
    """

    frames: int
    frames_from: str
    checks: tuple[FileCheck, ...]
    training: dict[str, Any]
    ladder: tuple[Rung, ...] = ()
    admission: Admission | None = None
    speeds: Speeds | None = None
    scores: tuple[Scores, ...] = ()
    streaming: tuple[Streaming, ...] = ()
    frame_checks: tuple[FrameCheck, ...] = ()


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
    frames: tuple[FrameProtocol, ...] = ()
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
    return Preprocessing(grid.size, grid.spacing, channels, grid.overlap, grid.window)


if __name__ == "__main__":  # python -m edgeseg.manifest > docs/manifest.schema.json
    print(json.dumps(Manifest.model_json_schema(), indent=1, ensure_ascii=False))
