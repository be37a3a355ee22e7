"""One real stability run of the smallest student, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run
import typer
from typer.testing import CliRunner

from edgeseg.bundle.recipe import CalibrationRecipe
from edgeseg.bundle.stability import Sets, Stability
from edgeseg.cli.calibrate import calibrate
from edgeseg.cli.main import main
from edgeseg.manifest import Calibration, CalibrationFrame

app = typer.Typer()
app.command()(calibrate)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_run.make_run(tmp_path_factory.mktemp("some place"))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("my recipes")
    (folder / "few.toml").write_text('frames = 4\nstratify = ["position"]\n')
    (folder / "synthetic.toml").write_text('frames = 4\nsource = "phantom:cine?n=3&seed=5"\n')
    return folder


@pytest.fixture(scope="module")
def done(tiny, recipes, tmp_path_factory):
    out = tmp_path_factory.mktemp("here") / "some out"
    arguments = [tiny.folder, "--stability", 2, "--calibration", recipes / "few.toml", "--compare",
                 recipes / "synthetic.toml", "--threads", 1, "--out", out, "--json"]
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == 0, found.output
    return found, json.loads(found.stdout.strip().splitlines()[-1]), out


def test_each_set_of_each_recipe_is_scored_in_both_runtimes_beside_fp32(done):
    _, document, _ = done
    assert (document["split"], document["patients"]) == ("dev", 1)
    for recipe in (document["recipe"], document["compared"]):
        for backend in ("openvino", "onnxruntime"):
            found = recipe["backends"][backend]
            assert len(found["dice"]) == 2
            assert found["spread"] == pytest.approx(max(found["dice"]) - min(found["dice"]))
            assert found["fp32"] == document["fp32"][backend]
            assert found["largest_drop"] == pytest.approx(found["fp32"] - min(found["dice"]))
        assert [s["frames"] for s in recipe["sets"]] == [4, 4]
        assert recipe["sets"][0]["seed"] + 1 == recipe["sets"][1]["seed"]
        assert 0 <= recipe["overlap"] <= 1
    assert document["fp32"]["openvino"] == pytest.approx(document["fp32"]["onnxruntime"], abs=1e-3)


def test_the_recipes_are_compared_over_patients(done):
    _, document, _ = done
    for backend, found in document["difference"].items():
        means = [sum(r["backends"][backend]["dice"]) / 2 for r in (document["recipe"], document["compared"])]
        assert found["value"] == pytest.approx(means[1] - means[0])
        assert found["n"] == document["patients"]
    assert (document["recipe"]["synthetic"], document["compared"]["synthetic"]) == (False, True)


def test_a_table_and_progress_for_people_and_a_file(done):
    found, document, out = done
    assert "set 4/4: openvino" in found.stderr
    assert "s a set, 0.0 min left" in found.stderr
    assert "synthetic minus few, openvino" in found.stdout
    rows = [line.split() for line in found.stdout.splitlines() if line.split()[:1] in (["few"], ["synthetic"])]
    assert [row[:2] for row in rows[:4]] == [[r, b] for r in ("few", "synthetic") for b in ("openvino", "onnxruntime")]
    dice = document["recipe"]["backends"]["openvino"]["dice"]
    assert rows[0][2:7] == [f"{v:.4f}" for v in (document["fp32"]["openvino"], min(dice), sum(dice) / 2, max(dice),
                                                 max(dice) - min(dice))]
    assert json.loads((out / "stability.json").read_text()) == document
    assert [p.name for p in out.iterdir()] == ["stability.json"]


def test_nobody_and_no_place_is_named(done, tiny):
    _, document, _ = done
    text = json.dumps(document)
    assert str(tiny.folder.parents[1]) not in text
    assert "case" not in text


def sheet(*hashes):
    frames = tuple(CalibrationFrame(patient="p", case="c", slice=0, sha256=h) for h in hashes)
    return Calibration(recipe="r", source="run", data="d", synthetic=False, ids="salted", seed=0, patients=1, strata={},
                       frames=frames)


def test_overlap_is_the_share_of_frames_that_two_sets_have_in_common():
    def overlap(*sets):
        return Sets(CalibrationRecipe(), tuple(sheet(*s) for s in sets), ()).overlap

    assert overlap("ab", "cd") == 0
    assert overlap("ab", "bc") == 0.5
    assert overlap("ab", "ab", "cd") == pytest.approx(1 / 3)


def test_what_has_to_be_said_is_said():
    scored = {b: {"p": 0.9} for b in ("openvino", "onnxruntime")}

    def notes(split, *sets):
        own = Sets(CalibrationRecipe(), tuple(sheet(*s) for s in sets), (scored, scored))
        return " ".join(Stability("r", "d", split, 1, scored, own, None, 1.0).notes())

    assert notes("dev", "abc", "def").startswith("the spread is that of post-training quantisation")
    assert notes("val", "abc", "def").endswith("val is only reported: choose on dev")
    assert "share" not in notes("dev", "abc", "def")
    assert "share 67 % of their frames" in notes("dev", "abc", "bcd")


def said(monkeypatch, capsys, *arguments) -> str:
    """What the real command prints on bad input: one line, and exit code 2."""
    monkeypatch.setattr("sys.argv", ["edgeseg", "calibrate", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip()
    assert error.count("\n") == 0
    return error


@pytest.mark.parametrize(("arguments", "message"), [
    (["--stability", 1], "of fewer than 2 sets there is no spread"),
    (["--stability", 0], "of fewer than 2 sets there is no spread"),
    (["--split", "train"], "choose dev, or val to report"),
    (["--split", "tset"], "choose dev, or val to report"),
    (["--threads", 0], "thread"),
    (["--calibration", "none.toml"], "none.toml: not a readable calibration recipe"),
    (["--compare", "bad.toml"], "bad.toml: unknown key framez"),
    (["--calibration", "unknown.toml"], "source is '/data'"),
    (["--calibration", "nowhere.toml"], "no such folder"),
    (["--calibration", "one.toml"], "at least 2 frames"),
    (["--out", "bad.toml"], "bad.toml: is a file"),
])
def test_bad_input_is_one_line_with_code_2_and_writes_nothing(tiny, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name, text in (("bad", "framez = 3"), ("unknown", 'source = "/data"'), ("nowhere", 'source = "nifti:no/where"'),
                       ("one", "frames = 1")):
        Path(f"{name}.toml").write_text(text)
    before = sorted(p.name for p in tmp_path.iterdir())
    out = [] if "--out" in arguments else ["--out", "out"]
    assert message in said(monkeypatch, capsys, tiny.folder, *arguments, *out)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_the_latest_run_is_meant_by_default_and_there_has_to_be_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "no finished run" in said(monkeypatch, capsys)


def test_what_quantises_never_imports_torch():
    code = "import edgeseg.bundle.stability, sys; print([m for m in ('torch', 'nncf', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
