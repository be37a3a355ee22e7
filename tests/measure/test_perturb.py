from dataclasses import replace

import numpy as np
import pytest

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.measure import perturb
from edgeseg.measure.overlap import dice_per_class
from edgeseg.readers import open_data

ROWS = {row.name: row for row in perturb.perturbations()}


@pytest.fixture(scope="module")
def case() -> Case:
    """A phantom whose rows and columns differ in number and spacing, so that no axis can be taken for another."""
    found = open_data("phantom:cine?n=1&seed=3").refs[0].load()
    return replace(found, frames=found.frames[1:6, :, 8:-8], labels=found.labels[1:6, 8:-8], spacing=(1.4, 1.3))


def same(a: Case, b: Case) -> None:
    np.testing.assert_array_equal(a.frames, b.frames)
    np.testing.assert_array_equal(a.labels, b.labels)
    assert a.spacing == b.spacing


def heart(case: Case) -> np.ndarray:
    """(row, column) of the centre of all labels, mm from the image's centre."""
    at = np.argwhere(case.labels > 0)[:, 1:].mean(axis=0)
    return (at - (np.array(case.labels.shape[1:]) - 1) / 2) * case.spacing


def test_rows_have_names_of_their_own_and_leave_patient_and_geometry_of_the_stack_alone(case):
    assert len(ROWS) == len(perturb.perturbations()) >= 35
    for row in ROWS.values():
        changed = row.change(case)
        assert (changed.id, changed.patient, changed.phase, changed.scheme) == (
            case.id, case.patient, case.phase, case.scheme), row.name
        assert set(np.unique(changed.labels)) == {0, 1, 2, 3}, row.name
        assert not (np.array_equal(changed.frames, case.frames)), row.name
        depth = len(changed.frames) * changed.slice_spacing
        assert row.group == "slices" or depth == len(case.frames) * case.slice_spacing


def test_a_row_does_the_same_each_time_and_only_draws_change_with_the_seed_and_the_case(case):
    again = {row.name: row for row in perturb.perturbations()}
    other = {row.name: row for row in perturb.perturbations(seed=1)}
    drawn = {name for name, row in ROWS.items() if row.group in ("noise", "bias field")}
    assert len(drawn) == 5
    for name, row in ROWS.items():
        first = row.change(case)
        same(first, again[name].change(case))
        assert (not np.array_equal(first.frames, other[name].change(case).frames)) == (name in drawn), name
    for name in drawn:
        assert not np.array_equal(ROWS[name].change(replace(case, id="another")).frames, ROWS[name].change(case).frames)


def test_turns_are_the_seven_others_of_the_square_and_are_undone_by_their_inverse(case):
    seen = {case.frames[0, 0, :9, :9].tobytes()}
    for quarters, mirrored in perturb.TURNS.values():
        turned = perturb.turn(case, quarters, mirrored)
        square = replace(case, frames=case.frames[:, :, :9, :9], labels=case.labels[:, :9, :9])
        seen.add(perturb.turn(square, quarters, mirrored).frames[0, 0].tobytes())
        assert turned.spacing == (case.spacing if quarters % 2 == 0 else case.spacing[::-1])
        same(perturb.turn(turned, quarters if mirrored else -quarters, mirrored), case)
    assert len(seen) == 8


def test_turns_do_what_their_names_say(case):
    image = case.frames[:, 0]
    for name, expected in (("flipped left to right", image[:, :, ::-1]), ("flipped upside down", image[:, ::-1]),
                           ("transposed", image.transpose(0, 2, 1)), ("turned 180 degrees", image[:, ::-1, ::-1])):
        np.testing.assert_array_equal(ROWS[name].change(case).frames[:, 0], expected, name)


@pytest.mark.parametrize("mm", [0.7, 1.0, 2.5])
def test_resampling_keeps_the_field_of_view_the_volumes_and_the_mean(case, mm):
    changed = perturb.resample(case, mm)
    np.testing.assert_allclose(np.multiply(changed.spacing, changed.labels.shape[1:]),
                               np.multiply(case.spacing, case.labels.shape[1:]))
    np.testing.assert_allclose(changed.spacing, mm, rtol=0.01)
    for value in (1, 2, 3):
        before, after = ((c.labels == value).sum() * np.prod(c.spacing) for c in (case, changed))
        assert after == pytest.approx(before, rel=0.04)
    assert changed.frames.mean() == pytest.approx(case.frames.mean(), rel=0.01)
    assert np.abs(heart(changed) - heart(case)).max() < 0.2  # nothing moved by half a pixel


def test_resampling_to_the_same_pixels_changes_nothing_and_there_and_back_little(case):
    square = replace(case, spacing=(1.4, 1.4))
    same_grid = perturb.resample(square, 1.4)
    np.testing.assert_allclose(same_grid.frames, square.frames, rtol=1e-6)
    np.testing.assert_array_equal(same_grid.labels, square.labels)
    back = perturb.resample(perturb.resample(square, 0.7), 1.4)
    assert dice_per_class(back.labels, square.labels, 4).min() > 0.99


def test_coarser_pixels_do_not_alias(case):
    stripes = np.zeros((1, 1, 100, 100), np.float32)
    stripes[..., ::2, :] = 100  # nothing but the mean may be left of them at 2.5 times the pixel
    coarse = perturb.resample(Case("a", "a", stripes, (1.0, 1.0)), 2.5)
    assert np.abs(coarse.frames[..., 2:-2, 2:-2] - 50).max() < 10
    assert coarse.labels is None


