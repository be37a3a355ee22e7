"""`edgeseg distill` with bad input: one line that says what and where, exit code 2, nothing left behind."""

import gzip
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import nnunet_folders
import numpy as np
import pytest

from edgeseg.cli.main import main

WITNESS = Path(tempfile.gettempdir()) / f"edgeseg-payload-ran-{os.getpid()}"


def nifti(path: Path, array: np.ndarray, zooms: tuple[float, ...] = (1.5, 1.5, 8.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, np.diag([1.5, 1.5, 8.0, 1.0]))
    image.header["pixdim"][1 : 1 + len(zooms)] = zooms
    nib.save(image, path)


@pytest.fixture
def acdc(tmp_path) -> Path:
    """Three patients in ACDC's layout, made of noise and one square."""
    root = tmp_path / "some data" / "training"
    rng = np.random.default_rng(0)
    for p in range(1, 4):
        for frame in (1, 9):
            base = root / f"patient{p:03d}" / f"patient{p:03d}_frame{frame:02d}"
            labels = np.zeros((40, 44, 2), np.uint8)
            labels[10:20, 10:20] = p
            nifti(base.with_name(base.name + ".nii.gz"), rng.integers(1, 900, (40, 44, 2)).astype(np.int16))
            nifti(base.with_name(base.name + "_gt.nii.gz"), labels)
        (root / f"patient{p:03d}" / "Info.cfg").write_text("ED: 1\nES: 9\nGroup: NOR\nNbFrame: 12\n")
    return root


def first(root: Path, suffix: str = "") -> Path:
    return root / "patient001" / f"patient001_frame01{suffix}.nii.gz"


def run(monkeypatch, capfd, *arguments: object) -> str:
    """The command's one line of error; fails unless it exits with 2 and one line."""
    monkeypatch.setattr(sys, "argv", ["edgeseg", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capfd.readouterr().err
    assert ended.value.code == 2, error
    assert error.count("\n") == 1, error
    return error


def half_a_case(root: Path) -> None:
    first(root, "_gt").unlink()


def four_dimensions(root: Path) -> None:
    nifti(first(root), np.ones((40, 44, 2, 3), np.int16), (1.5, 1.5, 8.0, 1.0))


def a_foreign_label(root: Path) -> None:
    nifti(first(root, "_gt"), np.full((40, 44, 2), 7, np.uint8))


def not_a_number(root: Path) -> None:
    nifti(first(root), np.full((40, 44, 2), np.nan, np.float32))


def a_constant(root: Path) -> None:
    nifti(first(root), np.full((40, 44, 2), 5, np.int16))


def zero_spacing(root: Path) -> None:
    nifti(first(root), np.arange(3520, dtype=np.int16).reshape(40, 44, 2), (0.0, 1.5, 8.0))


def a_truncated_file(root: Path) -> None:
    raw = first(root).read_bytes()
    first(root).write_bytes(raw[: len(raw) // 2])


def truncated_inside_the_gzip(root: Path) -> None:
    raw = gzip.decompress(first(root).read_bytes())
    first(root).write_bytes(gzip.compress(raw[:-3000]))


DAMAGES = [half_a_case, four_dimensions, a_foreign_label, not_a_number, a_constant, zero_spacing, a_truncated_file,
           truncated_inside_the_gzip]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_data_is_one_line_with_the_file_and_leaves_nothing(damage, acdc, tmp_path, monkeypatch, capfd):
    damage(acdc)
    before = sorted((p, p.stat().st_mtime_ns) for p in acdc.rglob("*"))
    error = run(monkeypatch, capfd, "distill", "--teacher", "none", "-W", "0", "--data", f"acdc:{acdc}", "--out",
                tmp_path / "run", "--epochs", "1")
    assert "patient001_frame01" in error
    assert not (tmp_path / "run").exists()
    assert sorted((p, p.stat().st_mtime_ns) for p in acdc.rglob("*")) == before


def test_a_missing_folder_is_one_line(tmp_path, monkeypatch, capfd):
    error = run(monkeypatch, capfd, "distill", "--teacher", "none", "-W", "0", "--data", f"acdc:{tmp_path / 'no'}",
                "--out", tmp_path / "run")
    assert str(tmp_path / "no") in error
    assert not (tmp_path / "run").exists()


class Payload:
    def __reduce__(self):
        return (Path.touch, (WITNESS,))


def hostile(folder: Path) -> None:
    nnunet_folders.edit_checkpoint(folder / "fold_0" / "checkpoint_final.pth", lambda c: c.update(logging=Payload()))
    WITNESS.unlink(missing_ok=True)


def no_plans(folder: Path) -> None:
    (folder / "plans.json").unlink()


def no_fold(folder: Path) -> None:
    shutil.rmtree(folder / "fold_0")


@pytest.mark.parametrize(("damage", "named"), [(hostile, "checkpoint_final.pth"), (no_plans, "plans.json"),
                                               (no_fold, "fold_")])
def test_a_bad_teacher_is_one_line_and_nothing_of_it_runs(damage, named, acdc, tmp_path, monkeypatch, capfd):
    folder = nnunet_folders.model_folder(tmp_path / "teacher")
    damage(folder)
    error = run(monkeypatch, capfd, "distill", "--teacher", f"nnunet:{folder}", "--data", f"acdc:{acdc}", "--out",
                tmp_path / "run")
    assert named in error
    assert not WITNESS.exists()
    assert not (tmp_path / "run").exists()


def test_wrong_options_are_one_line(acdc, tmp_path, monkeypatch, capfd):
    base = ("distill", "--data", f"acdc:{acdc}", "--out", tmp_path / "run")
    assert "name the teacher" in run(monkeypatch, capfd, *base)
    base = (*base, "--teacher", "nnunet:no such folder")
    assert "no such folder" in run(monkeypatch, capfd, *base)
    assert "0..1" in run(monkeypatch, capfd, *base, "-W", "2")
    assert "takes the place of a teacher" in run(monkeypatch, capfd, *base, "--targets", "some folder")
    assert "some folder: holds no targets" in run(monkeypatch, capfd, "distill", "--data", f"acdc:{acdc}", "--out",
                                                  tmp_path / "run", "--targets", "some folder")
    assert "auto, cpu or gpu" in run(monkeypatch, capfd, *base, "--accelerator", "tpu")
    assert "multiple of the number" in run(monkeypatch, capfd, "distill", "--data", f"acdc:{acdc}", "--out",
                                           tmp_path / "run", "--teacher", "none", "-W", "0", "--batch-size", "3",
                                           "--devices", "2", "--accelerator", "cpu")
    assert "nnunet:MODEL_FOLDER" in run(monkeypatch, capfd, *base, "--teacher", "deeplab:x")
    assert "expansion ratio" in run(monkeypatch, capfd, *base, "--teacher", "none", "-W", "0", "--expansion", "5")
    assert "mobilenetv2" in run(monkeypatch, capfd, *base, "--teacher", "none", "-W", "0", "--student", "vgg")
    assert "nothing to resume" in run(monkeypatch, capfd, "distill", "--resume", tmp_path / "none")
    assert "no other options" in run(monkeypatch, capfd, "distill", "--resume", tmp_path / "none", "--epochs", "80")
    (tmp_path / "a file").write_text("x")
    assert "is a file" in run(monkeypatch, capfd, *base[:-4], "--out", tmp_path / "a file", "--teacher", "none", "-W",
                              "0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a file", "some data"]


def test_without_the_train_extra_one_line_names_it(acdc, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("edgeseg.distill.machine.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "torch", None)
    error = run(monkeypatch, capfd, "distill", "--data", f"acdc:{acdc}", "--teacher", "none", "-W", "0", "--out",
                tmp_path / "run")
    assert "edgeseg[train]" in error
    assert not (tmp_path / "run").exists()
