import json

import nibabel as nib
import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.write import write_nnunet
from edgeseg.readers import open_data
from edgeseg.readers.nnunet import patient_of

ORGANS = LabelScheme(("background", "liver", "spleen", "left kidney", "right kidney", "pancreas"))


@pytest.fixture
def folder(tmp_path, make_data):
    return write_nnunet(make_data(scheme=ORGANS, channels=2), tmp_path / "Dataset900_Organs", ("T1", "T2"))


def edit(folder, **changes) -> None:
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(spec: str, *words: str) -> None:
    with pytest.raises(EdgesegError) as error:
        list(open_data(spec))
    assert "\n" not in str(error.value)
    assert all(w in str(error.value) for w in words), str(error.value)


def test_channels_are_stacked_in_order(folder, make_data):
    data, truth = open_data(f"nnunet:{folder}"), make_data(scheme=ORGANS, channels=2)
    assert data.name == "Dataset900_Organs"
    assert data.scheme == ORGANS
    assert len(data) == 8
    for case, source in zip(data, truth, strict=True):
        assert np.array_equal(case.frames, source.frames)
        assert np.array_equal(case.labels, source.labels)


def test_patients_json_keeps_the_cases_of_a_patient_in_one_split(folder):
    data = open_data(f"nnunet:{folder}")
    assert data.patients() == ("p00", "p01", "p02", "p03")
    (folder / "patients.json").write_text('{"p00_frame01": "somebody"}')  # the others: by their names
    assert open_data(f"nnunet:{folder}").refs[0].patient == "somebody"


def test_without_patients_json_frames_of_one_heart_are_one_patient(folder):
    (folder / "patients.json").unlink()
    (folder / "split.json").unlink()
    data = open_data(f"nnunet:{folder}")
    assert len(data) == 8
    assert data.patients() == ("p00", "p01", "p02", "p03")
    assert {case.patient for case in data} == set(data.patients())


@pytest.mark.parametrize(("case", "patient"), [
    ("patient001_frame12", "patient001"), ("A0S9V9_ED", "A0S9V9"), ("a_b_es", "a_b"), ("x_FRAME7", "x"),
    ("case_0003", "case_0003"), ("frame12", "frame12"), ("_ED", "_ED"), ("HE_EDS", "HE_EDS"),
    ("p_frame1_b", "p_frame1_b"),
])
def test_the_patient_of_a_case_is_its_name_without_frame_or_phase(case, patient):
    assert patient_of(case) == patient


def test_test_images_have_neither_labels_nor_split(folder):
    (folder / "imagesTs").mkdir()
    for c in range(2):
        (folder / "imagesTs" / f"new_{c:04d}.nii.gz").write_bytes(
            (folder / "imagesTr" / f"p00_frame01_{c:04d}.nii.gz").read_bytes())
    ref = open_data(f"nnunet:{folder}").refs[-1]
    assert (ref.id, ref.split, ref.load().labels) == ("new", None, None)


def test_regions_become_exclusive_classes_in_their_order(folder):
    # nnU-Net paints the regions one after the other: a pixel belongs to the last one that it lies in
    edit(folder, labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3], "active": 3, "other": [4, 5]},
         regions_class_order=[1, 2, 3, 4])
    before = next(iter(open_data(f"nnunet:{folder}"))).labels
    data = open_data(f"nnunet:{folder}")
    assert data.scheme == LabelScheme(("background", "whole", "core", "active", "other"))
    raw = np.asarray(nib.load(folder / "labelsTr" / "p00_frame01.nii.gz").dataobj).T
    assert np.array_equal(before, np.array([0, 1, 2, 3, 4, 4])[raw])
    edit(folder, regions_class_order=[1, 3, 2, 4])  # core is painted 3, active 2
    case = next(iter(open_data(f"nnunet:{folder}")))
    assert np.array_equal(case.labels, np.array([0, 1, 3, 2, 4, 4])[raw])
    assert case.scheme.values[case.scheme.names.index("core")] == 3


def test_ignore_label_becomes_255(folder):
    edit(folder, labels={"background": 0, "liver": 1, "spleen": 2, "left kidney": 3, "right kidney": 4, "ignore": 5})
    data = open_data(f"nnunet:{folder}")
    raw = np.asarray(nib.load(folder / "labelsTr" / "p00_frame01.nii.gz").dataobj).T
    assert data.ignore == 255
    assert "ignore" not in data.scheme.names
    assert np.array_equal(next(iter(data)).labels == 255, raw == 5)
    assert (raw == 5).any()


@pytest.mark.parametrize(("changes", "word"), [
    ({"file_ending": ".png"}, ".png"), ({"labels": {"0": "background", "1": "liver"}}, "v1"),
    ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, "regions_class_order"),
    ({"labels": {"background": 0}}, "at least one class"),
    ({"channel_names": {}}, "channel_names"), ({"channel_names": {"0": "T1"}}, "1 channel"),
    ({"labels": {"background": 0, "liver": 1}}, "label value"),
])
def test_dataset_json_that_cannot_be_used_is_refused(folder, changes, word):
    edit(folder, **changes)
    refusal(f"nnunet:{folder}", word, str(folder))


def test_missing_or_broken_dataset_json_is_named(folder):
    (folder / "dataset.json").write_text("{")
    refusal(f"nnunet:{folder}", "dataset.json", "not a JSON")
    (folder / "dataset.json").unlink()
    refusal(f"nnunet:{folder}", "dataset.json", "missing")


def test_half_a_case_is_refused(folder):
    (folder / "labelsTr" / "p01_frame07.nii.gz").rename(folder / "labelsTr" / "q.nii.gz")
    refusal(f"nnunet:{folder}", "p01_frame07_0000.nii.gz", "no labels")
    for c in range(2):
        (folder / "imagesTr" / f"p01_frame07_{c:04d}.nii.gz").unlink()
    refusal(f"nnunet:{folder}", "q.nii.gz", "no image")


def test_missing_channel_is_named(folder):
    (folder / "imagesTr" / "p01_frame07_0001.nii.gz").unlink()
    refusal(f"nnunet:{folder}", "p01_frame07_0001", "missing")


def test_channels_of_two_spacings_are_refused(folder):
    path = folder / "imagesTr" / "p00_frame01_0001.nii.gz"
    image = nib.load(path, mmap=False)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([2.0, 2, 8, 1])), path)
    refusal(f"nnunet:{folder}", "p00_frame01_0001.nii.gz", "spacing")


def test_folder_without_cases_is_refused(folder):
    for sub in ("imagesTr", "labelsTr"):
        for file in (folder / sub).iterdir():
            file.unlink()
    refusal(f"nnunet:{folder}", "no case")
