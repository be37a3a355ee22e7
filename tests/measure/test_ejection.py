import math

import numpy as np
import pytest
from heart_curves import FRAME_TIME, clip
from scipy import stats

from edgeseg.measure.ejection import (
    area_length_ml,
    beats,
    clip_ef,
    ef_agreement,
    long_axis_mm,
    naive_ef,
    stack_ef,
    volume_curve,
)
from edgeseg.measure.phases import Phases, find_phases

NAN = float("nan")


def ellipse(a_mm: float, b_mm: float, angle: float = 0.0, spacing=(0.5, 0.5), size=(240, 240)) -> np.ndarray:
    """Half axes in mm, long axis turned by `angle` from the rows' direction."""
    y, x = (np.arange(n) * s for n, s in zip(size, spacing, strict=True))
    y, x = np.meshgrid(y - y.mean(), x - x.mean(), indexing="ij")
    along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
    return (along / a_mm) ** 2 + (across / b_mm) ** 2 <= 1


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 4, 1.5])
@pytest.mark.parametrize("spacing", [(0.5, 0.5), (0.4, 0.7)])
def test_area_length_is_exact_for_an_ellipsoid_whichever_way_it_lies(angle, spacing):
    volume = area_length_ml(ellipse(45, 22, angle, spacing, (260, 240)), spacing)
    assert volume == pytest.approx(4 / 3 * math.pi * 45 * 22**2 / 1000, rel=0.02)


def test_the_long_axis_of_a_ventricle_cut_off_at_its_base_ends_there():
    bullet = ellipse(50, 20)
    bullet[150:] = False  # mitral plane: rows 20 .. 149 of 0.5 mm
    assert long_axis_mm(bullet, (0.5, 0.5)) == pytest.approx(65, abs=1)


def test_empty_and_single_pixel_masks_have_volumes():
    empty = np.zeros((9, 9), bool)
    assert area_length_ml(empty, (1, 1)) == long_axis_mm(empty, (1, 1)) == 0
    empty[4, 4] = True
    assert long_axis_mm(empty, (2.0, 2.0)) >= 2
    assert area_length_ml(empty, (2.0, 2.0)) > 0


def test_ef_by_area_length_does_not_depend_on_the_pixel_size():
    ed, es = ellipse(45, 22), ellipse(38, 15)
    known, unknown = (volume_curve(np.stack([ed] * 2 + [es] * 2), s) for s in ((0.5, 0.5), (1.0, 1.0)))
    phases = Phases((0,), (3,))
    assert clip_ef(known, phases) == pytest.approx(clip_ef(unknown, phases))
    assert clip_ef(known, phases) == pytest.approx(100 * (1 - 38 * 15**2 / (45 * 22**2)), abs=1.5)


def test_naive_ef_by_hand_and_lower_than_that_of_the_volume():
    assert naive_ef(1000, 600) == pytest.approx(40)
    assert math.isnan(naive_ef(0, 10))
    area = 0.4 ** (2 / 3)  # the area of a shape that keeps its form while its volume falls by 60 %
    assert naive_ef(1, area) == pytest.approx(45.7, abs=0.1)


def test_ef_of_a_short_axis_stack_sums_disks():
    y, x = np.mgrid[:64, :64]
    radius = np.hypot(y - 32, x - 32)
    ed = np.stack([radius < r for r in (10, 18, 20, 19)])
    es = np.stack([radius < r for r in (0, 9, 12, 12)])
    expected = 100 * (1 - sum(r**2 for r in (0, 9, 12, 12)) / sum(r**2 for r in (10, 18, 20, 19)))
    assert stack_ef(ed, es, (8.0, 1.4, 1.4)) == pytest.approx(expected, abs=1)


def test_a_systole_is_an_ed_followed_by_an_es():
    assert beats(Phases((10, 50, 90), (25, 65))) == [(10, 25), (50, 65)]
    assert beats(Phases((50, 90), (25, 65))) == [(50, 65)]
    assert beats(Phases((50,), (25,))) == [(50, 25)]  # a clip from ES to ED
    assert beats(Phases((10, 20), (35, 40))) == [(20, 35)]
    assert beats(Phases((10,), ())) == beats(Phases()) == []


def test_ef_of_a_clip_is_the_mean_over_its_beats():
    curve = np.repeat([100, 40, 100, 60, 100.0], 3)
    assert clip_ef(curve, Phases((1, 7, 13), (4, 10))) == pytest.approx(50)


def test_no_beat_hangs_on_one_frame():
    curve = np.repeat([100, 40, 100.0], 5)
    curve[[2, 7]] = (130, 20)
    assert clip_ef(curve, Phases((2,), (7,))) == pytest.approx(60)


def test_ef_of_a_clip_stands_noise_and_lost_frames():
    curve, truth = clip([45, 50, 42])
    exact = 100 * (1 - 900 / 1600)
    assert clip_ef(curve, truth) == pytest.approx(exact, abs=1)
    rng = np.random.default_rng(0)
    noisy = curve * (1 + 0.02 * rng.standard_normal(len(curve)))
    noisy[[truth.es[0], truth.ed[1]]] = (0, np.nan)
    found = find_phases(noisy, FRAME_TIME, valves=False)
    assert clip_ef(noisy, found) == pytest.approx(exact, abs=2.5)


def test_ef_of_a_clip_that_does_not_beat_is_unknown():
    assert math.isnan(clip_ef(np.full(50, 100.0), Phases()))
    assert math.isnan(clip_ef(np.full(50, NAN), Phases((10,), (20,))))
    assert math.isnan(clip_ef(np.zeros(50), Phases((10,), (20,))))


def test_agreement_has_pearson_mae_bias_and_limits():
    rng = np.random.default_rng(1)
    reference = rng.uniform(20, 70, 40)
    measured = reference + 3 + rng.normal(0, 4, 40)
    found = ef_agreement(measured, reference)
    assert found.r.value == pytest.approx(stats.pearsonr(measured, reference).statistic)
    assert found.r.low < found.r.value < found.r.high <= 1
    difference = measured - reference
    assert found.agreement.bias.value == pytest.approx(difference.mean())
    assert found.agreement.mae.value == pytest.approx(np.abs(difference).mean())
    spread = 1.96 * difference.std(ddof=1)
    assert found.agreement.limits == pytest.approx((difference.mean() - spread, difference.mean() + spread))
    assert (found.n, found.left_out, found.agreement.n) == (40, 0, 40)


def test_pairs_with_an_unknown_ef_are_left_out_and_counted():
    found = ef_agreement([50, NAN, 30, 61], [52, 40, NAN, 60])
    assert (found.n, found.left_out) == (2, 2)
    assert found.r.value == pytest.approx(1)
    assert found.agreement.bias.value == pytest.approx(-0.5)


@pytest.mark.parametrize("pairs", [([], []), ([50.0], [50.0]), ([50.0, 50.0, 50.0], [40.0, 60.0, 50.0])])
def test_a_correlation_that_is_not_defined_is_nan(pairs):
    assert math.isnan(ef_agreement(*pairs).r.value)


def test_ef_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="different lengths"):
        ef_agreement([50, 60], [50])
