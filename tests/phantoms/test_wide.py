"""The randomised domain of the cine phantom: reproducible, true to its labels, wider than the plain one."""

import numpy as np
import pytest
from scipy import ndimage

from edgeseg.errors import EdgesegError
from edgeseg.measure.volumes import volume_ml
from edgeseg.phantoms.cine import cine_patient, cine_volume, true_volumes
from edgeseg.phantoms.deform import Bender, Deformation
from edgeseg.phantoms.heart import GROUPS, contours
from edgeseg.phantoms.wide import wide_patient
from edgeseg.readers import open_data

RV, MYO, LV = 1, 2, 3
PATIENTS = range(10)


@pytest.fixture(scope="module")
def stacks():
    """(patient, frames, labels) of end-diastole."""
    return [(p := wide_patient(i, seed=3), *cine_volume(p, 0.0)) for i in PATIENTS]


def test_same_seed_same_data_in_any_order(stacks):
    cine_volume(wide_patient(7, seed=1), 0.3)
    again = cine_volume(wide_patient(4, seed=3), 0.0)
    np.testing.assert_array_equal(again[0], stacks[4][1])
    np.testing.assert_array_equal(again[1], stacks[4][2])


def test_data_of_patient_4_are_those_of_every_machine(stacks):
    """Coarse on purpose: a rounding difference passes, another random stream does not."""
    patient, frames, labels = stacks[4]
    assert (patient.group, patient.shape, patient.spacing, len(patient.levels)) == ("RV", (256, 256), 1.6797, 9)
    np.testing.assert_allclose(np.bincount(labels.ravel(), minlength=4)[1:], [6365, 2701, 2788], atol=5)
    means = [17.4, 16.5, 18.3, 15.7, 17.7, 13.9, 13.1, 15.1, 16.3]
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), means, atol=0.5)


def test_phases_of_a_case_are_the_stacks_of_its_patient():
    """The scenes kept between two reads change nothing."""
    refs = open_data("phantom:cine?n=6&seed=3&domain=wide").refs
    for ref in (refs[9], refs[8], refs[2]):  # any order
        patient = wide_patient(int(ref.patient[-4:]), seed=3)
        frames, labels = cine_volume(patient, 0.0 if ref.phase == "ED" else patient.heart.es)
        case = ref.load()
        assert (case.id, case.patient, case.group) == (ref.id, ref.patient, patient.group)
        np.testing.assert_array_equal(case.frames, frames)
        np.testing.assert_array_equal(case.labels, labels)


def test_data_of_the_plain_domain_are_not_those_of_this_one():
    wide, plain = (open_data(f"phantom:cine?n=2&seed=0{more}") for more in ("&domain=wide", ""))
    assert not {r.id for r in wide.refs} & {r.id for r in plain.refs}
    assert wide_patient(1).spacing != cine_patient(1).spacing


def test_frames_are_like_stored_images(stacks):
    for patient, frames, labels in stacks:
        assert frames.dtype == np.float32
        assert labels.dtype == np.uint8
        assert frames.shape == (len(patient.levels), 1, *patient.shape) == (len(labels), 1, *labels.shape[1:])
        assert np.isfinite(frames).all()
        assert frames.min() >= 0
        assert 50 < frames.max() < 65535
        np.testing.assert_array_equal(frames, np.rint(frames))


def test_every_group_and_every_structure_comes_up(stacks):
    assert {p.group for p, _, _ in stacks} == set(GROUPS)
    for _, _, labels in stacks:
        assert set(np.unique(labels)) == {0, RV, MYO, LV}


def test_myocardium_encloses_the_cavity_in_mid_slices(stacks):
    for patient, _, labels in stacks:
        k = int(np.argmin(np.abs(patient.levels - 0.5 * patient.heart.depth)))
        ring = ndimage.binary_fill_holes(labels[k] == MYO)
        assert not ((labels[k] == LV) & ~ring).any()
        assert (ndimage.binary_dilation(labels[k] == RV) & (labels[k] == MYO)).any()


def test_areas_of_labels_are_those_of_the_contours(stacks):
    """The scene is deformed, areas are not: summed over the slices, within what pixels and the deformation's second
    order leave."""
    for patient, _, labels in stacks:
        at = contours(patient.heart, patient.levels, 0.0)
        true = {MYO: at.epi**2 - at.endo**2, LV: at.endo**2, RV: np.clip(at.free_wall**2 - at.septum**2, 0, None)}
        for value, radii in true.items():
            ml = radii.mean() * len(radii) * np.pi * patient.slice_spacing / 1000
            found = volume_ml(labels == value, (patient.slice_spacing, patient.spacing, patient.spacing))
            assert found == pytest.approx(ml, rel=0.1)


def test_label_volumes_are_near_the_true_ones_on_average(stacks):
    ratios = [volume_ml(labels == LV, (p.slice_spacing, p.spacing, p.spacing)) / true_volumes(p, 0.0)["LV"]
              for p, _, labels in stacks]
    assert np.mean(ratios) == pytest.approx(1, abs=0.12)


def test_contrast_and_shape_vary_more_than_in_the_plain_domain():
    wide, plain = ([draw(i, 5) for i in range(100)] for draw in (wide_patient, cine_patient))
    for value in (lambda p: p.body.muscle, lambda p: p.tissue.right_blood, lambda p: p.body.lung,
                  lambda p: p.body.liver, lambda p: p.scan.blur, lambda p: p.turn):
        assert np.std([value(p) for p in wide]) > 1.1 * np.std([value(p) for p in plain])
    assert {p.tissue.ink for p in wide} == {-1.0, 1.0}


def test_blood_is_brighter_than_muscle(stacks):
    for _, frames, labels in stacks:
        image = frames[:, 0]
        assert np.median(image[labels == MYO]) < 0.95 * np.median(image[labels == LV])


def test_a_deformation_keeps_areas():
    pixel, shape = 1.0, (200, 200)
    y, x = (np.indices(shape).astype(np.float32) + 0.5 - 100) * np.float32(pixel)
    for seed in range(5):
        bend = Bender(Deformation(0.15, 0.4, ((2.0, 60.0), (0.35, 20.0))), shape, pixel)
        bx, by = bend(x, y, (seed, 1))
        assert np.abs(bx - x).max() > 1
        assert (np.hypot(bx, by) < 40).sum() == pytest.approx(np.pi * 40**2, rel=0.04)


def test_unknown_domain_is_refused_in_one_line():
    with pytest.raises(EdgesegError, match="domain=narrow") as caught:
        open_data("phantom:cine?n=2&domain=narrow")
    assert "\n" not in str(caught.value)
