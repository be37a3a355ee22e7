"""The gates, held against evaluations whose differences are known."""

from dataclasses import replace

import numpy as np
import pytest

from edgeseg.bundle import admission
from edgeseg.bundle.recipe import Limits
from edgeseg.bundle.score import agreement, estimate
from edgeseg.case import Case
from edgeseg.labels import LabelScheme
from edgeseg.manifest import Admission, CpuClass, Estimate, Speed, Speeds
from edgeseg.measure.evaluate import Evaluation, Row
from edgeseg.measure.statistics import Interval
from edgeseg.preprocess import Normalisation, Preprocessing

SCHEME = LabelScheme(("background", "RV", "MYO", "LV"), (0, 1, 2, 3))
PATIENTS = 12


def evaluation(dice=0.9, hd95=5.0, volume=1.0, spread=0.0, es=1.0):
    """Twelve patients, ED and ES; `dice` (plus a fixed patient-wise pattern of size `spread`), `volume` scales all
    volumes, `es` those at ES alone."""
    rows = []
    for i in range(PATIENTS):
        for phase, size in (("ED", 100.0 + i), ("ES", (45.0 + i) * es)):
            for structure in SCHEME.foreground:
                value = dice + spread * (-1) ** i
                rows.append(Row(f"p{i:02d}_{phase}", f"p{i:02d}", None, None, phase, structure, *[value] * 4, hd95,
                                size * volume, size, 0.0))
    return Evaluation(SCHEME, rows)


def gates(candidate, fp32=None, limits=None):
    return {g.name: g for g in admission.candidate_gates("openvino int8", candidate, fp32 or evaluation(),
                                                         limits or Limits())}


def missed(candidate, **options):
    return {name for name, g in gates(candidate, **options).items() if not g.passed}


def test_what_equals_fp32_passes_every_gate():
    found = gates(evaluation())
    assert missed(evaluation()) == set()
    assert {g.kind for g in found.values()} == {"accuracy", "distance", "clinical"}
    assert {"LV EF bias", "RV EF limits of agreement", "LV EDV bias", "LV mass bias"} <= set(found)
    assert all(g.estimate.n == PATIENTS for g in found.values() if g.name != "values lost")


@pytest.mark.parametrize(("candidate", "names"), [
    ({"dice": 0.885}, {"mean Dice drop", "mean Dice ratio"}),
    ({"dice": 0.8915}, set()),
    # the mean is within the limits, its interval is not
    ({"dice": 0.893, "spread": 0.01}, {"mean Dice drop", "mean Dice ratio"}),
    ({"hd95": 5.6}, {"HD95 rise"}),
    ({"hd95": 4.0}, set()),
    ({"es": 1.05}, {"LV EF bias", "RV EF bias", "LV ESV bias", "RV ESV bias"}),
])
def test_each_gate_sees_its_own_kind_of_damage(candidate, names):
    assert missed(evaluation(**candidate)) == names


def test_a_mass_bias_is_seen_in_percent_of_the_reference():
    found = gates(evaluation(volume=1.03))
    assert found["LV mass bias"].estimate.value == pytest.approx(3.0)
    assert not found["LV mass bias"].passed
    assert found["LV EF bias"].passed  # a common factor cancels


def test_the_sign_of_a_bias_does_not_matter():
    up, down = (gates(evaluation(volume=v))["LV EDV bias"].estimate for v in (1.01, 0.99))
    assert up.value == pytest.approx(down.value)
    mirrored = admission.magnitude(Interval(-2.0, -3.0, -0.5, 10, 100))
    assert (mirrored.value, mirrored.low, mirrored.high) == (2.0, 0.5, 3.0)


def test_limits_come_from_the_recipe():
    assert missed(evaluation(dice=0.885), limits=Limits(dice_drop=0.02, dice_ratio=0.98)) == set()


def test_one_patient_cannot_show_non_inferiority():
    single = Evaluation(SCHEME, [r for r in evaluation().rows if r.patient == "p00"])
    assert "mean Dice drop" in {g.name for g in admission.candidate_gates("openvino int8", single, single, Limits())
                                if not g.passed}


def test_a_scheme_without_ventricles_has_no_clinical_gate():
    rows = [Row(f"c{i}", f"p{i}", None, None, None, "spleen", *[0.9] * 4, 3.0, 200.0, 200.0, 0.0) for i in range(4)]
    organ = Evaluation(LabelScheme(("background", "spleen"), (0, 1)), rows)
    kinds = {g.kind for g in admission.candidate_gates("openvino int8", organ, organ, Limits())}
    assert kinds == {"accuracy", "distance"}


def test_the_ratio_carries_the_interval_of_the_drop():
    found = admission.ratio(Interval(0.009, 0.0045, 0.018, 10, 0), 0.9)
    assert (found.value, found.low, found.high) == pytest.approx((0.99, 0.98, 0.995))
    assert admission.ratio(Interval(0.0, 0.0, 0.0, 4, 0), 0.0).value == 1.0  # FP32 finds nothing either


