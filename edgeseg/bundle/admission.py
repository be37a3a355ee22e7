"""Admission: the gates that a precision passes before `precision="auto"` may take it.

Every gate compares with FP32 in the same runtime on the same cases, paired by patient: what quantisation changed, not
how good the student is. dev is used, never val.
"""

import operator
from collections.abc import Iterable
from typing import Literal

import numpy as np

from edgeseg.bundle.recipe import Limits
from edgeseg.bundle.score import estimate
from edgeseg.manifest import Estimate, Gate, Speeds
from edgeseg.measure import statistics
from edgeseg.measure.evaluate import Evaluation
from edgeseg.measure.statistics import Interval, paired_t_interval
from edgeseg.measure.statistics import agreement as limits_of_agreement

Kind = Literal["accuracy", "clinical", "distance", "parity", "speed"]
Relation = Literal["<=", ">=", ">"]
HOLDS = {"<=": operator.le, ">=": operator.ge, ">": operator.gt}


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
    drop = paired_t_interval([theirs[p] for p in patients], [mine[p] for p in patients])
    lost, rise = compare_distances(found, fp32)
    gates = [gate("mean Dice drop", subject, "accuracy", estimate(drop), "<=", limits.dice_drop, tested="high"),
             gate("mean Dice ratio", subject, "accuracy", ratio(drop, np.mean([theirs[p] for p in patients])), ">=",
                  limits.dice_ratio, tested="low"),
             gate("values lost", subject, "distance", lost, "<=", 0.0)]
    if rise.n:
        gates.append(gate("HD95 rise", subject, "distance", estimate(rise), "<=", limits.hd95_rise, "mm", "high"))
    return gates + clinical_gates(subject, found, fp32, limits)


def ratio(drop: Interval, fp32: float | np.floating) -> Estimate:
    """1 - drop / mean FP32 Dice, the interval of the drop carried over; 1 where FP32 finds nothing either."""
    scale = 1 / float(fp32) if fp32 > 0 else 0.0
    found = estimate(drop, lambda x: 1 - x * scale)
    return found.model_copy(update={"low": found.high, "high": found.low})


def compare_distances(found: Evaluation, fp32: Evaluation) -> tuple[Estimate, Interval]:
    """How many HD95s and clinical values FP32 has and the candidate lacks (a structure that it lost in a case), and the
    mean rise of HD95 in mm over patients, of the cases and structures for which both have one."""
    mine, theirs = ({(r.case, r.structure): r for r in e.rows} for e in (found, fp32))
    has = [k for k, r in theirs.items() if np.isfinite(r.hd95_mm)]
    lost = sum(not np.isfinite(mine[k].hd95_mm) for k in has)
    rises = statistics.per_patient([mine[k].hd95_mm - theirs[k].hd95_mm for k in has], [theirs[k].patient for k in has])
    read, wanted = ({(r.patient, r.name) for r in e.read_outs() if np.isfinite(r.measured)} for e in (found, fp32))
    count = Estimate(value=float(lost + len(wanted - read)), low=None, high=None, n=len(has) + len(wanted))
    return count, paired_t_interval(list(rises.values()), [0.0] * len(rises))


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


def fp32_parity(agreement: float, n: int, limits: Limits) -> Gate:
    """The two runtimes on the FP32 network, on `n` cases."""
    return gate("equal labels, OpenVINO and ONNX Runtime", "fp32 files", "parity",
                Estimate(value=agreement, low=None, high=None, n=n), ">=", limits.fp32_parity)


def int8_parity(dice: float, n: int, limits: Limits) -> Gate:
    """The two INT8 files against each other, on `n` cases."""
    return gate("least Dice of a structure, OpenVINO and ONNX Runtime", "int8 files", "parity",
                Estimate(value=dice, low=None, high=None, n=n), ">=", limits.int8_parity)


def speed_gates(speeds: Speeds) -> list[Gate]:
    """Every precision but FP32 must beat FP32 in its runtime: the whole interval of the paired ratio above 1."""
    return [gate("times as fast as FP32", f"{s.backend} {s.precision}", "speed", s.over_fp32, ">", 1.0, tested="low")
            for s in speeds.rows if s.over_fp32 is not None]


def failed(gates: Iterable[Gate]) -> tuple[str, ...]:
    return tuple(g.name for g in gates if not g.passed)
