import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny_bundle
import typer
from typer.testing import CliRunner

from edgeseg.cli.verify import classes, markdown, summary, verify
from edgeseg.container import write_sums
from edgeseg.errors import EdgesegError, GateFailed
from edgeseg.manifest import CpuClass
from edgeseg.measure import verify as verify_module
from edgeseg.runtime.cpu import cpu_class
from edgeseg.runtime.golden import load_golden, save_golden

app = typer.Typer()
app.command()(verify)
SPEEDS = tiny_bundle.speeds(cpu_class(), {"openvino int8": 1.2, "onnxruntime int8": 0.9})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("a place") / "tiny.edgeseg",
                                   admission=tiny_bundle.admission("openvino bf16"), versions={"numpy": "0.0.1"},
                                   speeds=tiny_bundle.speeds(CpuClass(isa=("avx2", "odd"), cores=1000), {}))


@pytest.fixture(scope="module")
def other(bundle, tmp_path_factory):
    """A bundle that computes something else than its golden frames say."""
    path = tmp_path_factory.mktemp("other") / "other.edgeseg"
    shutil.copytree(bundle, path)
    save_golden(path / "golden.npz", [replace(g, labels={k: np.roll(v, 5) for k, v in g.labels.items()})
                                      for g in load_golden(path / "golden.npz")])
    write_sums(path)
    return path


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def quick(monkeypatch):
    """Replays are real; how fast the networks are is given (tests/measure/test_speed.py measures)."""
    monkeypatch.setattr(verify_module, "measure_speeds", lambda *arguments: SPEEDS)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def edgeseg(*arguments):
    return subprocess.run([sys.executable, "-m", "edgeseg", "verify", *map(str, arguments)], capture_output=True,
                          text=True, check=False)


def test_a_sound_bundle_ends_with_0_a_summary_a_document_and_one_page(bundle, tmp_path):
    found = run(bundle, "--seconds", 0.02, "--out", tmp_path / "some out", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout.strip().splitlines()[-1])
    assert document["accepted"] is True
    assert document["recorded"] is True
    assert sorted(p.name for p in (tmp_path / "some out").iterdir()) == ["acceptance.json", "acceptance.md"]
    assert json.loads((tmp_path / "some out" / "acceptance.json").read_text()) == document
    page = (tmp_path / "some out" / "acceptance.md").read_text()
    assert page.startswith("# Acceptance of tiny.edgeseg\n\n**Accepted** on ")
    assert str(tmp_path) not in page
    assert len(page.splitlines()) < 60  # one page
    for word in ("hashes", "replay", "latency", "target", "cpu", "version", "auto", "record", "verdict"):
        assert f"\n{word} " in f"\n{found.stdout}", word
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1


