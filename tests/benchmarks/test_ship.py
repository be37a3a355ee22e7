"""benchmarks/ship.py: what may be shipped, and that nothing else changes when a bundle may not."""

import functools
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle
import tiny_run

from edgeseg.bundle.golden import write_golden
from edgeseg.container import MANIFEST, open_bundle, write_sums
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Calibration, Manifest
from edgeseg.runtime.golden import Golden, load_golden, save_golden

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "ship.py"
ACDC = {"weights": "CC BY-NC-SA 4.0 (somebody)", "software": "Apache-2.0"}
FREE = {"weights": "Apache-2.0 (synthetic, no patient data)", "software": "Apache-2.0"}


@pytest.fixture(scope="module")
def ship():
    sys.path.insert(0, str(SCRIPT.parent))
    import ship

    ship.phantom_frames = functools.cache(ship.phantom_frames)  # the same every time, and seconds each
    yield ship
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    bundle = tiny_bundle.make_bundle(tmp_path_factory.mktemp("made") / "tiny.edgeseg")
    write_golden(bundle, tiny_bundle.GRID)
    return change(bundle, licences=ACDC)


@pytest.fixture
def made(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tiny.edgeseg")


def change(bundle, **fields):
    Manifest.read(bundle / MANIFEST).model_copy(update=fields).write(bundle / MANIFEST)
    write_sums(bundle)
    return bundle


def test_a_bundle_and_its_sheet_go_where_they_are_shipped_from(ship, made, tmp_path):
    root = tmp_path / "checkout"
    bundle = ship.place(made, "tiny", root, False)
    assert sorted(p.relative_to(root).as_posix() for p in root.glob("*/*")) == ["calibration/tiny.sheet.json",
                                                                               "export/tiny.edgeseg"]
    assert bundle.path == root / "export" / "tiny.edgeseg"
    sheet = Calibration.model_validate_json((root / "calibration" / "tiny.sheet.json").read_text())
    assert sheet == open_bundle(made).manifest.calibration == bundle.manifest.calibration


def test_nothing_is_replaced_unasked(ship, made, tmp_path):
    ship.place(made, "tiny", tmp_path, False)
    change(made, intended_use="another")
    with pytest.raises(EdgesegError, match="exists: replace it with --replace"):
        ship.place(made, "tiny", tmp_path, False)
    assert open_bundle(tmp_path / "export" / "tiny.edgeseg").manifest.intended_use == "test"
    assert ship.place(made, "tiny", tmp_path, True).manifest.intended_use == "another"


@pytest.mark.parametrize("name", ["", "Cine", "cine/x", "../cine", "cine.edgeseg", "-x", "a b"])
def test_a_name_that_nobody_could_type_is_refused(ship, made, tmp_path, name):
    with pytest.raises(EdgesegError, match="is named by"):
        ship.place(made, name, tmp_path / "root", False)
    assert not (tmp_path / "root").exists()


def heavier(bundle):
    (bundle / "model.int8.bin").write_bytes(b"\0" * 1_000_001)
    return change(bundle)


def fatter(bundle):
    (bundle / "model.fp32.onnx").write_bytes(b"\0" * 25_000_001)
    return change(bundle)


def with_an_image(bundle):
    """One golden frame is another image, the manifest still says phantom."""
    golden = load_golden(bundle / "golden.npz")
    golden[3] = Golden(np.rot90(golden[3].frame, 2, (1, 2)), golden[3].spacing, golden[3].labels)
    save_golden(bundle / "golden.npz", golden)
    return change(bundle)


def with_a_picture(bundle):
    (bundle / "overlay.png").write_bytes(b"x")
    return change(bundle)


def with_names(bundle):
    sheet = open_bundle(bundle).manifest.calibration
    return change(bundle, calibration=sheet.model_copy(update={"ids": "kept", "synthetic": False}))


def without_int8(bundle):
    for file in bundle.glob("model.int8.*"):
        file.unlink()
    return change(bundle)


@pytest.mark.parametrize(("spoil", "why"), [
    (heavier, "model.int8.bin has 1000001 bytes"), (fatter, "more than 25000000"),
    (with_an_image, "golden frames are not the phantom's"), (with_a_picture, "overlay.png does not belong"),
    (without_int8, "no INT8 files"),
    (lambda b: change(b, golden="acdc"), "golden frames are not the phantom's"),
    (lambda b: change(b, licences={}), "no licence"), (with_names, "names patients"),
    (lambda b: change(b, licences=FREE, teacher={"folder": "nnunet"}), "a teacher's terms may not be")])
def test_what_may_not_be_shipped_changes_nothing(ship, made, tmp_path, spoil, why):
    spoil(made)
    with pytest.raises(EdgesegError, match="tiny is not shipped") as error:
        ship.place(made, "tiny", tmp_path / "root", False)
    assert why in str(error.value)
    assert not (tmp_path / "root").exists()


def test_free_weights_of_labels_alone_are_shipped(ship, made, tmp_path):
    assert ship.refusals(open_bundle(change(made, licences=FREE))) == []


def test_the_golden_frames_of_a_stream_are_a_phantoms_clip(ship, stream_bundle):
    assert ship.golden_is_synthetic(stream_bundle)


@pytest.mark.soak
def test_a_run_is_exported_and_shipped(tmp_path):
    run = tiny_run.make_run(tmp_path / "x").folder
    (tmp_path / "quick.toml").write_text('frames = 10\nrungs = ["post-training"]\n')
    command = [sys.executable, SCRIPT, "--run", run, "--name", "tiny", "--frame", "48x40@1.25", "--seconds", "0.1",
               "--calibration", tmp_path / "quick.toml", "--root", tmp_path / "root"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in ("INT8 weights", "10 frames", "CC BY-NC-SA 4.0", "none of a patient"):
        assert words in done.stdout
    bundle = open_bundle(tmp_path / "root" / "export" / "tiny.edgeseg")
    assert (bundle.manifest.name, len(bundle.manifest.frames)) == ("tiny", 1)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "--replace" in done.stderr, done.stdout) == (1, True, "")
