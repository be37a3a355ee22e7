import json

import nibabel as nib
import numpy as np
import pytest
import tiny_bundle
import typer
from typer.testing import CliRunner

from edgeseg import __version__
from edgeseg.cli.main import main
from edgeseg.cli.predict import predict
from edgeseg.runtime.cpu import cpu_class

app = typer.Typer()
app.command()(predict)
OBLIQUE = np.array([[-1.45, 0.1, 0.9, 12], [0.2, 1.48, -1.2, -40], [0.3, 0.2, 7.8, 3.5], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Its INT8 is admitted and faster on this class of CPU: what "auto" takes."""
    fast = tiny_bundle.speeds(cpu_class(), {"openvino int8": 1.5})
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg",
                                   admission=tiny_bundle.admission(), speeds=fast)


def write_image(path, labels, affine=OBLIQUE, dtype=np.int16, spacing=(1.5, 1.5, 8.0)):
    """Labels [..., N, H, W], time first, as an image on which the tiny network is exact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(tiny_bundle.LEVELS[labels].T.astype(dtype), affine)
    image.header["pixdim"][1:4] = spacing
    nib.save(image, path)
    return path


def stack(*seeds):
    return np.stack([tiny_bundle.label_image(s, (30, 28)) for s in seeds])


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_folder_in_nnunet_naming_becomes_masks_of_the_same_geometry(bundle, tmp_path):
    truth = {f"case{i}": stack(i, i + 1, i + 2) for i in range(3)}
    for name, labels in truth.items():
        write_image(tmp_path / "my images" / f"{name}_0000.nii.gz", labels)
    done = run(bundle, "-i", tmp_path / "my images", "-o", tmp_path / "my masks")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in (tmp_path / "my masks").iterdir()) == [f"case{i}.nii.gz" for i in range(3)]
    for name, labels in truth.items():
        mask, image = nib.load(tmp_path / "my masks" / f"{name}.nii.gz"), nib.load(
            tmp_path / "my images" / f"{name}_0000.nii.gz")
        np.testing.assert_array_equal(np.asarray(mask.dataobj), labels.T)
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(mask.affine, image.affine)
        np.testing.assert_array_equal(mask.header.get_zooms(), image.header.get_zooms())
        for field in ("qform_code", "sform_code", "xyzt_units"):
            assert mask.header[field] == image.header[field]


def test_single_files_keep_their_name_and_ending(bundle, tmp_path):
    image = write_image(tmp_path / "heart.nii", stack(0))
    assert run(bundle, "-i", image, "-o", tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "heart.nii").is_file()
    assert run(bundle, "-i", image, "-o", tmp_path / "chosen.nii.gz", "--backend", "onnxruntime").exit_code == 0
    for path in (tmp_path / "out" / "heart.nii", tmp_path / "chosen.nii.gz"):
        np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), stack(0).T)


def test_a_4d_cine_becomes_a_4d_mask_with_every_time_point_in_its_place(bundle, tmp_path):
    beat = np.stack([stack(t, t + 1) for t in range(5)])
    image = write_image(tmp_path / "beat.nii.gz", beat)
    assert run(bundle, "-i", image, "-o", tmp_path / "out", "--overlay").exit_code == 0
    mask = nib.load(tmp_path / "out" / "beat.nii.gz")
    assert mask.shape == nib.load(image).shape
    np.testing.assert_array_equal(np.asarray(mask.dataobj), beat.T)


def test_an_image_larger_than_the_grid_is_segmented_to_its_corners(bundle, tmp_path):
    labels = np.zeros((1, 100, 80), np.uint8)
    labels[0, :6, :6], labels[0, -6:, -6:] = 1, 3
    run(bundle, "-i", write_image(tmp_path / "wide.nii.gz", labels), "-o", tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "out" / "wide.nii.gz").dataobj), labels.T)


