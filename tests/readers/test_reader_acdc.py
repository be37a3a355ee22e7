import gc
import tracemalloc

import nibabel as nib
import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.readers import open_data


def refusal(spec: str, *words: str) -> None:
    """Opening `spec` and reading all of it fails with one line that holds `words`."""
    with pytest.raises(EdgesegError) as error:
        list(open_data(spec))
    assert "\n" not in str(error.value)
    assert all(w in str(error.value) for w in words), str(error.value)


def test_root_training_folder_and_its_split_are_the_same_data(acdc):
    whole, training = open_data(f"acdc:{acdc}"), open_data(f"acdc:{acdc}/training")
    assert [(r.id, r.split) for r in whole.refs] == [(r.id, r.split) for r in training.refs]
    assert len(whole) == 8
    assert whole.patients() == tuple(f"patient{i:03d}" for i in range(1, 5))


def test_phase_and_group_come_from_info_cfg(acdc):
    case = next(iter(open_data(f"acdc:{acdc}")))
    assert (case.id, case.phase, case.group) == ("patient001_frame01", "ED", "DCM")
    assert [r.phase for r in open_data(f"acdc:{acdc}").refs] == ["ED", "ES"] * 4


def test_4d_frames_are_unlabelled_cases_without_phase(acdc):
    folder = acdc / "training" / "patient002"
    cine = np.arange(9 * 12 * 3 * 5, dtype=np.int16).reshape(9, 12, 3, 5)
    nib.save(nib.Nifti1Image(cine, np.eye(4)), folder / "patient002_4d.nii.gz")
    assert len(open_data(f"acdc:{acdc}")) == 8  # and is ignored without the option
    data = open_data(f"acdc:{acdc}?frames=4d")
    cases = list(data)
    assert [c.id for c in cases] == [f"patient002_4d_frame{t:02d}" for t in range(1, 6)]
    assert data.scheme is None
    assert cases[3].labels is None
    assert cases[3].phase is None
    assert np.array_equal(cases[3].frames[:, 0], cine[..., 3].T)


def test_image_without_labels_is_half_a_case(acdc):
    (acdc / "training/patient003/patient003_frame07_gt.nii.gz").unlink()
    refusal(f"acdc:{acdc}", "patient003_frame07.nii.gz", "no labels")


def test_labels_without_image_are_half_a_case(acdc):
    (acdc / "training/patient003/patient003_frame07.nii.gz").unlink()
    refusal(f"acdc:{acdc}", "patient003_frame07_gt.nii.gz", "no image")


def test_missing_phase_is_named(acdc):
    for end in ("", "_gt"):
        (acdc / f"training/patient001/patient001_frame07{end}.nii.gz").unlink()
    refusal(f"acdc:{acdc}", "patient001_frame07.nii.gz", "ES")


@pytest.mark.parametrize(("content", "word"), [("ED: 1\nES: 12\nNbFrame: 9\n", "9 frames"), ("ED: 1\n", "ES: NUMBER"),
                                               ("ED: first\nES: 7\n", "ED: NUMBER")])
def test_info_cfg_that_cannot_be_right_is_refused(acdc, content, word):
    (acdc / "training/patient001/Info.cfg").write_text(content)
    refusal(f"acdc:{acdc}", "Info.cfg", word)


def test_missing_info_cfg_is_named(acdc):
    (acdc / "training/patient001/Info.cfg").unlink()
    refusal(f"acdc:{acdc}", "patient001/Info.cfg", "missing")


def test_folder_without_patients_is_refused(tmp_path):
    (tmp_path / "training").mkdir()
    refusal(f"acdc:{tmp_path}", "training", "no patientNNN")
    refusal(f"acdc:{tmp_path}/nowhere", "nowhere", "no such folder")
    (tmp_path / "file").touch()
    refusal(f"acdc:{tmp_path}/file", "reads a folder")


def change_labels(acdc, change) -> None:
    path = acdc / "training/patient001/patient001_frame01_gt.nii.gz"
    image = nib.load(path, mmap=False)
    nib.save(change(image), path)


def test_label_value_outside_the_scheme_is_refused(acdc):
    def change(image):
        array = np.asarray(image.dataobj).copy()
        array[0, 0, 0] = 7
        return nib.Nifti1Image(array, image.affine, image.header)

    change_labels(acdc, change)
    refusal(f"acdc:{acdc}", "patient001_frame01_gt.nii.gz", "label value 7")


def test_label_of_other_shape_or_spacing_is_refused(acdc):
    change_labels(acdc, lambda i: nib.Nifti1Image(np.asarray(i.dataobj)[1:], i.affine, i.header))
    refusal(f"acdc:{acdc}", "patient001_frame01_gt.nii.gz", "shape")
    change_labels(acdc, lambda i: nib.Nifti1Image(np.zeros((9, 12, 3), np.uint8), np.diag([1.5, 1.26, 8, 1])))
    refusal(f"acdc:{acdc}", "patient001_frame01_gt.nii.gz", "spacing")


def test_half_a_label_is_refused(acdc):
    change_labels(acdc, lambda i: nib.Nifti1Image(np.asarray(i.dataobj, np.float32) / 2, i.affine))
    refusal(f"acdc:{acdc}", "patient001_frame01_gt.nii.gz", ".5 is outside the scheme")


def test_real_acdc_is_200_cases_on_the_given_split(real_acdc):
    data = open_data(f"acdc:{real_acdc}")
    assert len(data) == 200
    assert len(data.patients()) == 100
    assert [len(data.select(s).patients()) for s in ("train", "dev", "val")] == [65, 15, 20]
    case = data.refs[0].load()
    assert (case.id, case.phase, case.group) == ("patient001_frame01", "ED", "DCM")
    # pixdim, though the affine of the file has unit scale
    assert case.frames.shape == (10, 1, 256, 216)
    assert case.spacing == (1.5625, 1.5625)
    assert case.slice_spacing == 10
    raw = nib.load(case.source)
    assert np.array_equal(case.frames[4, 0], np.asarray(raw.dataobj)[:, :, 4].T)
    assert case.scheme.foreground == ("RV", "MYO", "LV")
    assert set(np.unique(case.labels)) == {0, 1, 2, 3}


def test_real_acdc_streams(real_acdc):
    data = open_data(f"acdc:{real_acdc}").select("dev")
    tracemalloc.start()
    total = largest = 0
    for case in data:
        size = case.frames.nbytes
        total, largest = total + size, max(largest, size)
    del case
    gc.collect()
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert left < 0.1 * total
    assert peak < 6 * largest < total


def test_real_cine_frames_are_readable(real_acdc):
    if not (real_acdc / "training/patient090/patient090_4d.nii.gz").exists():
        pytest.skip("patient090_4d.nii.gz is not here")
    data = open_data(f"acdc:{real_acdc}?frames=4d")
    assert len(data) == 12
    assert data.patients() == ("patient090",)
    assert data.refs[5].load().frames.shape[1] == 1
