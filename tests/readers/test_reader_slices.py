"""slices: windowed CT slices in .npz files, turned to the DICOM view."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from edgeseg.distill.cache import check_case
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Preprocessing, ct_window
from edgeseg.readers import open_data
from edgeseg.readers.slices import upright

REAL = Path(__file__).parents[3] / "shared" / "data" / "ct_spleen_real"


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    image = np.zeros((3, 8, 6), np.uint8)
    image[:, 0, 5] = 200  # stored: far left of the patient, far front
    spleen = np.zeros_like(image)
    spleen[1, 0, 5] = 1
    return {"image": image, "spleen": spleen}


def refusal(folder: Path) -> str:
    with pytest.raises(EdgesegError) as error:
        list(open_data(f"slices:{folder}"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_left_is_on_the_right_and_front_is_up(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", **arrays)
    data = open_data(f"slices:{tmp_path}")
    case = next(iter(data))
    assert data.scheme.names == ("background", "spleen")
    assert case.frames.shape == (3, 1, 6, 8)
    assert np.argwhere(case.frames[1, 0]).tolist() == [[0, 7]]
    assert case.frames.max() == 200
    assert np.argwhere(case.labels).tolist() == [[1, 0, 7]]
    assert case.spacing == (1.75, 1.75)


def test_spacing_in_the_file_counts(arrays, tmp_path):
    np.savez(tmp_path / "a.npz", spacing=np.array([0.8, 0.9, 2.5]), **arrays)
    case = next(iter(open_data(f"slices:{tmp_path}")))
    assert (case.spacing, case.slice_spacing) == ((0.8, 0.9), 2.5)


@pytest.mark.parametrize(("changes", "word"), [
    ({"image": None}, "no array `image`"), ({"spleen": None}, "no mask"),
    ({"image": np.zeros((3, 8, 6), np.float32)}, "expected uint8"),
    ({"spleen": np.ones((3, 8, 5))}, "shape of `image`"),
    ({"spleen": np.full((3, 8, 6), 2)}, "must hold 0 and 1"), ({"spacing": np.ones(2)}, "three numbers"),
    ({"spleen": np.array([None])}, "not a readable .npz"),
])
def test_arrays_that_do_not_fit_are_refused(arrays, tmp_path, changes, word):
    np.savez(tmp_path / "a.npz", **{k: v for k, v in (arrays | changes).items() if v is not None})
    assert word in refusal(tmp_path)


def test_damaged_file_empty_folder_and_other_structures_are_refused(arrays, tmp_path):
    assert "holds no .npz" in refusal(tmp_path)
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "b.npz", image=arrays["image"], liver=arrays["spleen"])
    assert "b.npz: has masks of liver" in refusal(tmp_path)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:200])
    assert "b.npz: is not a readable .npz" in refusal(tmp_path)


def test_liver_is_on_the_left_and_spleen_on_the_right_of_the_real_slices():
    if not REAL.is_dir():
        pytest.skip("the real spleen slices (../shared/data/ct_spleen_real) are not here")
    cases = list(open_data(f"slices:{REAL}"))
    assert [c.labels.sum() for c in cases] == [5928, 11224]
    for case in cases:
        image, spleen = case.frames[-1, 0], case.labels[-1] == 1
        bone = image > 240
        bone &= np.abs(np.arange(256) - np.median(np.nonzero(bone)[1])) < 25
        middle = np.argwhere(image > 20).mean(axis=0)
        assert np.argwhere(spleen)[:, 1].mean() > middle[1] + 40
        assert np.argwhere(bone)[:, 0].mean() > middle[0]  # the spine is behind, that is below
        organ = np.abs(image - np.median(image[spleen])) < 25
        assert organ[:, :128].sum() > 1.5 * organ[:, 128:].sum()  # the liver is the larger one


@pytest.mark.parametrize(("low", "high", "fits"), [
    (0, 255, True), (20, 200, True), (-160, 240, False), (0, 300, False)])
def test_a_window_beyond_the_kept_one_is_refused_before_training(arrays, tmp_path, low, high, fits):
    np.savez(tmp_path / "a.npz", **arrays)
    case = next(iter(open_data(f"slices:{tmp_path}")))
    with nullcontext() if fits else pytest.raises(EdgesegError, match="kept with a window of 0 to 255 HU"):
        check_case(case, Preprocessing((8, 8), (1.75, 1.75), (ct_window(low, high),)))


def test_upright_is_its_own_inverse_up_to_the_shape():
    stored = np.arange(24).reshape(1, 4, 6)
    assert np.array_equal(upright(upright(stored)), stored)


def test_a_window_maps_its_ends_to_0_and_4_and_outside_looks_like_air():
    grid = Preprocessing((2, 2), (1.0, 1.0), (ct_window(-160, 240),))
    frames = np.array([-1000, -160, 40, 3000], np.float32).reshape(1, 1, 2, 2)
    assert grid.normalise(frames).ravel().tolist() == [0, 0, 2, 4]
    for ends in ((240, -160), (0, 0), (float("nan"), 1), (0, float("inf"))):
        with pytest.raises(EdgesegError, match="lower and its upper end"):
            ct_window(*ends)
