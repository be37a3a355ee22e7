"""Calibration recipe: one TOML file says which frames set the INT8 scales, how far the quantisation ladder may climb,
and which limits admission holds. `calibration/` has one per task."""

import tomllib
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from edgeseg.errors import EdgesegError

Rung = Literal["post-training", "bias-correction", "range-percentile", "keep-ends", "accuracy-control", "fine-tune"]
RUNGS: tuple[Rung, ...] = ("post-training", "bias-correction", "range-percentile", "keep-ends", "accuracy-control",
                           "fine-tune")
"""The ladder, from the cheapest: each only if the one before was not admitted on dev."""
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class Limits:
    """Limits of admission, of INT8 (or bf16) against FP32 in the same runtime on the same cases.

    Attributes:
        dice_drop: of the mean Dice; held by the upper end of the paired 95 % interval (a non-inferiority test).
        dice_ratio: least INT8 / FP32 of the mean Dice. (0.999 is reported as a tier.)
        ef_bias, ef_limits: points of ejection fraction: |bias|, and the larger |95 % limit of agreement|.
        volume_bias, mass_bias: |bias| in percent of the FP32 mean.
        hd95_rise: mm by which the mean HD95 may grow.
        fp32_parity: least share of equal labels, where either sees foreground, of the two runtimes on the FP32 file.
        int8_parity: least Dice of a structure between the two INT8 files.
    """

    dice_drop: float = 0.01
    dice_ratio: float = 0.99
    ef_bias: float = 1.0
    ef_limits: float = 3.0
    volume_bias: float = 2.0
    mass_bias: float = 2.0
    hd95_rise: float = 0.5
    fp32_parity: float = 0.9999
    int8_parity: float = 0.98


@dataclass(frozen=True, config=STRICT)
class CalibrationRecipe:
    """Everything that decides the INT8 files of a run.

    Attributes:
        source: "run": training patients of the run's own data; or a data spec (`nifti:FOLDER`, `acdc:DIR`,
            `phantom:cine?n=40&seed=7`: no patient's image at all).
        frames: how many (frames, not batches). seed: which.
        stratify: properties over which the frames are spread, as far as the data set knows them.
        keep_ids: write patients' and cases' ids into the sheet instead of salted hashes.
        rungs: how far the ladder may climb, in its order.
        fine_tune_steps: optimiser steps of the last rung.
        limits: of admission.
    """

    name: str = "run"
    source: str = "run"
    frames: int = 100
    seed: int = 0
    stratify: tuple[Literal["phase", "group", "vendor", "position"], ...] = ("phase", "group", "vendor", "position")
    keep_ids: bool = False
    rungs: tuple[Rung, ...] = RUNGS
    fine_tune_steps: int = 300
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise EdgesegError(f"calibration needs at least 2 frames, not {self.frames}")
        if not self.rungs or list(self.rungs) != [r for r in RUNGS if r in self.rungs]:
            raise EdgesegError(f"rungs are some of {', '.join(RUNGS)}, in this order")

    @classmethod
    def load(cls, path: Path) -> "CalibrationRecipe":
        """Read a TOML file; its stem is the recipe's name.

        Raises:
            EdgesegError: not TOML, an unknown key, or a bad value.
        """
        try:
            values: dict[str, Any] = tomllib.loads(Path(path).read_text("utf-8"))
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise EdgesegError(f"{path}: not a readable calibration recipe ({error})") from None
        try:
            return TypeAdapter(cls).validate_python({"name": Path(path).stem} | values)
        except ValidationError as error:
            first = error.errors()[0]
            raise EdgesegError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        except EdgesegError as error:
            raise EdgesegError(f"{path}: {error}") from None
