import json
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import tiny_bundle
import typer
from typer.testing import CliRunner

pytest.importorskip("pydicom")
from dicom_files import ID, PERSON, Plane, oblique, save, slice_file, write_enhanced, write_series

from edgeseg.cli.main import main
from edgeseg.cli.predict import predict
from edgeseg.phantoms.cine import cine_case

app = typer.Typer()
app.command()(predict)
BEAT = np.stack([np.stack([tiny_bundle.label_image(t + k, (30, 28)) for k in range(3)]) for t in range(2)])
"""Labels of two phases of three slices, no two slices of a phase alike."""
IMAGES = tiny_bundle.LEVELS[BEAT].astype(int)
"""Pixels on which the tiny network is exact."""
PLANES = {"axial": Plane(), "from the far end": Plane(gap=-8.0), "oblique": oblique(),
          "oblique from the far end": oblique(gap=-8.0)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def fails(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr("sys.argv", ["edgeseg", "predict", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert PERSON not in said.out + said.err
    assert ID not in said.out + said.err
    return said.err


def the_mask(folder):
    (path,) = folder.glob("*.nii.gz")
    return nib.load(path)


def segment(bundle, images, out):
    done = run(bundle, "-i", images, "-o", out)
    assert done.exit_code == 0, done.output
    return the_mask(out)


def in_patient(image, truth, affine, tolerance=1e-3):
    """`image` where the voxels of `truth` [..., N, H, W] lie by `affine` (x, y, z -> mm), also as [..., N, H, W]."""
    index = np.stack(np.meshgrid(*map(np.arange, truth.shape[:-4:-1]), indexing="ij"), axis=-1)
    there = nib.affines.apply_affine(np.linalg.inv(image.affine) @ affine, index)
    assert np.abs(there - np.rint(there)).max() < tolerance  # one grid
    return np.asarray(image.dataobj)[tuple(np.rint(there).astype(int).reshape(-1, 3).T)].reshape(
        *index.shape[:3], *image.shape[3:]).T


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
@pytest.mark.parametrize("kind", ["classic", "enhanced"])
def test_a_series_becomes_one_mask_that_lies_over_it(bundle, tmp_path, plane, kind):
    if kind == "classic":
        write_series(tmp_path / "in", IMAGES, plane)
    else:
        write_enhanced(tmp_path / "in" / "file", IMAGES, plane)
    mask = segment(bundle, tmp_path / "in", tmp_path / "out")
    assert mask.shape == (28, 30, 3, 2)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(in_patient(mask, BEAT, plane.affine), BEAT)
    np.testing.assert_allclose(mask.header.get_qform(), mask.header.get_sform(), atol=1e-4)
    assert (mask.header["qform_code"], mask.header["sform_code"]) == (1, 1)
    assert mask.header.get_xyzt_units() == ("mm", "sec")
    np.testing.assert_allclose(mask.header.get_zooms()[:3], (1.5, 1.5, 8), rtol=1e-5)


def sitk_image(volume, plane):
    """The volume as SimpleITK holds it: pixels [N, H, W], places in DICOM's axes."""
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(volume.astype(np.int16))
    image.SetSpacing((plane.spacing[1], plane.spacing[0], abs(plane.gap)))
    normal = np.cross(plane.row, plane.column) * np.sign(plane.gap)
    image.SetDirection(np.stack([plane.row, plane.column, normal], axis=1).ravel().tolist())
    image.SetOrigin([float(p) for p in plane.origin])
    return image


def write_nifti(path, how, volume, plane):
    """Whole numbers [N, H, W] as another program would write the series, or as nibabel's users turn it."""
    path.parent.mkdir()
    if how == "SimpleITK":
        image = sitk_image(volume, plane)
        sys.modules["SimpleITK"].WriteImage(image, str(path))
        return
    image = nib.Nifti1Image(volume.astype(np.int16).T, plane.affine)
    if how == "nibabel, rows from the bottom":  # as dcm2niix writes
        image = image.as_reoriented(np.array([[0, 1], [1, -1], [2, 1]]))
    elif how == "nibabel, canonical":
        image = nib.as_closest_canonical(image)
    nib.save(image, path)


@pytest.mark.parametrize("plane", PLANES.values(), ids=PLANES)
@pytest.mark.parametrize("how", ["nibabel", "nibabel, rows from the bottom", "nibabel, canonical", "SimpleITK"])
def test_dicom_and_nifti_give_one_mask_in_patient_space(bundle, tmp_path, plane, how):
    write_series(tmp_path / "dicom", IMAGES[:1], plane)
    write_nifti(tmp_path / "nifti" / "a.nii.gz", how, IMAGES[0], plane)
    of_dicom, of_nifti = (segment(bundle, tmp_path / n, tmp_path / f"{n} out") for n in ("dicom", "nifti"))
    for mask in (of_dicom, of_nifti):
        np.testing.assert_array_equal(in_patient(mask, BEAT[0], plane.affine), BEAT[0])


@pytest.mark.parametrize("gap", [9.0, -9.0])
def test_a_phantom_patient_gives_the_same_mask_from_both(bundle, tmp_path, gap):
    case = cine_case(2, 0, "ED")
    case = replace(case, frames=case.frames[3:6], labels=None)  # fewer slices: less time
    volume = (case.frames[:, 0] * 300 / case.frames.max()).round().astype(int)
    plane = oblique(spacing=tuple(round(s, 6) for s in case.spacing), gap=gap)
    write_series(tmp_path / "dicom", volume[None], plane)
    of_dicom = segment(bundle, tmp_path / "dicom", tmp_path / "dicom out")
    for how in ("nibabel", "SimpleITK"):
        write_nifti(tmp_path / how / "a.nii.gz", how, volume, plane)
        of_nifti = segment(bundle, tmp_path / how, tmp_path / f"{how} out")
        found = in_patient(of_dicom, volume, of_nifti.affine)
        assert len(np.unique(found)) == 4
        np.testing.assert_array_equal(found, np.asarray(of_nifti.dataobj).T)


def test_simpleitk_reads_the_series_and_the_mask_onto_one_grid(bundle, tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    plane = oblique(gap=-8.0)
    write_series(tmp_path / "in", IMAGES[:1], plane)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "in"), "", True, True) or sorted(
        map(str, (tmp_path / "in").rglob("IM*"))))
    segment(bundle, tmp_path / "in", tmp_path / "out")
    image, mask = reader.Execute(), sitk.ReadImage(str(next((tmp_path / "out").glob("*.gz"))))
    again = sitk.Resample(mask, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(tiny_bundle.LEVELS[sitk.GetArrayFromImage(again)], sitk.GetArrayFromImage(image))


def test_streams_overlay_and_json_are_as_for_nifti(bundle, tmp_path):
    write_series(tmp_path / "in", IMAGES)
    done = run(bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--streams", "auto", "--overlay", "--json")
    document = json.loads(done.stdout.splitlines()[-1])
    (case,) = document["cases"]
    assert (case["frames"], case["error"], document["notes"]) == (6, "", [])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [f"{case['case']}.nii.gz", f"{case['case']}.png"]
    np.testing.assert_array_equal(in_patient(the_mask(tmp_path / "out"), BEAT, Plane().affine), BEAT)


def test_single_files_and_chosen_names(bundle, tmp_path):
    files = write_series(tmp_path / "in", IMAGES[:1], extension=".dcm")
    assert run(bundle, "-i", files[0], "-o", tmp_path / "one.nii.gz").exit_code == 0
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "one.nii.gz").dataobj).T, BEAT[0, :1])
    done = run(bundle, *(x for f in files for x in ("-i", f)), "-o", tmp_path / "all.nii")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "all.nii").dataobj).T, BEAT[0])


