import os
from pathlib import Path

import pytest
import tiny_bundle
import tiny_run
import typer
from typer.testing import CliRunner

from edgeseg.cli.export import export
from edgeseg.cli.main import main
from edgeseg.container import open_bundle
from edgeseg.runtime.segmenter import Segmenter

app = typer.Typer()
app.command()(export)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.mktemp("some place"))


def test_without_arguments_the_latest_run_becomes_a_bundle_beside_it(tiny, monkeypatch):
    monkeypatch.chdir(tiny.folder.parents[1])
    os.utime(tiny.folder / "run.json")
    done = CliRunner().invoke(app, ["--no-int8", "--seconds", "0.1"])
    assert done.exit_code == 0, done.output
    bundle = open_bundle(Path("runs") / "tiny run.edgeseg")
    for check in bundle.manifest.measured.checks:
        assert check.file in done.stdout
    assert f"bundle   {Path('runs') / 'tiny run.edgeseg'}" in done.stdout
    assert not any("int8" in name for name in bundle.files)  # and so no calibration
    assert bundle.manifest.calibration is None
    assert Segmenter(bundle).precision == "fp32"


def said(monkeypatch, capsys, *arguments) -> str:
    """What the real command prints on bad input: one line, and exit code 2."""
    monkeypatch.setattr("sys.argv", ["edgeseg", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    return error


def test_bad_input_is_one_line_with_code_2_and_changes_nothing(tiny, tmp_path, monkeypatch, capsys):
    kept = tiny_bundle.make_bundle(tmp_path / "kept.edgeseg")
    (tmp_path / "unfinished").mkdir()
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert "no finished run" in said(monkeypatch, capsys, "export")
    assert "nowhere: no such run" in said(monkeypatch, capsys, "export", "nowhere")
    assert "unfinished: not finished" in said(monkeypatch, capsys, "export", "unfinished")
    assert "--force" in said(monkeypatch, capsys, "export", tiny.folder, "--out", kept)
    assert "--calibration-frames" in said(monkeypatch, capsys, "export", tiny.folder, "--out", tmp_path / "new.edgeseg",
                                          "--calibration-frames", 1)
    assert "choose fp32, int8" in said(monkeypatch, capsys, "export", tiny.folder, "--out", tmp_path / "new.edgeseg",
                                       "--frame-precision", "int4,int8")
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before
