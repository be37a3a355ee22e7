"""The cine phantom: reproducible, labelled consistently, with volumes that its labels reproduce."""

import pickle

import numpy as np
import pytest
from scipy import ndimage

from edgeseg.errors import EdgesegError
from edgeseg.measure.volumes import ejection_fraction, volume_ml
from edgeseg.phantoms.cine import SPLIT, cine_beat, cine_dataset, cine_patient, cine_scenes, cine_volume, true_volumes
from edgeseg.phantoms.heart import GROUPS, contours, contraction
from edgeseg.readers import open_data

RV, MYO, LV = 1, 2, 3
PATIENTS = range(6)


@pytest.fixture(scope="module")
def stacks():
    """(patient, phase name) -> patient, frames, labels of some patients."""
    made = {}
    for index in PATIENTS:
        patient = cine_patient(index)
        scenes = cine_scenes(patient)
        for name, phase in (("ED", 0.0), ("ES", patient.heart.es)):
            made[index, name] = (patient, *cine_volume(patient, phase, scenes))
    return made


def millilitres(patient, labels, value):
    return volume_ml(labels == value, (patient.slice_spacing, patient.spacing, patient.spacing))


def test_same_seed_same_data_in_any_order(stacks):
    cine_volume(cine_patient(9, seed=4), 0.6)
    patient, frames, labels = stacks[2, "ES"]
    again = cine_volume(cine_patient(2), patient.heart.es)
    np.testing.assert_array_equal(again[0], frames)
    np.testing.assert_array_equal(again[1], labels)


def test_index_and_seed_change_the_patient():
    volumes = {round(true_volumes(cine_patient(i, s), 0.0)["LV"], 3) for i in range(4) for s in range(3)}
    assert len(volumes) == 12


def test_data_of_patient_0_are_those_of_every_machine(stacks):
    """Coarse on purpose: a rounding difference passes, another random stream does not."""
    patient, frames, labels = stacks[0, "ED"]
    assert (patient.group, patient.shape, patient.spacing, len(patient.levels)) == FINGERPRINT["patient"]
    np.testing.assert_allclose(np.bincount(labels.ravel(), minlength=4)[1:], FINGERPRINT["labels"], atol=5)
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), FINGERPRINT["means"], atol=0.5)


def test_frames_are_like_stored_cine(stacks):
    for patient, frames, labels in stacks.values():
        assert frames.dtype == np.float32
        assert labels.dtype == np.uint8
        assert frames.shape == (len(patient.levels), 1, *patient.shape) == (len(labels), 1, *labels.shape[1:])
        assert 6 <= len(frames) <= 12
        assert all(200 <= n <= 288 for n in patient.shape)
        assert frames.min() >= 0
        assert 100 < frames.max() < 4000
        np.testing.assert_array_equal(frames, np.rint(frames))


def test_spacing_lies_in_the_ranges_of_cine():
    patients = [cine_patient(i, seed=1) for i in range(60)]
    assert all(0.8 <= p.spacing <= 1.95 for p in patients)
    assert all(5 <= p.slice_spacing <= 12 for p in patients)
    assert len({p.spacing for p in patients}) > 30


def test_every_stack_has_three_structures_away_from_the_border(stacks):
    for _, _, labels in stacks.values():
        assert set(np.unique(labels)) == {0, RV, MYO, LV}
        assert not labels[:, [0, -1]].any()
        assert not labels[:, :, [0, -1]].any()


def test_myocardium_encloses_the_cavity_in_mid_slices(stacks):
    for patient, _, labels in stacks.values():
        for k in np.flatnonzero((patient.levels > 0.35 * patient.heart.depth) & (labels == LV).any(axis=(1, 2))):
            ring = ndimage.binary_fill_holes(labels[k] == MYO)
            assert not ((labels[k] == LV) & ~ring).any()
            assert ndimage.label(labels[k] == MYO)[1] == 1


def test_right_ventricle_touches_the_septum_but_not_the_cavity_in_mid_slices(stacks):
    for patient, _, labels in stacks.values():
        k = int(np.argmin(np.abs(patient.levels - 0.45 * patient.heart.depth)))
        near = ndimage.binary_dilation(labels[k] == RV, iterations=1)
        assert (near & (labels[k] == MYO)).any()
        assert not (near & (labels[k] == LV)).any()


def test_apex_has_no_right_ventricle_and_a_smaller_left_one(stacks):
    for patient, _, labels in stacks.values():
        areas = (labels == LV).sum(axis=(1, 2))
        last = np.flatnonzero((labels > 0).any(axis=(1, 2)))[-1]
        assert areas[last] < 0.6 * areas.max()
        assert not (labels[patient.levels > patient.heart.length] == RV).any()


def test_label_volumes_are_unbiased_and_near_the_true_ones():
    """Simpson's rule on a stack at random levels is right on average; a single stack misses some percent."""
    ratios = []
    for index in range(80):
        patient = cine_patient(index, seed=2)
        at = contours(patient.heart, patient.levels, 0.0)
        sampled = (at.endo**2).mean(axis=1).sum() * np.pi * patient.slice_spacing / 1000
        ratios.append(sampled / true_volumes(patient, 0.0)["LV"])
    assert abs(np.mean(ratios) - 1) < 0.02
    assert np.std(ratios) < 0.08


