import math

import numpy as np
import pytest

from edgeseg.measure.volumes import ejection_fraction, mass_g, volume_ml


def test_a_volume_is_voxels_times_spacing():
    mask = np.zeros((3, 10, 10), bool)
    mask[:2, :5, :4] = True
    assert volume_ml(mask, (10.0, 1.5, 1.25)) == pytest.approx(40 * 10 * 1.5 * 1.25 / 1000)


def test_ejection_fraction_by_hand():
    assert ejection_fraction(150.0, 60.0) == pytest.approx(60.0)
    assert ejection_fraction(100.0, 110.0) == pytest.approx(-10.0)


def test_ejection_fraction_without_a_cavity_is_undefined():
    assert math.isnan(ejection_fraction(0.0, 10.0))
    assert math.isnan(ejection_fraction(float("nan"), 10.0))


def test_mass_of_100_ml_of_myocardium():
    assert mass_g(100.0) == pytest.approx(105.0)