def test_nothing_is_written_into_the_current_folder_or_the_bundle(bundle, quick, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {p: p.read_bytes() for p in bundle.rglob("*")}
    assert run(bundle, "--no-record").exit_code == 0
    assert list((tmp_path / "here").iterdir()) == []
    assert not (tmp_path / "cache").exists()
    assert {p: p.read_bytes() for p in bundle.rglob("*")} == before


def test_auto_is_told_as_it_is_afterwards(bundle, quick):
    kept, not_kept = run(bundle), None
    assert "auto       openvino: int8, onnxruntime: fp32" in kept.stdout
    not_kept = run(bundle, "--no-record")
    assert "auto       openvino: int8, onnxruntime: fp32" in not_kept.stdout  # by the record of before
    assert "record     not kept: as asked" in not_kept.stdout


def test_another_number_of_threads_is_measured_but_not_kept(bundle, quick, tmp_path, monkeypatch):
    monkeypatch.setattr(verify_module, "default_threads", lambda: 2)
    found = run(bundle, "--threads", 1, "--json")
    assert found.exit_code == 0, found.output
    assert "record     not kept: measured with 1 thread(s)" in found.stdout
    assert json.loads(found.stdout.strip().splitlines()[-1])["recorded"] is False
    assert not (tmp_path / "cache").exists()


def test_another_answer_ends_with_3_and_still_reports(other, quick, tmp_path):
    found = run(other, "--out", tmp_path / "out", "--json")
    assert isinstance(found.exception, GateFailed), found.output
    assert found.exception.exit_code == 3
    assert "other.edgeseg: 4 of 4 replays failed or differ" in str(found.exception)
    assert "\n" not in str(found.exception)
    assert json.loads(found.stdout.strip().splitlines()[-1])["accepted"] is False
    assert "**Refused**" in (tmp_path / "out" / "acceptance.md").read_text()
    assert "DISAGREES" in found.stdout


def test_the_command_ends_with_2_for_a_damaged_bundle_in_one_line(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "b.edgeseg")
    (tmp_path / "b.edgeseg" / "golden.npz").write_bytes(b"x")
    found = edgeseg(tmp_path / "b.edgeseg", "--out", tmp_path / "out")
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.count("\n") == 1
    assert "golden.npz: changed since the bundle was made" in found.stderr
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--seconds", 0], "must be above 0"),
    (["--seconds", "nan"], "must be above 0"),
    (["--threads", 0], "at least 1"),
    (["--threads", 9999], "--threads 9999: this process may use"),
])
def test_bad_numbers_are_one_line_and_write_nothing(bundle, tmp_path, arguments, message):
    found = run(bundle, *arguments, "--out", tmp_path / "out")
    assert isinstance(found.exception, EdgesegError), found.output
    assert found.exception.exit_code == 2
    assert message in str(found.exception)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_an_out_that_is_a_file_is_refused_before_the_work_starts(bundle, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("kept")
    monkeypatch.setattr(verify_module, "verify_bundle", lambda *a, **k: pytest.fail("the work started"))
    found = run(bundle, "--out", tmp_path / "file")
    assert isinstance(found.exception, EdgesegError), found.output
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(("module", "attribute"), [("edgeseg.measure.replay", "load_backend"),
                                                   ("edgeseg.measure.bench", "measure")])
def test_an_interrupt_is_one_line_and_keeps_nothing(bundle, tmp_path, module, attribute):
    code = (f"import sys, signal, {module}\n"
            f"{module}.{attribute} = lambda *a, **k: signal.raise_signal({int(signal.SIGINT)})\n"
            "from edgeseg.cli.main import main\nmain()")
    found = subprocess.run([sys.executable, "-c", code, "verify", bundle, "--out", tmp_path / "out"],
                           capture_output=True, text=True, check=False)
    assert found.returncode == 130, found.stderr
    assert found.stdout == ""
    assert found.stderr == "edgeseg: verify: interrupted: nothing was written\n"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


@pytest.fixture(scope="module")
def result(bundle):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify_module, "measure_speeds", lambda *arguments: SPEEDS)
        return verify_module.verify_bundle(bundle, record=False)


def test_what_differs_from_the_building_machine_is_told(result):
    said = "\n".join(summary(result))
    assert "numpy" in said
    assert "0.0.1 where it was built" in said
    assert "1000 where it was built; lacks odd" in classes(result)
    assert "another class" not in classes(replace(result, build_class=result.here_class))
    assert "not known" in classes(replace(result, build_class=None))


@pytest.mark.parametrize(("rate", "said"), [(9.9, "MISSED, 9.9"), (10.0, "reached, 10.0"), (None, "not measured")])
def test_the_target_is_stated_and_never_refuses(result, rate, said):
    slow = replace(result, images_per_second=rate)
    assert slow.accepted
    assert said in next(line for line in summary(slow) if line.startswith("target"))
    assert said in markdown(slow)


def test_a_busy_machine_is_said_so(result):
    assert "BUSY" not in markdown(result)
    assert "BUSY" in markdown(replace(result, speeds=SPEEDS.model_copy(update={"busy": True})))


def test_a_failure_cannot_break_the_table(result):
    broken = replace(result, replays=(replace(result.replays[0], failed="a | b"),))
    row = next(line for line in markdown(broken).splitlines() if line.startswith("| core"))
    assert row.count("|") == 7
    assert "FAILED: a / b" in row