def test_a_structure_that_is_lost_in_one_case_misses_a_gate_of_its_own():
    whole, broken = evaluation(), evaluation()
    k = next(i for i, r in enumerate(broken.rows) if (r.case, r.structure) == ("p03_ED", "RV"))
    broken.rows[k] = replace(broken.rows[k], hd95_mm=float("nan"), volume_ml=0.0)  # its EDV is 0, so its EF undefined
    found = gates(broken)["values lost"]
    assert found.estimate.value == 2.0  # a distance and an EF
    assert not found.passed
    assert gates(whole, fp32=broken)["values lost"].passed  # what only the candidate has is no loss


def test_few_patients_at_the_margin_do_not_pass_by_luck():
    rng, passed = np.random.default_rng(0), 0
    for _ in range(400):
        drops = 0.01 + rng.normal(0, 0.005, 4)  # a true drop at the limit, four patients
        rows = [[Row(f"c{i}", f"p{i}", None, None, None, "spleen", 0.9 - d, 0, 0, 0, 3.0, 1.0, 1.0, 0.0)
                 for i, d in enumerate(x)] for x in (drops, np.zeros(4))]
        scheme = LabelScheme(("background", "spleen"), (0, 1))
        table = admission.candidate_gates("openvino int8", *(Evaluation(scheme, r) for r in rows), Limits())
        passed += next(g.passed for g in table if g.name == "mean Dice drop")
    assert passed / 400 < 0.05  # nominally 2.5 %; the percentile bootstrap passes 11 %


def test_parity_gates_hold_their_limits():
    assert admission.fp32_parity(0.99995, 10, Limits()).passed
    assert not admission.fp32_parity(0.9998, 10, Limits()).passed
    assert admission.int8_parity(0.985, 10, Limits()).passed
    assert not admission.int8_parity(0.97, 10, Limits()).passed


def speeds(low):
    ratio = Estimate(value=1.5, low=low, high=2.0, n=5)
    rows = (Speed(backend="openvino", precision="fp32", median_ms=2.0, over_fp32=None),
            Speed(backend="openvino", precision="int8", median_ms=1.3, over_fp32=ratio))
    return Speeds(cpu_class=CpuClass(isa=("avx2",), cores=2), cpu="x", threads=2, busy=False, rows=rows)


def test_the_whole_interval_of_the_speed_up_must_lie_above_one():
    assert [g.passed for g in admission.speed_gates(speeds(1.01))] == [True]
    assert [g.passed for g in admission.speed_gates(speeds(1.0))] == [False]
    assert [g.passed for g in admission.speed_gates(speeds(None))] == [False]


def test_a_precision_is_admitted_by_all_its_gates_but_speed():
    accuracy = admission.candidate_gates("openvino int8", evaluation(), evaluation(), Limits())
    parity = [admission.fp32_parity(1.0, 10, Limits()), admission.int8_parity(0.99, 10, Limits())]

    def admitted(*found):
        return Admission(data="d", split="dev", patients=12, gates=tuple(found)).admitted("openvino", "int8")

    slow = admission.speed_gates(speeds(0.5))
    assert admitted(*accuracy, *parity, *slow)
    assert not admitted(*parity)  # no evidence of accuracy
    assert not admitted(*accuracy[:-1], accuracy[-1].model_copy(update={"passed": False}), *parity)
    assert not admitted(*accuracy, admission.int8_parity(0.9, 10, Limits()))
    assert not Admission(data="d", split="dev", patients=12, gates=tuple(accuracy)).admitted("onnxruntime", "int8")


def test_agreement_counts_foreground_pixels_only():
    grid = Preprocessing((4, 4), (1.0, 1.0), (Normalisation("none"),))
    frames = np.zeros((1, 1, 4, 4), np.float32)
    frames[0, 0, 0] = [1, 1, 1, 2]

    def net(x):
        return np.concatenate([(x[:, :1] == k).astype(np.float32) for k in range(3)], axis=1)

    def other(x):
        return net(np.where((x == 2), np.float32(1), x))

    cases = [Case("c", "p", frames, (1.0, 1.0))]
    assert agreement(net, net, cases, grid, 2) == (1.0, 1.0)
    share, least = agreement(net, other, cases, grid, 2)
    assert share == pytest.approx(3 / 4)
    assert least == 0.0  # class 2 is not in the other at all
    assert agreement(net, net, [Case("c", "p", frames * 0 + np.eye(4, dtype=np.float32) * 9, (1.0, 1.0))], grid, 2
                     ) == (1.0, 1.0)


def test_nan_ends_of_an_interval_become_none():
    found = estimate(Interval(1.0, float("nan"), float("nan"), 1, 0))
    assert (found.value, found.low, found.high, found.n) == (1.0, None, None, 1)
