"""What was measured of a bundle: the manifest's `measured` block and its parts."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

BackendName = Literal["openvino", "onnxruntime"]
PrecisionName = Literal["fp32", "bf16", "int8"]


class Part(BaseModel):
    """Frozen, and nothing may be in the file that is not written here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class Change(Part):
    """Mean Dice of one split before a change of the pipeline, and the paired difference after - before."""

    split: str
    before: Estimate
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
        scores: of dev and (only reported) val.
        streaming: what statistics of a frame instead of the volume change. label_return: what the arg-max on the small
            grid, then nearest, changes against logits brought back linearly.
    """

    frames: int
    frames_from: str
    checks: tuple[FileCheck, ...]
    training: dict[str, Any]
    ladder: tuple[Rung, ...] = ()
    admission: Admission | None = None
    speeds: Speeds | None = None
    scores: tuple[Scores, ...] = ()
    streaming: tuple[Change, ...] = ()
    label_return: tuple[Change, ...] = ()
    frame_checks: tuple[FrameCheck, ...] = ()
