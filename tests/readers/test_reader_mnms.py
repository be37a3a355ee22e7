import nibabel as nib
import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.readers import open_data


def refusal(spec: str, *words: str) -> None:
    with pytest.raises(EdgesegError) as error:
        open_data(spec)
    assert "\n" not in str(error.value)
    assert all(w in str(error.value) for w in words), str(error.value)


def rewrite(mnms, old: str, new: str) -> None:
    table = mnms / "mnms.csv"
    text = table.read_text()
    assert old in text
    table.write_text(text.replace(old, new))


def test_ed_and_es_time_points_become_cases(mnms, make_data):
    data = open_data(f"mnms:{mnms}")
    assert [(r.id, r.phase, r.vendor, r.group) for r in data.refs[:2]] == [
        ("p00_frame00", "ED", "B", "DCM"), ("p00_frame02", "ES", "B", "DCM")]
    truth = list(make_data(phases=("ED", None, "ES")))
    for case, source in zip(list(data)[:2], (truth[0], truth[2]), strict=True):
        assert np.array_equal(case.frames, source.frames)
        for name in ("LV", "MYO", "RV"):
            mine, theirs = (c.labels == c.scheme.values[c.scheme.names.index(name)] for c in (case, source))
            assert np.array_equal(mine, theirs)


def test_labels_are_numbered_as_in_mnms(mnms):
    assert dict(zip(open_data(f"mnms:{mnms}").scheme.names, range(4), strict=True)) == {
        "background": 0, "LV": 1, "MYO": 2, "RV": 3}


def test_directions_that_simpleitk_refuses_are_read(mnms):
    sitk = pytest.importorskip("SimpleITK")
    path = mnms / "p00" / "p00_sa.nii.gz"
    with pytest.raises(RuntimeError, match="orthonormal"):
        sitk.ReadImage(str(path))
    case = next(iter(open_data(f"mnms:{mnms}")))
    assert case.spacing == (1.25, 1.5)
    assert case.slice_spacing == 8


def test_cases_lie_anywhere_below_and_unlabelled_ones_are_left_out(mnms):
    deep = mnms / "Training" / "Labeled"
    deep.mkdir(parents=True)
    (mnms / "p00").rename(deep / "p00")
    (mnms / "Training" / "Unlabeled" / "x").mkdir(parents=True)
    (mnms / "Training" / "Unlabeled" / "x" / "x_sa.nii.gz").write_bytes(b"never read")
    assert len(open_data(f"mnms:{mnms}")) == 8


def test_table_beside_the_folder_is_found(mnms):
    (mnms / "mnms.csv").rename(mnms.parent / "table.csv")
    assert len(open_data(f"mnms:{mnms}")) == 8


def test_half_a_case_is_refused(mnms):
    (mnms / "p01" / "p01_sa_gt.nii.gz").rename(mnms / "p01" / "kept.nii.gz")
    refusal(f"mnms:{mnms}", "p01_sa.nii.gz", "no labels")
    (mnms / "p01" / "kept.nii.gz").rename(mnms / "p01" / "p01_sa_gt.nii.gz")
    (mnms / "p01" / "p01_sa.nii.gz").unlink()
    refusal(f"mnms:{mnms}", "p01_sa_gt.nii.gz", "no image")


def test_table_without_the_needed_columns_is_refused(mnms):
    rewrite(mnms, "External code,Vendor", "Code,Scanner")
    refusal(f"mnms:{mnms}", "mnms.csv", "External code, Vendor")


def test_missing_table_and_missing_row_are_named(mnms):
    rewrite(mnms, "p02,", "q02,")
    refusal(f"mnms:{mnms}", "mnms.csv", "no row for p02")
    (mnms / "mnms.csv").unlink()
    refusal(f"mnms:{mnms}", "no CSV file")


@pytest.mark.parametrize("cell", ["3", "-1", "", "1.5", "nan"])
def test_time_point_outside_the_image_is_refused(mnms, cell):
    rewrite(mnms, "p02,B,1,DCM,0,2", f"p02,B,1,DCM,0,{cell}")
    refusal(f"mnms:{mnms}", "mnms.csv: ES of p02", repr(cell), "0..2")


def test_folder_without_images_is_refused(tmp_path):
    refusal(f"mnms:{tmp_path}", str(tmp_path), "_sa.nii.gz")


def test_labels_of_fewer_time_points_are_refused(mnms):
    path = mnms / "p00" / "p00_sa_gt.nii.gz"
    image = nib.load(path, mmap=False)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[..., :2], image.affine, image.header), path)
    with pytest.raises(EdgesegError, match=r"p00_sa_gt\.nii\.gz: has 2 time points"):
        list(open_data(f"mnms:{mnms}"))