def test_a_bad_image_is_named_and_the_others_go_on(bundle, tmp_path, monkeypatch, capsys):
    images, out = tmp_path / "images", tmp_path / "out"
    write_image(images / "a.nii.gz", stack(0))
    whole = write_image(images / "b.nii.gz", stack(1)).read_bytes()
    (images / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    write_image(images / "c.nii.gz", np.zeros((2, 9, 9), np.uint8))
    nan = write_image(images / "d.nii.gz", stack(2), dtype=np.float32)
    image = nib.load(nan)
    pixels = image.get_fdata(dtype=np.float32)
    pixels[3, 3, 0] = np.nan
    nib.save(nib.Nifti1Image(pixels, image.affine, image.header), nan)
    write_image(images / "e.nii.gz", stack(3), spacing=(0, 1.5, 8.0))
    write_image(images / "f.nii.gz", stack(4))
    monkeypatch.setattr("sys.argv", ["edgeseg", "predict", str(bundle), "-i", str(images), "-o", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert sorted(p.name for p in out.iterdir()) == ["a.nii.gz", "f.nii.gz"]
    said = capsys.readouterr().err
    assert "Traceback" not in said
    for name, reason in (("b", "truncated or damaged"), ("c", "constant"), ("d", "NaN"), ("e", "must be positive")):
        assert any(f"{name}.nii.gz" in line and reason in line for line in said.splitlines()), name
    assert "4 of 6 cases failed" in said.splitlines()[-1]
    assert len(said.splitlines()) == 5  # each reason once


def test_a_single_bad_image_is_one_line(bundle, tmp_path, monkeypatch, capsys):
    image = write_image(tmp_path / "c.nii.gz", np.zeros((2, 9, 9), np.uint8))
    monkeypatch.setattr("sys.argv", ["edgeseg", "predict", str(bundle), "-i", str(image), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"edgeseg: {image}: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("error", [NotADirectoryError(20, "Not a directory", "some file"),
                                   IsADirectoryError(21, "Is a directory", "some file"),
                                   OSError(5, "Input/output error", "some file"), OSError(28, "No space left")])
def test_an_error_of_the_system_that_names_a_file_is_one_line(error, monkeypatch, capsys):
    monkeypatch.setattr("edgeseg.cli.main.app", lambda: throw(error))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"edgeseg: {error.filename or 'output'}: {error.strerror}\n"


def test_an_error_of_the_system_without_a_file_is_not_hidden(monkeypatch):
    monkeypatch.setattr("edgeseg.cli.main.app", lambda: throw(OSError(9, "Bad file descriptor")))
    with pytest.raises(OSError, match="Bad file"):
        main()


def throw(error):
    raise error


def test_the_version_is_told(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["edgeseg", "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"edgeseg {__version__}\n"


def test_an_old_mask_survives_a_failure(bundle, tmp_path):
    image = tmp_path / "images" / "a.nii.gz"
    image.parent.mkdir()
    image.write_bytes(b"no image")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.nii.gz").write_bytes(b"old mask")
    assert run(bundle, "-i", image, "-o", tmp_path / "out").exit_code != 0
    assert [p.read_bytes() for p in (tmp_path / "out").iterdir()] == [b"old mask"]


def test_a_mask_never_overwrites_its_image(bundle, tmp_path, monkeypatch, capsys):
    image = write_image(tmp_path / "heart.nii.gz", stack(0))
    before = image.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    for out in (tmp_path, tmp_path / "link", image):
        monkeypatch.setattr("sys.argv", ["edgeseg", "predict", str(bundle), "-i", str(image), "-o", str(out)])
        with pytest.raises(SystemExit):
            main()
        assert "would overwrite its image" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_wrong_calls_are_one_line_and_write_nothing(bundle, tmp_path, monkeypatch, capsys):
    image = write_image(tmp_path / "in" / "a.nii.gz", stack(0))
    other = write_image(tmp_path / "in" / "b.nii.gz", stack(0))
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    for arguments, message in (
        (["-i", "gone", "-o", "out"], "gone: no such file"),
        (["-i", "empty", "-o", "out"], "empty: holds no .nii"),
        (["-i", "note.txt", "-o", "out"], "note.txt: is not a NIfTI"),
        (["-i", image, "-o", "note.txt"], "note.txt: is a file"),
        (["-i", image, "-i", other, "-o", "one.nii.gz"], "one.nii.gz: is one file but there are 2 cases"),
        (["-i", image, "-o", "out", "--precision", "int4"], "auto, fp32, bf16, int8"),
        (["-i", image, "-o", "out", "--threads", "0"], "at least 1"),
        (["-i", image, "-o", "out", "--streams", "0"], "--streams 0: write auto or a number"),
        (["-i", image, "-o", "out", "--streams", "2", "--threads", "1"], "2 streams share 1 thread"),
        (["-i", image, "-o", "out", "--streams", "1", "--backend", "onnxruntime"], "only OpenVINO has streams"),
    ):
        monkeypatch.setattr("sys.argv", ["edgeseg", "predict", str(bundle), *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        assert message in (said := capsys.readouterr().err)
        assert said.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["edgeseg", "predict", "-i", str(image), "-o", "out"])
    with pytest.raises(SystemExit):
        main()
    assert "edgeseg export" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_streams_give_the_same_masks(bundle, tmp_path):
    volume = np.stack([stack(1, 2), stack(3, 4), stack(5, 6)])
    write_image(tmp_path / "in" / "cine.nii.gz", volume)
    for out, options in (("one", []), ("streams", ["--streams", "auto"])):
        done = run(bundle, "-i", tmp_path / "in", "-o", tmp_path / out, *options)
        assert done.exit_code == 0, done.output
    one, streams = (np.asarray(nib.load(tmp_path / out / "cine.nii.gz").dataobj) for out in ("one", "streams"))
    np.testing.assert_array_equal(one, streams)
    assert one.any()


def test_an_image_with_too_many_channels_is_refused_by_name(bundle, tmp_path):
    for channel in range(2):
        write_image(tmp_path / "in" / f"a_000{channel}.nii.gz", stack(channel))
    done = run(bundle, "-i", tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert "expected 1 channel(s)" in json.loads(done.stdout.splitlines()[-1])["cases"][0]["error"]
    assert not (tmp_path / "out").exists()


def test_the_overlay_shows_grey_outside_and_colour_on_structures(bundle, tmp_path):
    import cv2

    labels = stack(0, 1, 2)
    run(bundle, "-i", write_image(tmp_path / "a.nii.gz", labels), "-o", tmp_path / "out", "--overlay")
    picture = cv2.imread(str(tmp_path / "out" / "a.png"))
    assert picture.shape == (60, 56, 3)  # three slices in two rows of two
    coloured = (picture.max(axis=2) != picture.min(axis=2))
    np.testing.assert_array_equal(coloured[:30, :28], labels[0] > 0)
    np.testing.assert_array_equal(coloured[:30, 28:], labels[1] > 0)
    assert not picture[30:, 28:].any()


def test_json_names_every_mask_on_the_last_line(bundle, tmp_path):
    done = run(bundle, "-i", write_image(tmp_path / "a.nii.gz", stack(0, 1)), "-o", tmp_path / "out", "--json")
    document = json.loads(done.stdout.strip().splitlines()[-1])
    assert document["precision"] == "int8"
    mask = str(tmp_path / "out" / "a.nii.gz")
    assert document["cases"][0] | {"seconds": 0} == {"case": "a", "mask": mask, "frames": 2, "seconds": 0, "error": ""}
