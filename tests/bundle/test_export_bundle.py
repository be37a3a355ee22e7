"""One real export (the second, in its own process, goes through the command line), and ways in which it can fail."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny_run

from edgeseg.bundle.export import export_bundle, without_paths
from edgeseg.bundle.graph import parse_protocol
from edgeseg.bundle.recipe import CalibrationRecipe
from edgeseg.container import open_bundle
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.geometry import take_window
from edgeseg.runtime.backends import BACKENDS, PRECISIONS
from edgeseg.runtime.golden import label_agreement, load_golden
from edgeseg.runtime.segmenter import Segmenter

PROTOCOL = parse_protocol("48x40@1.25", "uint16")
RECIPE = CalibrationRecipe(name="quick", frames=10, rungs=("post-training",))
FRAMES = {f"frames/{PROTOCOL.name}/{p}.{end}" for p in ("fp32", "int8") for end in ("onnx", "xml", "bin")}
FILES = FRAMES | {"manifest.json", "metadata.json", "SHA256SUMS", "MODEL_CARD.md", "LICENSE", "golden.npz",
                  "model.fp32.onnx", "model.fp32.xml",
         "model.fp32.bin", "model.int8.onnx", "model.int8.xml", "model.int8.bin"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.mktemp("some place"))


@pytest.fixture(scope="module")
def bundle(run):
    return open_bundle(export_bundle(run, run.folder.parent / "first one.edgeseg", recipe=RECIPE,
                                     protocols=(PROTOCOL,), seconds=0.1))


def edgeseg(*arguments, without_network=False, **options):
    command = [sys.executable, "-m", "edgeseg.cli.main", *map(str, arguments)]
    command[1:3] = ["-c", "from edgeseg.cli.main import main; main()"]
    if without_network and can_unshare():
        command = ["unshare", "--net", "--map-root-user", *command]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def can_unshare():
    return shutil.which("unshare") and not subprocess.run(["unshare", "--net", "--map-root-user", "true"]).returncode


@pytest.fixture(scope="module")
def second(run, bundle, tmp_path_factory):
    """The same export from another folder, home and process, with the network cut off where the system lets us."""
    home, work = tmp_path_factory.mktemp("lonely_home"), tmp_path_factory.mktemp("odd_cwd")
    out = work / "second.edgeseg"
    environment = {**os.environ, "HOME": str(home), "USER": "veryunusualuser", "LOGNAME": "veryunusualuser"}
    (work / "quick.toml").write_text('rungs = ["post-training"]\nframes = 12\n')
    process = edgeseg("export", run.folder, "--calibration", "quick.toml", "--calibration-frames", "10", "--out", out,
                      "--frame", "48x40@1.25", "--seconds", "0.1", "--json", cwd=work, env=environment,
                      without_network=True)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    return open_bundle(out), home, stdout


def test_a_bundle_holds_exactly_its_files_and_what_the_run_says(run, bundle):
    assert bundle.files == FILES
    assert bundle.preprocessing == run.preprocessing
    assert bundle.scheme == run.scheme
    assert bundle.manifest.student == json.loads(json.dumps(run.spec))
    assert bundle.manifest.data.patients == {s: len(p) for s, p in run.data["splits"].items()}
    assert not list(bundle.path.parent.glob(".*"))


def test_every_file_was_checked_against_torch_on_dev_frames(bundle):
    measured = bundle.manifest.measured
    assert {(c.backend, c.precision) for c in measured.checks} == {(b, p) for b in BACKENDS for p in PRECISIONS}
    assert measured.frames_from.endswith(" dev")
    for check in measured.checks:
        if check.precision == "fp32":
            assert check.max_logit_difference < 1e-4 * check.logit_range
            assert check.label_agreement > 0.999
        else:
            assert 1e-4 < check.relative_error < 0.5  # quantised indeed
            assert check.label_agreement > 0.8


def test_int8_files_hold_int8_weights_and_fp32_files_no_half_precision(bundle):
    assert bundle.file("model.int8.bin").stat().st_size < 0.5 * bundle.file("model.fp32.bin").stat().st_size
    fp32, int8 = (bundle.file(f"model.{p}.xml").read_text() for p in ("fp32", "int8"))
    assert 'element_type="f16"' not in fp32
    assert "FakeQuantize" in int8
    assert 'element_type="i8"' in int8
    assert b"QuantizeLinear" in bundle.file("model.int8.onnx").read_bytes()


def test_the_calibration_sheet_belongs_to_training_patients_only(run, bundle):
    sheet = bundle.manifest.calibration
    assert 2 <= len(sheet.frames) <= 10
    assert sheet.patients == len(run.data["splits"]["train"])
    text = bundle.file("manifest.json").read_text()
    assert not any(patient in text for patients in run.data["splits"].values() for patient in patients)


def test_the_manifest_carries_the_evidence(bundle):
    measured = bundle.manifest.measured
    assert {(r.rung, r.backend) for r in measured.ladder} == {("post-training", b) for b in BACKENDS}
    subjects = {g.subject for g in measured.admission.gates}
    assert {"openvino int8", "onnxruntime int8", "fp32 files", "int8 files"} <= subjects
    assert {g.kind for g in measured.admission.gates if g.subject == "openvino int8"} >= {"accuracy", "speed"}
    assert {(s.split, s.precision) for s in measured.scores} >= {(s, p) for s in ("dev", "val") for p in PRECISIONS}
    assert {s.split for s in measured.streaming} == {"dev", "val"}
    assert {(c.backend, c.precision) for c in measured.frame_checks} == {(b, p) for b in BACKENDS for p in PRECISIONS}
    assert all(c.agreement >= 0.995 for c in measured.frame_checks if c.precision == "fp32")


def test_one_dev_patient_is_no_evidence_so_int8_is_not_admitted(bundle):
    admission = bundle.manifest.measured.admission
    assert admission.patients == 1
    assert not any(admission.admitted(b, "int8") for b in BACKENDS)
    assert Segmenter(bundle).precision == "fp32"


def test_card_and_licence_carry_the_terms_of_the_data(bundle):
    assert "creativecommons.org/licenses/by-nc-sa" in bundle.file("LICENSE").read_text()
    card = bundle.file("MODEL_CARD.md").read_text()
    for word in ("CC BY-NC-SA 4.0", "Research", "model.int8.onnx", "mean Dice drop"):
        assert word in card


def test_two_exports_of_a_run_are_the_same_bytes(bundle, second):
    for name in FILES - {"manifest.json", "SHA256SUMS", "MODEL_CARD.md", "metadata.json"}:
        assert bundle.file(name).read_bytes() == second[0].file(name).read_bytes(), name
    mine, other = (b.manifest.model_dump(exclude={"measured", "name"}) for b in (bundle, second[0]))
    assert mine == other


def test_no_file_names_a_path_a_user_or_the_host(run, second):
    bundle, home, _ = second
    words = [str(home), home.name, "odd_cwd", "veryunusualuser", "site-packages", ".py\"", str(run.folder),
             str(Path(__file__).parents[2]), str(Path.home()) + "/", "/somewhere/else", sys.prefix]
    words += [w for w in (socket.gethostname(), getpass.getuser()) if len(w) > 5]
    for name in bundle.files:
        content = bundle.file(name).read_bytes()
        for word in words:
            assert word.encode() not in content, (name, word)


def test_exporting_writes_nothing_into_the_home_folder(second):
    assert not list(second[1].rglob("*"))


def test_the_last_line_of_json_output_is_the_manifest(second):
    bundle, _, stdout = second
    assert json.loads(stdout.splitlines()[-1]) == bundle.manifest.model_dump(mode="json")


def test_golden_frames_replay_on_the_runtime_that_made_them(bundle):
    golden = load_golden(bundle.file("golden.npz"))
    assert len(golden) == 8
    assert len({g.frame.shape for g in golden} | {g.spacing for g in golden}) > 1  # native grids
    for backend in BACKENDS:
        for precision in PRECISIONS:
            segmenter = Segmenter(bundle, backend, precision, threads=1)
            for item in golden[:2]:
                found = segmenter.segment(item.frame, item.spacing)
                expected = bundle.scheme.decode(item.labels[f"{backend} {precision}"])
                assert label_agreement(found.labels, expected) > 0.999


def test_the_exported_student_segments_like_the_run_in_torch(run, bundle):
    from edgeseg.bundle.fold import torch_logits

    model, case = run.student(), next(iter(run.dataset().select("dev")))
    expected = run.preprocessing.segment(case.frames, case.spacing, lambda x: torch_logits(model, x))
    for backend in BACKENDS:
        found = Segmenter(bundle, backend, "fp32").segment_volume(case.frames, case.spacing)
        assert found.ok
        assert label_agreement(found.labels, run.scheme.decode(expected)) > 0.999


def test_an_existing_target_is_refused_before_any_work(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("x")
    with pytest.raises(EdgesegError, match="is no bundle"):
        export_bundle(run, tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis").read_text() == "x"


def test_data_that_is_gone_is_one_line_and_leaves_nothing(run, tmp_path):
    broken = Run(**{**run.__dict__, "recipe": {**run.recipe, "data": [f"nnunet:{tmp_path / 'gone'}"]}})
    with pytest.raises(EdgesegError, match="gone"):
        export_bundle(broken, tmp_path / "out" / "a.edgeseg")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 400 kB."""
    disk = tmp_path / "small disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("free", [30_000, 120_000])  # not even the ONNX file fits; the IR does not
