"""What is written in each layout is read back as it was: frames to int16 rounding, labels by name."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.write import write_acdc, write_mnms, write_nnunet
from edgeseg.readers import CaseRef, Dataset, open_data

SCHEME = LabelScheme(("background", "MYO", "LV", "RV"))  # numbered unlike ACDC and unlike M&Ms
ROUNDING = 2000 / 60000


def stack(patient: int, phase: str) -> Case:
    rng = np.random.default_rng((patient, phase == "ES"))
    return Case(id=f"phantom{patient}_{phase}", patient=f"phantom{patient}", scheme=SCHEME, phase=phase, group="HCM",
                frames=rng.uniform(0, 2000, (4, 1, 10, 14)).astype(np.float32), spacing=(1.3, 1.4), slice_spacing=9.0,
                labels=rng.integers(0, 4, (4, 10, 14)).astype(np.uint8), vendor="C")


@pytest.fixture
def phantom() -> Dataset:
    cases = [stack(p, phase) for p in range(3) for phase in ("ED", "ES")]
    refs = tuple(CaseRef(c.id, c.patient, ("val", "train", "dev")[int(c.patient[-1])], c.phase, c.group, c.vendor,
                         lambda c=c: c) for c in cases)
    return Dataset("phantom", "phantom:test", refs, SCHEME, "CC0")


def same(found: Dataset, written: Dataset) -> None:
    assert [(r.split, r.phase) for r in found.refs] == [(r.split, r.phase) for r in written.refs]
    for ours, theirs in zip(found, written, strict=True):
        assert np.abs(ours.frames - theirs.frames).max() <= ROUNDING
        assert np.allclose((*ours.spacing, ours.slice_spacing), (*theirs.spacing, theirs.slice_spacing), rtol=1e-6)
        for name in SCHEME.names:
            a, b = (c.labels == c.scheme.values[c.scheme.names.index(name)] for c in (ours, theirs))
            assert np.array_equal(a, b), name


def test_acdc_layout_is_read_back(phantom, tmp_path):
    out = write_acdc(phantom, tmp_path / "an acdc")
    names = sorted(f.name for f in (out / "training/patient001").iterdir())
    assert names == ["Info.cfg", "patient001_frame01.nii.gz", "patient001_frame01_gt.nii.gz",
                     "patient001_frame02.nii.gz", "patient001_frame02_gt.nii.gz"]
    same(open_data(f"acdc:{out}"), phantom)


def test_mnms_layout_is_read_back(phantom, tmp_path):
    out = write_mnms(phantom, tmp_path / "an mnms")
    data = open_data(f"mnms:{out}")
    same(data, phantom)
    assert {r.vendor for r in data.refs} == {"C"}
    raw = np.asarray(nib.load(out / "phantom0" / "phantom0_sa_gt.nii.gz").dataobj)
    assert raw.shape == (14, 10, 4, 2)
    assert np.array_equal(raw[..., 0].T == 1, phantom.refs[0].load().labels == 2)  # 1 is LV in M&Ms


def test_mnms_directions_are_not_orthonormal(phantom, tmp_path):
    image = nib.load(write_mnms(phantom, tmp_path / "out") / "phantom0" / "phantom0_sa.nii.gz")
    direction = image.affine[:3, :3] / image.header.get_zooms()[:3]
    assert np.abs(direction.T @ direction - np.eye(3)).max() > 1e-3
    assert np.allclose(np.linalg.norm(direction, axis=0), 1, atol=2e-3)


def test_nnunet_layout_is_read_back(phantom, tmp_path):
    out = write_nnunet(phantom, tmp_path / "Dataset123_Heart")
    data = open_data(f"nnunet:{out}")
    about = json.loads((out / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "MYO": 1, "LV": 2, "RV": 3}
    assert about["numTraining"] == 6
    assert data.patients() == phantom.patients()
    assert data.licence == "CC0"
    same(data, replace(phantom, refs=tuple(replace(r, phase=None) for r in phantom.refs)))


def test_nnunet_cases_without_labels_go_to_the_test_images(phantom, tmp_path):
    bare = replace(phantom.refs[0].load(), id="bare", labels=None, scheme=None)
    data = replace(phantom, refs=(*phantom.refs, replace(phantom.refs[0], id="bare", load=lambda: bare)))
    out = write_nnunet(data, tmp_path / "Dataset123_Heart")
    assert [f.name for f in (out / "imagesTs").iterdir()] == ["bare_0000.nii.gz"]
    assert open_data(f"nnunet:{out}").refs[-1].load().labels is None


def test_several_channels_need_their_names(phantom, tmp_path):
    with pytest.raises(EdgesegError, match="has 1 channels, 2 are named"):
        write_nnunet(phantom, tmp_path / "out", ("T1", "T2"))


@pytest.mark.parametrize("write", [write_acdc, write_mnms, write_nnunet])
def test_folder_with_something_in_it_is_left_alone(phantom, tmp_path, write):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(EdgesegError, match="not an empty folder"):
        write(phantom, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("write", [write_acdc, write_mnms])
def test_patient_without_es_is_refused(phantom, tmp_path, write):
    with pytest.raises(EdgesegError, match="phantom0 needs one case of phase ED and one of ES"):
        write(replace(phantom, refs=phantom.refs[:1]), tmp_path)


def test_cases_without_labels_are_refused_where_labels_are_needed(phantom, tmp_path):
    bare = replace(phantom.refs[0].load(), labels=None, scheme=None)
    with pytest.raises(EdgesegError, match="phantom0_ED: has no labels"):
        write_acdc(replace(phantom, refs=(replace(phantom.refs[0], load=lambda: bare), phantom.refs[1])), tmp_path)


def test_frame_numbers_come_from_the_case_ids(phantom, tmp_path):
    refs = tuple(replace(r, load=lambda r=r, t=t: replace(r.load(), id=f"x_frame{t:02d}"))
                 for r, t in zip(phantom.refs[:2], (1, 9), strict=True))
    out = write_acdc(replace(phantom, refs=refs), tmp_path)
    assert "ES: 9" in (out / "training/patient001/Info.cfg").read_text().splitlines()
    assert open_data(f"acdc:{out}").refs[1].id == "patient001_frame09"
