"""msd: folders of the Medical Segmentation Decathlon, and the Hounsfield units that a CT must hold."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.ct_write import write_msd
from edgeseg.phantoms.write import write_nnunet
from edgeseg.readers import Dataset, open_data
from edgeseg.readers.hu import check_hu
from edgeseg.readers.nifti_write import write_labels

ORGANS = LabelScheme(("background", "spleen", "liver"), (0, 4, 2))  # not in the order of their values
REAL = Path(__file__).parents[3] / "shared" / "data" / "ct_example" / "ct.nii.gz"


def changed(data: Dataset, change) -> Dataset:
    """The data set with `change` made to every case's frames."""
    cases = [replace(case, frames=change(case.frames)) for case in data]
    refs = tuple(replace(r, load=lambda c=c: c) for r, c in zip(data.refs, cases, strict=True))
    return replace(data, refs=refs)


@pytest.fixture
def ct(make_data) -> Dataset:
    """Cases whose values are Hounsfield units: some -1000 is among them."""
    return changed(make_data(scheme=ORGANS, phases=(None,)), lambda frames: frames - 1000)


@pytest.fixture
def folder(ct, tmp_path) -> Path:
    return write_msd(ct, tmp_path / "with space" / "Task99_Organs")


def edit(folder: Path, **changes) -> None:
    file = folder / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def refusal(spec: str) -> str:
    with pytest.raises(EdgesegError) as error:
        list(open_data(spec))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_was_written_is_read_back_by_name_and_side(folder, ct):
    data = open_data(f"msd:{folder}")
    assert data.scheme.names == ORGANS.names
    assert [(r.patient, r.split) for r in data.refs] == [(r.patient, r.split) for r in ct.refs]
    for ours, source in zip(data, ct, strict=True):
        assert np.array_equal(ours.frames, source.frames)
        assert np.array_equal(ours.labels, LabelScheme(ORGANS.names).encode(source.labels, ORGANS))
        assert (ours.spacing, ours.slice_spacing) == (source.spacing, source.slice_spacing)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "LAI", "RPI"])
def test_any_storage_order_gives_the_dicom_view_and_a_mask_goes_back_as_the_file_lies(folder, tmp_path, axes):
    before = next(iter(open_data(f"msd:{folder}")))
    for name in ("imagesTr", "labelsTr"):
        file = folder / name / "p00.nii.gz"
        image = nib.load(file)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
        nib.Nifti1Image(np.asarray(image.as_reoriented(turn).dataobj), image.as_reoriented(turn).affine).to_filename(
            folder / name / "p00.nii.gz")
    case = next(iter(open_data(f"msd:{folder}")))
    assert np.array_equal(case.frames, before.frames)
    assert np.array_equal(case.labels, before.labels)
    write_labels(tmp_path / "mask.nii.gz", case.labels, case.provenance)
    written, truth = nib.load(tmp_path / "mask.nii.gz"), nib.load(folder / "labelsTr" / "p00.nii.gz")
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(truth.dataobj))
    assert np.allclose(written.affine, truth.affine)


@pytest.mark.parametrize("axes", ["RSA", "ASR"])
def test_slices_that_are_not_axial_are_refused(folder, axes):
    file = folder / "imagesTr" / "p00.nii.gz"
    image = nib.load(file)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axes))
    turned = image.as_reoriented(turn)
    (folder / "labelsTr" / "p00.nii.gz").unlink()
    edit(folder, training=[], test=["imagesTr/p00.nii.gz"])
    nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine).to_filename(file)
    assert f"p00.nii.gz: its slices are not axial (axes {axes})" in refusal(f"msd:{folder}")


def test_test_images_have_no_labels_and_no_split(ct, tmp_path):
    bare = replace(ct.refs[0].load(), patient="bare", labels=None, scheme=None)
    data = replace(ct, refs=(*ct.refs, replace(ct.refs[0], id="bare", patient="bare", split=None, load=lambda: bare)))
    last = open_data(f"msd:{write_msd(data, tmp_path / 'Task98')}").refs[-1]
    assert (last.id, last.split, last.load().labels) == ("bare", None, None)


def test_windowed_values_are_refused_with_the_file_and_the_way_out(ct, tmp_path, folder):
    for low in (0, -160):
        windowed = changed(ct, partial(np.clip, a_min=low, a_max=255))
        out = write_msd(windowed, tmp_path / f"Task{low + 500}")
        message = refusal(f"msd:{out}")
        assert f"p00.nii.gz: values from {low} to 255 are no Hounsfield units" in message
        assert "?hu=any" in message
        assert next(iter(open_data(f"msd:{out}?hu=any"))).frames.min() == low


def test_nnunet_folders_of_ct_alone_are_checked_too(ct, make_data, tmp_path):
    good = write_nnunet(ct, tmp_path / "Dataset001_ct", ("CT",))
    assert next(iter(open_data(f"nnunet:{good}"))).frames.min() < -900
    positive = make_data(scheme=ORGANS)
    bad = write_nnunet(positive, tmp_path / "Dataset002_ct", ("CT",))
    assert "no Hounsfield units" in refusal(f"nnunet:{bad}")
    assert len(list(open_data(f"nnunet:{bad}?hu=any"))) == 8
    small_letters = write_nnunet(positive, tmp_path / "Dataset004_ct", ("ct",))
    assert "no Hounsfield units" in refusal(f"nnunet:{small_letters}")
    mr = write_nnunet(positive, tmp_path / "Dataset003_mr", ("T1",))
    assert len(list(open_data(f"nnunet:{mr}"))) == 8


def test_a_real_ct_is_in_hounsfield_units():
    if not REAL.is_file():
        pytest.skip("the real CT (../shared/data/ct_example) is not here")
    case = next(iter(open_data(f"nifti:{REAL}")))
    assert case.frames.shape == (112, 1, 101, 122)
    check_hu(case.frames, case.source)
    with pytest.raises(EdgesegError, match="no Hounsfield units"):
        check_hu(np.clip(case.frames, 0, 255), case.source)


@pytest.mark.parametrize(("changes", "word"), [
    ({"modality": {"0": "T1", "1": "T2"}}, "one modality"), ({"modality": None}, "one modality"),
    ({"labels": {"background": 0, "spleen": 1}}, "nnunet:PATH"), ({"labels": ["a"]}, "needs labels"),
    ({"labels": {"0": "spleen"}}, "starts with background"), ({"training": [{"image": "a.nii.gz"}]}, "training"),
    ({"training": [], "test": []}, "lists no case"), ({"training": [], "test": ["../x.nii.gz"]}, "this folder"),
    ({"training": [], "test": ["imagesTr/none.nii.gz"]}, "none.nii.gz: is missing"),
    ({"labels": {"0": "background", "1": "spleen"}}, "label value 2 is outside"),
])
def test_a_dataset_json_that_does_not_hold_is_refused(folder, changes, word):
    edit(folder, **changes)
    assert word in refusal(f"msd:{folder}")


def test_a_folder_without_dataset_json_is_refused(tmp_path):
    assert "dataset.json: is missing" in refusal(f"msd:{tmp_path}")


def test_two_cases_of_a_patient_have_no_place_in_this_layout(make_data, tmp_path):
    with pytest.raises(EdgesegError, match="patient p00 has several cases"):
        write_msd(make_data(scheme=ORGANS), tmp_path / "out")


def test_a_folder_with_something_in_it_is_left_alone(ct, tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(EdgesegError, match="not an empty folder"):
        write_msd(ct, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]