def test_ejection_fraction_of_labels_is_near_the_true_one(stacks):
    errors = []
    for index in PATIENTS:
        patient, _, diastole = stacks[index, "ED"]
        systole = stacks[index, "ES"][2]
        true = [true_volumes(patient, phase)["LV"] for phase in (0.0, patient.heart.es)]
        measured = [millilitres(patient, labels, LV) for labels in (diastole, systole)]
        assert measured[1] < measured[0]
        errors.append(ejection_fraction(*measured) - ejection_fraction(*true))
    assert np.abs(errors).max() < 12
    assert abs(np.mean(errors)) < 6


def test_groups_differ_as_their_names_say():
    patients = [cine_patient(i) for i in range(30)]
    volumes = [true_volumes(p, 0.0) for p in patients]
    lv, rv, wall = ({g: np.mean([v for v, p in zip(values, patients, strict=True) if p.group == g]) for g in GROUPS}
                    for values in ([v["LV"] for v in volumes], [v["RV"] for v in volumes],
                                   [p.heart.wall for p in patients]))
    assert max(lv, key=lv.__getitem__) == "DCM"
    assert max(rv, key=rv.__getitem__) == "RV"
    assert max(wall, key=wall.__getitem__) == "HCM"


def test_wall_thickens_and_base_descends_in_systole():
    heart = cine_patient(0).heart
    rest, squeezed = (contours(heart, np.array([0.5 * heart.depth]), c) for c in (0.0, 1.0))
    assert (squeezed.epi - squeezed.endo).mean() > 1.15 * (rest.epi - rest.endo).mean()
    top = np.array([0.02 * heart.depth])
    assert contours(heart, top, 0.0).epi.any()
    assert not contours(heart, top, 1.0).epi.any()


def test_one_beat_contracts_once():
    heart = cine_patient(3).heart
    beat = np.array([contraction(heart, t) for t in np.linspace(0, 1, 101)])
    peak = int(beat.argmax())
    assert beat[0] == 0
    assert beat[-1] == pytest.approx(0, abs=1e-9)
    assert beat[peak] == pytest.approx(1, abs=0.01)
    assert (np.diff(beat[:peak]) >= 0).all()
    assert (np.diff(beat[peak:]) <= 0).all()
    assert peak / 100 == pytest.approx(heart.es, abs=0.02)


def test_beat_starts_with_the_ed_stack(stacks):
    frames, labels = cine_beat(1, phases=3)
    _, ed_frames, ed_labels = stacks[1, "ED"]
    assert frames.shape == (3, *ed_frames.shape)
    np.testing.assert_array_equal(frames[0], ed_frames)
    np.testing.assert_array_equal(labels[0], ed_labels)
    assert (labels[1] == LV).sum() < (ed_labels == LV).sum()


def test_blood_is_brighter_than_muscle_and_lookalikes_are_as_bright(stacks):
    for _, frames, labels in stacks.values():
        image = frames[:, 0]
        blood, muscle = np.median(image[labels == LV]), np.median(image[labels == MYO])
        assert 0.2 < muscle / blood < 0.75
        away = ~ndimage.binary_dilation(labels > 0, iterations=6, structure=np.ones((1, 3, 3)))
        assert (image[away] > 0.8 * blood).mean() > 0.01


def test_dataset_has_two_labelled_cases_a_patient_and_patient_level_splits(stacks):
    data = open_data("phantom:cine?n=20&seed=0")
    assert len(data) == 40
    assert [len(data.select(s).patients()) for s in ("train", "dev", "val")] == [14, 2, 4]
    assert {s for r in data.refs[:6] for s in [r.split]} == set(SPLIT)
    assert data.scheme.names == ("background", "RV", "MYO", "LV")
    ref = pickle.loads(pickle.dumps(data.refs[5]))
    case = ref.load()
    assert (ref.id, case.id, case.patient, case.phase) == ("phantom0002_ES", "phantom0002_ES", "phantom0002", "ES")
    assert (case.group, case.axis) == (ref.group, "slice")
    np.testing.assert_array_equal(case.labels, stacks[2, "ES"][2])


@pytest.mark.parametrize("options", [{"n": "0"}, {"n": "two"}, {"seed": "-1"}, {"size": "9"}])
def test_bad_options_are_refused_in_one_line(options):
    with pytest.raises(EdgesegError, match="phantom:cine\\?bad: ") as caught:
        cine_dataset(options, "phantom:cine?bad")
    assert "\n" not in str(caught.value)
    assert next(iter(options)) in str(caught.value)


FINGERPRINT = {
    "patient": ("NOR", (240, 200), 1.6404, 11),
    "labels": [6071, 3949, 3775],
    "means": [20.6, 18.9, 19.4, 18.8, 18.5, 21.5, 18.3, 22.2, 18.3, 19.0, 18.4],
}
