"""Admission: the gates that a precision passes before `precision="auto"` may take it.

Every gate compares with FP32 in the same runtime on the same cases, paired by patient: what quantisation changed, not
how good the student is. dev is used, never val.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from edgeseg.bundle.recipe import Limits
from edgeseg.bundle.score import estimate
from edgeseg.manifest import Estimate, Gate, Speeds
from edgeseg.measure.evaluate import Evaluation
from edgeseg.measure.statistics import RESAMPLES, Interval, paired_difference
from edgeseg.measure.statistics import agreement as limits_of_agreement

Kind = Literal["accuracy", "clinical", "distance", "parity", "speed"]
Relation = Literal["<=", ">=", ">"]
HOLDS = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}
TIER = 0.999
"""MLPerf's higher accuracy tier, reported beside the 99 % gate."""


def gate(name: str, subject: str, kind: Kind, found: Estimate, relation: Relation, limit: float, unit: str = "",
         tested: Literal["value", "low", "high"] = "value") -> Gate:
    """A gate with its verdict; an end of an interval that does not exist (one patient) does not pass."""
    number = {"value": found.value, "low": found.low, "high": found.high}[tested]
    return Gate(name=name, subject=subject, kind=kind, estimate=found, tested=tested, relation=relation, limit=limit,
                unit=unit, passed=number is not None and bool(HOLDS[relation](number, limit)))


def candidate_gates(subject: str, found: Evaluation, fp32: Evaluation, limits: Limits) -> list[Gate]:
    """Accuracy, distance and clinical read-outs of one candidate ("openvino int8") against FP32 in the same runtime."""
    mine, theirs = found.patient_dice(), fp32.patient_dice()
    patients = sorted(mine.keys() & theirs.keys())
    a, b = [mine[p] for p in patients], [theirs[p] for p in patients]
    drop, rise = paired_difference(b, a), hd95_rise(found, fp32)
    gates = [gate("mean Dice drop", subject, "accuracy", estimate(drop), "<=", limits.dice_drop, tested="high"),
             gate("mean Dice ratio", subject, "accuracy", estimate(ratio_of_means(a, b)), ">=", limits.dice_ratio)]
    if rise.n:
        gates.append(gate("HD95 rise", subject, "distance", estimate(rise), "<=", limits.hd95_rise, "mm", "high"))
    return gates + clinical_gates(subject, found, fp32, limits)


def hd95_rise(found: Evaluation, fp32: Evaluation) -> Interval:
    """Mean difference over patients of their mean HD95 in mm (patients without one in either are left out)."""
    mine, theirs = found.patient_values("hd95_mm"), fp32.patient_values("hd95_mm")
    patients = sorted(mine.keys() & theirs.keys())
    return paired_difference([mine[p] for p in patients], [theirs[p] for p in patients])


def ratio_of_means(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Interval:
    """mean(a) / mean(b) of paired values, with a percentile interval from resampled pairs; 0 / 0 is 1."""
    x, y = np.asarray(a, float), np.asarray(b, float)

    def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1), 1.0)

    chosen = np.random.default_rng(seed).integers(len(x), size=(RESAMPLES, len(x)))
    low, high = np.quantile(ratio(x[chosen].mean(axis=1), y[chosen].mean(axis=1)), [0.025, 0.975])
    return Interval(float(ratio(x.mean(), y.mean())), float(low), float(high), len(x), RESAMPLES)


def clinical_gates(subject: str, found: Evaluation, fp32: Evaluation, limits: Limits) -> list[Gate]:
    """EF, volume and mass of the candidate against those of FP32, where the scheme names LV, RV or MYO."""
    mine, theirs = (by_name(e) for e in (found, fp32))
    gates = []
    for name in sorted(mine.keys() & theirs.keys()):
        patients = sorted(p for p in mine[name].keys() & theirs[name].keys())
        a, b = [mine[name][p] for p in patients], [theirs[name][p] for p in patients]
        compared = limits_of_agreement(a, b)
        if not compared.n:
            continue
        what, _, _ = name.rpartition(" ")
        if "EF" in what:
            gates.append(gate(f"{what} bias", subject, "clinical", magnitude(compared.bias), "<=", limits.ef_bias,
                              "points"))
            if compared.n > 1:
                widest = max(map(abs, compared.limits))
                gates.append(gate(f"{what} limits of agreement", subject, "clinical",
                                  Estimate(value=widest, low=None, high=None, n=compared.n), "<=", limits.ef_limits,
                                  "points"))
            continue
        reference = float(np.mean(b))
        if reference > 0:
            limit = limits.mass_bias if "mass" in what else limits.volume_bias
            gates.append(gate(f"{what} bias", subject, "clinical", magnitude(compared.bias, 100 / reference), "<=",
                              limit, "%"))
    return gates


def by_name(found: Evaluation) -> dict[str, dict[str, float]]:
    """Read-out name -> patient -> measured value (NaN left out)."""
    table: dict[str, dict[str, float]] = {}
    for row in found.read_outs():
        if np.isfinite(row.measured):
            table.setdefault(row.name, {})[row.patient] = row.measured
    return table


def magnitude(bias: Interval, scale: float = 1.0) -> Estimate:
    """|bias| times `scale`, its interval mirrored along with it."""
    sign = scale if bias.value >= 0 else -scale
    found = estimate(bias, lambda x: x * sign)
    return found if sign > 0 else found.model_copy(update={"low": found.high, "high": found.low})


def parity_gates(fp32_agreement: float, int8_dice: float | None, n: int, limits: Limits) -> list[Gate]:
    """The two runtimes on the FP32 network, and the two INT8 files against each other, on `n` cases."""
    gates = [gate("equal labels, OpenVINO and ONNX Runtime", "fp32 files", "parity",
                  Estimate(value=fp32_agreement, low=None, high=None, n=n), ">=", limits.fp32_parity)]
    if int8_dice is not None:
        gates.append(gate("least Dice of a structure, OpenVINO and ONNX Runtime", "int8 files", "parity",
                          Estimate(value=int8_dice, low=None, high=None, n=n), ">=", limits.int8_parity))
    return gates


def speed_gates(speeds: Speeds) -> list[Gate]:
    """Every precision but FP32 must beat FP32 in its runtime: the whole interval of the paired ratio above 1."""
    return [gate("times as fast as FP32", f"{s.backend} {s.precision}", "speed", s.over_fp32, ">", 1.0, tested="low")
            for s in speeds.rows if s.over_fp32 is not None]


def failed(gates: Iterable[Gate]) -> tuple[str, ...]:
    return tuple(g.name for g in gates if not g.passed)