def test_a_full_disk_leaves_nothing_half_written(run, small_disk, free):
    (small_disk / "other data").write_bytes(b"x" * (os.statvfs(small_disk).f_bavail * 4096 - free))
    with pytest.raises(EdgesegError, match=r"late\.edgeseg: no space left on the device") as refusal:
        export_bundle(run, small_disk / "late.edgeseg", recipe=RECIPE)
    assert "\n" not in str(refusal.value)
    assert [p.name for p in small_disk.iterdir()] == ["other data"]


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing_half_written_and_no_images(run, tmp_path, tmp_path_factory, stop):
    scratch = tmp_path_factory.mktemp("scratch")
    process = edgeseg("export", run.folder, "--out", tmp_path / "a.edgeseg", start_new_session=True,
                      env={**os.environ, "PYTHONUNBUFFERED": "1", "TMPDIR": str(scratch)})
    while "writing ONNX" not in (line := process.stdout.readline()):
        assert line, process.stderr.read()
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*/model.fp32.xml")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(scratch.rglob("calibration.npy"))
    process.send_signal(stop)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert not list(tmp_path.iterdir())
    assert not list(scratch.rglob("*.npy"))


def test_paths_are_cut_to_their_last_name_and_other_text_is_kept():
    values = {"a": "/home/me/model", "b": ["nnunet:/x/y", "~/z/", "../up/w", "C:\\data\\v"], "n": 3,
              "c": "CC BY-NC-SA 4.0 (https://creativecommons.org/x)", "d": "nnUNetTrainer__nnUNetPlans__2d"}
    assert without_paths(values) == {"a": "model", "b": ["nnunet:y", "z", "w", "v"], "n": 3, "c": values["c"],
                                     "d": values["d"]}


def test_the_check_sees_the_pixels_that_segmentation_sees(run):
    from edgeseg.bundle.calibrate import draw_frames

    frame = draw_frames(run.dataset().select("dev"), run.preprocessing, 1, 0)[0]
    case = frame.case.load()
    canvas = run.preprocessing.to_canvas(case.frames, case.spacing)[frame.index]
    start = tuple(-((g - n) // 2) for n, g in zip(canvas.shape[-2:], run.preprocessing.size, strict=True))
    np.testing.assert_array_equal(frame.window, take_window(canvas, start, run.preprocessing.size))
