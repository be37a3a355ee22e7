"""Calibration recipe: one TOML file says which frames set the INT8 scales, how far the quantisation ladder may climb,
and which limits admission holds. `calibration/` has one per task."""

import math
import re
import tomllib
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from edgeseg.errors import EdgesegError
from edgeseg.readers import OPTIONS

Rung = Literal["post-training", "bias-correction", "range-percentile", "keep-ends", "accuracy-control", "fine-tune"]
RUNGS: tuple[Rung, ...] = ("post-training", "bias-correction", "range-percentile", "keep-ends", "accuracy-control",
                           "fine-tune")
"""The ladder, from the cheapest: each only if the one before was not admitted on dev."""
Stratum = Literal["phase", "group", "vendor", "position"]
STRATA: tuple[Stratum, ...] = ("phase", "group", "vendor", "position")
SOURCE = rf"run|({'|'.join(OPTIONS)}):.+|phantom:(cine|echo)(\?.*)?"
STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class Limits:
    """Limits of admission, of INT8 (or bf16) against FP32 in the same runtime on the same cases.

    Attributes:
        dice_drop: of the mean Dice; held by the upper end of the paired 95 % interval (a non-inferiority test).
        dice_ratio: least INT8 / FP32 of the mean Dice, held by the low end. (0.999 is reported as a tier.)
        ef_bias, ef_limits: points of ejection fraction: |bias|, and the larger |95 % limit of agreement|.
        volume_bias, mass_bias: |bias| in percent of the FP32 mean.
        hd95_rise: mm by which the mean HD95 may grow, held by the upper end.
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

    def __post_init__(self) -> None:
        for f in fields(self):
            if not math.isfinite(getattr(self, f.name)):  # TOML knows nan and inf, the manifest does not
                raise EdgesegError(f"limits.{f.name} is {getattr(self, f.name)}: write a number")


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
    stratify: tuple[Stratum, ...] = STRATA
    keep_ids: bool = False
    rungs: tuple[Rung, ...] = RUNGS
    fine_tune_steps: int = 300
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if not re.fullmatch(SOURCE, self.source):
            raise EdgesegError(f'source is {self.source!r}: write "run", {", ".join(f"{k}:DIR" for k in OPTIONS)} '
                               "or phantom:cine?n=40&seed=7")
        if self.frames < 2:
            raise EdgesegError(f"calibration needs at least 2 frames, not {self.frames}: raise frames in the recipe, "
                               "or --calibration-frames")
        if self.seed < 0:
            raise EdgesegError(f"seed is {self.seed}: a seed is not negative")
        if self.fine_tune_steps < 1:
            raise EdgesegError(f"fine_tune_steps is {self.fine_tune_steps}: at least 1, or leave the rung out")
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
            raise EdgesegError(f"{path}: {explain(error)}") from None
        except EdgesegError as error:
            raise EdgesegError(f"{path}: {error}") from None


def explain(error: ValidationError) -> str:
    """The first thing that is wrong, in the words of the file; pydantic numbers the items of a list."""
    first = error.errors()[0]
    *table, key = [part for part in first["loc"] if isinstance(part, str)] or ["the recipe"]
    where = ".".join((*table, key))
    if first["type"] != "unexpected_keyword_argument":
        return f"{where}: {first['msg']}"
    known = ", ".join(f.name for f in fields(Limits if table else CalibrationRecipe))
    return f"unknown key {where}: there are {known}"