def test_dicom_and_nifti_can_be_named_together(bundle, tmp_path):
    write_series(tmp_path / "in", IMAGES)
    write_nifti(tmp_path / "nifti" / "heart.nii.gz", "nibabel", IMAGES[0], Plane())
    done = run(bundle, "-i", tmp_path / "in", "-i", tmp_path / "nifti", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").iterdir())) == 2
    assert (tmp_path / "out" / "heart.nii.gz").is_file()


def test_missing_images_are_told_of_and_background(bundle, tmp_path):
    write_series(tmp_path / "in", IMAGES, change=lambda ds, k, t: (k, t) != (1, 1))
    (tmp_path / "in" / "readme").write_text("text")
    done = run(bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json")
    document = json.loads(done.stdout.splitlines()[-1])
    assert "left out: files that are not DICOM (1)" in document["notes"][0]
    assert "1 of 3 slices x 2 phases are missing" in document["notes"][1]
    assert all(note in done.stderr for note in document["notes"])
    expected = BEAT.copy()
    expected[1, 1] = 0
    np.testing.assert_array_equal(in_patient(the_mask(tmp_path / "out"), BEAT, Plane().affine), expected)


def test_a_bad_series_is_named_and_the_others_go_on(bundle, tmp_path, monkeypatch, capsys):
    write_series(tmp_path / "in" / "good", IMAGES)
    cut = save(slice_file(IMAGES[0, 0], Plane(), 0, 0, 1, series="1.7", number=7), tmp_path / "in" / "cut")
    cut.write_bytes(cut.read_bytes()[:-100])
    bare = slice_file(IMAGES[0, 0], Plane(), 0, 0, 1, series="1.8", number=8)
    del bare.PixelSpacing
    bare = save(bare, tmp_path / "in" / "bare")
    said = fails(monkeypatch, capsys, bundle, "-i", tmp_path / "in", "-o", tmp_path / "out").splitlines()
    assert f"{cut}: its pixels are truncated" in said[0]
    assert f"{bare}: has no PixelSpacing" in said[1]
    assert said[2:] == ["edgeseg: 2 of 3 cases failed, each is named above"]
    assert [p.name[:10] for p in (tmp_path / "out").iterdir()] == ["series004_"]


def test_nothing_of_a_person_is_in_what_is_said_or_written(bundle, tmp_path):
    write_series(tmp_path / "in", IMAGES)
    done = run(bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json")
    (path,) = (tmp_path / "out").iterdir()
    written = bytes(nib.load(path).header.binaryblock) + np.asarray(nib.load(path).dataobj).tobytes()
    for word in (PERSON, ID, "19470311"):
        assert word not in done.output + path.name
        assert word.encode() not in written


def test_wrong_calls_are_one_line_and_write_nothing(bundle, tmp_path, monkeypatch, capsys):
    path = save(slice_file(IMAGES[0, 0], Plane(), 0, 0, 1), tmp_path / "a.nii.dcm")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.dcm").write_text("x" * 200)
    before = sorted(tmp_path.rglob("*"))
    for images, message in (("texts", "texts: holds no .nii or .nii.gz file, and no DICOM"),
                            ("texts/a.dcm", "a.dcm: is not a NIfTI file (.nii or .nii.gz) and not DICOM")):
        said = fails(monkeypatch, capsys, bundle, "-i", tmp_path / images, "-o", tmp_path / "out")
        assert message in said
        assert said.count("\n") == 1
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pydicom", None)
        said = fails(patch, capsys, bundle, "-i", path, "-o", tmp_path / "out")
    assert said == "edgeseg: this needs pydicom: pip install 'edgeseg[dicom]'\n"
    assert sorted(tmp_path.rglob("*")) == before