@pytest.mark.parametrize("direction", perturb.DIRECTIONS.values(), ids=perturb.DIRECTIONS)
def test_the_heart_is_60_mm_off_centre_and_whole(case, direction):
    moved = perturb.off_centre(case, direction)
    wanted = 60 * np.array(direction) / np.hypot(*direction)
    assert np.abs(heart(moved) - wanted).max() <= max(case.spacing)
    assert (moved.labels > 0).sum() == (case.labels > 0).sum()
    np.testing.assert_array_equal(moved.frames[:, 0][moved.labels > 0], case.frames[:, 0][case.labels > 0])
    assert case.frames.min() <= moved.frames.min()
    assert moved.frames.max() <= case.frames.max()


def test_the_image_grows_only_where_the_heart_would_leave_it(case):
    rows, cols = np.flatnonzero(case.labels.any(axis=(0, 2))), np.flatnonzero(case.labels.any(axis=(0, 1)))
    box = np.s_[..., rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    tight = replace(case, frames=case.frames[box], labels=case.labels[box])
    moved = perturb.off_centre(tight, (0, 1))
    assert (moved.labels > 0).sum() == (case.labels > 0).sum()
    assert heart(moved)[1] == pytest.approx(60, abs=case.spacing[1])
    assert moved.labels.shape[2] > tight.labels.shape[2] + 60
    assert not moved.labels[..., -2:].any()
    assert perturb.off_centre(case, (0, 1)).labels.shape == case.labels.shape


def test_what_a_moved_image_did_not_show_ends_in_its_background(case):
    image = replace(case, frames=np.where(case.frames < 20, 20, case.frames + 100))
    moved = perturb.off_centre(image, (1, 0), mm=100)
    first = moved.frames[:, 0, 0]  # more than 60 mm outside the old image
    assert np.abs(first - np.percentile(image.frames, 1, axis=(1, 2, 3))[:, None]).max() < 1


def test_a_case_without_labels_cannot_be_moved(case):
    for empty in (replace(case, labels=None), replace(case, labels=np.zeros_like(case.labels))):
        with pytest.raises(EdgesegError, match="no labelled pixel"):
            perturb.off_centre(empty, (0, 1))


def test_intensities_are_undone_by_their_inverse(case):
    np.testing.assert_allclose(perturb.scale(perturb.scale(case, 100), 0.01).frames, case.frames, rtol=1e-5)
    np.testing.assert_allclose(perturb.gamma(perturb.gamma(case, 2), 0.5).frames, case.frames, rtol=1e-4)
    top = case.frames.max()
    assert perturb.gamma(case, 2).frames.max() == pytest.approx(top)
    np.testing.assert_allclose(perturb.offset(case, 0.1).frames - case.frames, 0.1 * top, rtol=1e-3)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_stored_values_are_whole_numbers_that_use_all_bits(case, bits):
    frames = perturb.store(case, bits).frames
    np.testing.assert_array_equal(frames, np.rint(frames))
    assert frames.max() == 2**bits - 1
    np.testing.assert_allclose(frames / frames.max(), case.frames / case.frames.max(), atol=0.51 / frames.max())


def test_values_that_are_never_above_0_have_no_gamma(case):
    with pytest.raises(EdgesegError, match="no value is above 0"):
        perturb.gamma(replace(case, frames=case.frames - 1e5), 2)


def test_noise_is_rician_and_of_the_size_it_says(case):
    flat = np.full_like(case.frames, 1000)
    flat[:, :, :40] = 0
    noisy = perturb.rician(replace(case, frames=flat), 20).frames
    assert noisy[:, :, 40:].std() == pytest.approx(50, rel=0.02)
    assert noisy[:, :, :40].mean() == pytest.approx(50 * np.sqrt(np.pi / 2), rel=0.02)  # Rayleigh, where no signal is
    assert noisy.min() >= 0


def test_a_bias_field_is_smooth_the_same_for_all_slices_and_of_the_ratio_it_says(case):
    ones = np.ones_like(case.frames)
    ones[0, 0, 0, 0] = 2  # a Case is not constant
    field = perturb.bias(replace(case, frames=ones), 3.0).frames[1:, 0]
    assert field.max() / field.min() == pytest.approx(3, rel=1e-3)
    assert (field == field[0]).all()
    assert max(np.abs(np.diff(field, axis=a)).max() for a in (1, 2)) < 0.05


@pytest.mark.parametrize("count", range(1, 12))
def test_fewer_slices_are_those_that_their_name_says(count):
    numbers = np.arange(count)
    assert numbers[perturb.every_second(count)].tolist() == list(range(0, count, 2))
    middle = numbers[perturb.middle_three(count)]
    assert len(middle) == min(3, count)
    assert abs(middle.mean() - (count - 1) / 2) <= 0.5


def test_the_slices_that_are_left_keep_their_labels_and_their_distance(case):
    sparse = ROWS["every second slice"].change(case)
    np.testing.assert_array_equal(sparse.frames, case.frames[::2])
    np.testing.assert_array_equal(sparse.labels, case.labels[::2])
    assert sparse.slice_spacing == 2 * case.slice_spacing
    assert ROWS["the middle three slices"].change(case).slice_spacing == case.slice_spacing
