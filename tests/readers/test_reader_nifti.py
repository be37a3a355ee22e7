import gzip
import os
import struct

import nibabel as nib
import numpy as np
import pytest

from edgeseg.errors import EdgesegError
from edgeseg.readers import nifti, open_data
from edgeseg.readers.nifti import read_channels, read_volume
from edgeseg.readers.nifti_write import write_labels, write_volume


def refusal(spec: str, *words: str) -> None:
    with pytest.raises(EdgesegError) as error:
        list(open_data(spec))
    assert "\n" not in str(error.value)
    assert all(w in str(error.value) for w in words), str(error.value)


def pixels(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


def save(path, array, zooms=None):
    image = nib.Nifti1Image(array, np.eye(4))
    image.header.set_zooms(zooms or (1.0,) * array.ndim)
    nib.save(image, path)
    return path


def patch_pixdim(path, axis: int, value: float) -> None:
    """Change pixdim[axis] (float32 at byte 76 + 4 * axis of a NIfTI-1 header) behind nibabel's back."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[76 + 4 * axis : 80 + 4 * axis] = struct.pack("<f", value)
    path.write_bytes(gzip.compress(bytes(content)))


def test_axes_and_spacing_are_transposed(tmp_path):
    array = pixels(5, 4, 3)
    path = save(tmp_path / "a.nii.gz", array, (1.5, 1.25, 8))
    (case,) = open_data(f"nifti:{path}")
    assert case.frames.shape == (3, 1, 4, 5)
    assert case.spacing == (1.25, 1.5)
    assert case.slice_spacing == 8
    assert case.frames[2, 0, 3, 4] == array[4, 3, 2]
    assert case.frames[0, 0, 1, 0] == array[0, 1, 0]
    assert case.labels is None
    assert case.id == "a"


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 3, 1)])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_mask_has_the_geometry_of_its_image(tmp_path, shape, ending):
    image = nib.Nifti1Image(pixels(*shape), np.eye(4))
    affine = np.array([[-1.2, 0.1, 0, 9], [0.1, 1.4, 0.3, -7], [0, 0.2, 6, 3], [0, 0, 0, 1]])
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm")
    image.header["cal_max"] = 77
    nib.save(image, tmp_path / f"image{ending}")
    (case,) = open_data(f"nifti:{tmp_path}")
    labels = (case.frames[:, 0] % 5).astype(np.uint8)
    write_labels(tmp_path / "out" / f"mask{ending}", labels, case.provenance)
    image, mask = nib.load(tmp_path / f"image{ending}"), nib.load(tmp_path / "out" / f"mask{ending}")
    assert mask.shape == shape[:3]
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(mask.dataobj, np.asarray(image.dataobj).reshape(shape[:3]) % 5)
    for field in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "quatern_b", "qoffset_x", "xyzt_units"):
        assert np.array_equal(mask.header[field], image.header[field]), field
    assert np.array_equal(mask.header["pixdim"][:4], image.header["pixdim"][:4])
    assert mask.header["cal_max"] == 0


def test_mask_of_a_real_case_keeps_pixdim_and_affine(real_acdc, tmp_path):
    case = open_data(f"acdc:{real_acdc}").refs[0].load()
    write_labels(tmp_path / "mask.nii.gz", case.labels, case.provenance)
    mine, theirs = nib.load(tmp_path / "mask.nii.gz"), nib.load(case.source.replace(".nii.gz", "_gt.nii.gz"))
    assert np.array_equal(mine.dataobj, theirs.dataobj)
    assert np.array_equal(mine.affine, theirs.affine)
    assert mine.header.get_zooms() == theirs.header.get_zooms()


def test_mask_files_of_equal_labels_are_equal_bytes(tmp_path):
    save(tmp_path / "a.nii.gz", pixels(5, 4, 3))
    (case,) = open_data(f"nifti:{tmp_path}")
    labels = np.ones((3, 4, 5), np.uint8)
    for name in ("x", "y"):
        write_labels(tmp_path / name / "m.nii.gz", labels, case.provenance)
    assert (tmp_path / "x/m.nii.gz").read_bytes() == (tmp_path / "y/m.nii.gz").read_bytes()
    assert str(os.getpid()).encode() not in (tmp_path / "x/m.nii.gz").read_bytes()


def test_failed_write_leaves_what_was_there(tmp_path):
    save(tmp_path / "a.nii.gz", pixels(5, 4, 3))
    (case,) = open_data(f"nifti:{tmp_path}")
    (tmp_path / "m.nii.gz").mkdir()  # a rename onto a folder fails after the file was written
    with pytest.raises(OSError, match=r"m\.nii\.gz"):
        write_labels(tmp_path / "m.nii.gz", np.ones((3, 4, 5), np.uint8), case.provenance)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a.nii.gz", "m.nii.gz"]
    with pytest.raises(EdgesegError, match="ending"):
        write_labels(tmp_path / "m.png", np.ones((3, 4, 5), np.uint8), case.provenance)
    with pytest.raises(EdgesegError, match="not read from a NIfTI"):
        write_labels(tmp_path / "n.nii", np.ones((3, 4, 5), np.uint8), {})


def test_folder_with_nnunet_names_is_grouped_into_channels(tmp_path):
    for case in ("a", "b_1"):
        for c in range(2):
            save(tmp_path / f"{case}_{c:04d}.nii.gz", pixels(5, 4, 3) + c)
    cases = list(open_data(f"nifti:{tmp_path}"))
    assert [c.id for c in cases] == ["a", "b_1"]
    assert cases[0].frames.shape == (3, 2, 4, 5)
    assert (cases[0].frames[:, 1] == cases[0].frames[:, 0] + 1).all()


def test_numbers_that_are_no_channels_stay_in_the_name(tmp_path):
    names = [tmp_path / n for n in ("scan_0003.nii.gz", "scan_0004.nii.gz")]
    assert list(read_channels(names)) == ["scan_0003", "scan_0004"]
    assert list(read_channels([tmp_path / "a_0000.nii", tmp_path / "b.nii"])) == ["a_0000", "b"]


def test_channel_that_other_cases_have_is_missed(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000"):
        save(tmp_path / f"{name}.nii.gz", pixels(5, 4, 3))
    refusal(f"nifti:{tmp_path}", "b_0001", "missing")


def test_4d_is_refused_unless_its_time_points_are_asked_for(tmp_path):
    array = pixels(5, 4, 3, 6)
    path = save(tmp_path / "cine.nii.gz", array)
    refusal(f"nifti:{path}", "cine.nii.gz", "4D (6 time points)", "?frames=all")
    data = open_data(f"nifti:{path}?frames=all")
    cases = list(data)
    assert [c.id for c in cases] == [f"cine_frame{t:02d}" for t in range(1, 7)]
    assert data.patients() == ("cine",)
    assert all(np.array_equal(c.frames[:, 0], array[..., t].T) for t, c in enumerate(cases))
    write_labels(tmp_path / "m.nii.gz", np.ones((3, 4, 5), np.uint8), cases[2].provenance)
    assert nib.load(tmp_path / "m.nii.gz").shape == (5, 4, 3)


@pytest.mark.parametrize(("axis", "value"), [(1, 0.0), (2, -1.25), (3, float("nan"))])
def test_spacing_that_is_not_positive_is_refused(tmp_path, axis, value, capfd):
    path = save(tmp_path / "a.nii.gz", pixels(5, 4, 3), (1.5, 1.25, 8))
    patch_pixdim(path, axis, value)
    refusal(f"nifti:{path}", "a.nii.gz", "spacing")
    assert capfd.readouterr().err == ""  # nibabel's own remarks would be a second line


def test_slice_spacing_of_a_2d_image_does_not_matter(tmp_path):
    path = save(tmp_path / "a.nii.gz", pixels(5, 4), (1.5, 1.25))
    patch_pixdim(path, 3, 0.0)
    assert next(iter(open_data(f"nifti:{path}"))).slice_spacing is None


def test_spacing_in_micrometres_becomes_millimetres(tmp_path):
    image = nib.Nifti1Image(pixels(5, 4, 3), np.diag([1500.0, 1250, 8000, 1]))
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    case = next(iter(open_data(f"nifti:{tmp_path}")))
    assert case.spacing == (1.25, 1.5)
    assert case.slice_spacing == 8


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("keep", [0, 100, 700])
def test_truncated_file_is_refused(tmp_path, ending, keep):
    noise = np.random.default_rng(0).integers(0, 2000, (20, 20, 5)).astype(np.int16)
    path = save(tmp_path / f"a{ending}", noise)
    path.write_bytes(path.read_bytes()[:keep])
    refusal(f"nifti:{path}", f"a{ending}", "truncated or damaged")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_file_that_is_no_nifti_is_refused(tmp_path, ending):
    (tmp_path / f"a{ending}").write_text("hello " * 500)
    refusal(f"nifti:{tmp_path}", f"a{ending}", "not a readable NIfTI")


def test_damaged_headers_end_in_one_line(tmp_path, capfd):
    path = save(tmp_path / "a.nii", pixels(5, 4, 3))
    whole, random = path.read_bytes(), np.random.default_rng(3)
    lines = []
    for _ in range(400):
        content = bytearray(whole)
        content[random.integers(40, 124)] = random.integers(256)  # dim, datatype, pixdim, scaling, units
        path.write_bytes(content)
        try:
            list(open_data(f"nifti:{path}"))
        except EdgesegError as error:
            lines.append(str(error))
    assert len(lines) > 50
    assert all(line.startswith(str(path)) and "\n" not in line for line in lines)
    assert capfd.readouterr().err == ""


def test_constant_and_nan_images_are_refused(tmp_path):
    save(tmp_path / "a.nii.gz", np.full((5, 4, 3), 7, np.int16))
    refusal(f"nifti:{tmp_path}", "a.nii.gz", "constant")
    array = pixels(5, 4, 3).astype(np.float32)
    array[2, 2, 2] = np.nan
    save(tmp_path / "a.nii.gz", array)
    refusal(f"nifti:{tmp_path}", "a.nii.gz", "NaN")


def test_colour_and_higher_dimensions_are_refused(tmp_path):
    colour = np.zeros((5, 4, 3), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nib.save(nib.Nifti1Image(colour, np.eye(4)), tmp_path / "a.nii.gz")
    refusal(f"nifti:{tmp_path}", "a.nii.gz", "grey-scale")
    save(tmp_path / "a.nii.gz", pixels(5, 4, 3, 1, 2))
    refusal(f"nifti:{tmp_path}", "a.nii.gz", "3D")


def test_empty_folder_and_other_files_are_refused(tmp_path):
    refusal(f"nifti:{tmp_path}", str(tmp_path), "no .nii")
    (tmp_path / "a.png").touch()
    refusal(f"nifti:{tmp_path}/a.png", "a.png", "not a NIfTI file")
    refusal(f"nifti:{tmp_path}/b.nii", "b.nii", "no such folder or file")


def test_two_files_of_one_name_are_refused(tmp_path):
    for ending in (".nii", ".nii.gz"):
        save(tmp_path / f"a{ending}", pixels(5, 4, 3))
    refusal(f"nifti:{tmp_path}", "a.nii", "same name")


def test_real_numbers_survive_int16_up_to_rounding(tmp_path):
    image = np.random.default_rng(0).normal(0, 0.1, (3, 4, 5)).astype(np.float32)
    write_volume(tmp_path / "a.nii.gz", image, (1.25, 1.5), None)
    found = read_volume(tmp_path / "a.nii.gz").pixels
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.int16
    assert np.abs(found - image).max() <= np.ptp(image) / 60000


def test_every_time_point_is_read_in_one_pass(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    files = tuple(tmp_path / f"clip_{c:04d}.nii.gz" for c in range(2))
    for file in files:
        write_volume(file, rng.integers(0, 900, (5, 3, 9, 8)), (1.5, 1.2), 8.0)
    expected = [nifti.read_case(files, id="x", patient="x", frame=t) for t in range(5)]
    opened, open_gzip = [], gzip.GzipFile.__init__
    monkeypatch.setattr(gzip.GzipFile, "__init__", lambda self, *a, **k: opened.append(1) or open_gzip(self, *a, **k))
    found = list(nifti.read_times(files, id="x", patient="x"))
    in_one_pass = len(opened)
    for t in range(5):
        nifti.read_case(files, id="x", patient="x", frame=t)
    assert in_one_pass < (len(opened) - in_one_pass) / 2  # headers are opened too
    assert len(found) == 5
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        assert one.frames.shape == (3, 2, 9, 8)
        assert one.provenance["shape"] == other.provenance["shape"]


def test_the_time_points_of_a_3d_image_are_one(tmp_path):
    write_volume(tmp_path / "a.nii", np.arange(60).reshape(3, 5, 4), (1.5, 1.2), 8.0)
    (found,) = nifti.read_times((tmp_path / "a.nii",), id="x", patient="x")
    np.testing.assert_array_equal(found.frames[:, 0], np.arange(60).reshape(3, 5, 4))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_lie_along_the_axis_of_the_largest_step(tmp_path, axis):
    shape = [6, 5]
    shape.insert(axis, 4)
    array = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
    zooms = [1.5, 1.4]
    zooms.insert(axis, 8.0)
    image = nib.Nifti1Image(array, np.diag([*zooms, 1.0]))
    nib.save(image, tmp_path / "a.nii.gz")
    case = nifti.read_case([tmp_path / "a.nii.gz"], id="a", patient="a")
    assert case.slice_spacing == 8
    assert case.spacing == pytest.approx((1.4, 1.5))
    assert np.array_equal(case.frames[:, 0], np.moveaxis(array, axis, 2).transpose(2, 1, 0))
    labels = (case.frames[:, 0] > 50).astype(np.uint8)
    write_labels(tmp_path / "mask.nii.gz", labels, case.provenance)
    mask = nib.load(tmp_path / "mask.nii.gz")
    assert np.array_equal(np.asarray(mask.dataobj), array > 50)
    assert mask.affine == pytest.approx(image.affine, abs=1e-6)


@pytest.mark.parametrize(("shape", "zooms"), [((6, 5, 4), (2.0, 1.4, 1.4)), ((6, 5, 1), (2.0, 1.25, 1.0)),
                                              ((6, 5, 1), (1.0, 1.6, 1.0)), ((6, 5, 4), (3.0, 1.0, 1.0))])
def test_the_third_axis_counts_slices_where_no_other_clearly_does(tmp_path, shape, zooms):
    """Pixels that are not square, and single slices, are no slices along another axis."""
    nib.save(nib.Nifti1Image(pixels(*shape), np.diag([*zooms, 1.0])), tmp_path / "a.nii")
    assert nifti.read_case([tmp_path / "a.nii"], id="a", patient="a").frames.shape == (shape[2], 1, shape[1], shape[0])
