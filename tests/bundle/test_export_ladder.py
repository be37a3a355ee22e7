"""Export with dev patients enough to judge: what admission decides, and what the last rung does to a bundle."""

import numpy as np
import pytest
import tiny_run
import typer
from typer.testing import CliRunner

from edgeseg.bundle.admit import admit_bundle
from edgeseg.bundle.build import FEWEST
from edgeseg.bundle.export import export_bundle
from edgeseg.bundle.recipe import CalibrationRecipe, Limits
from edgeseg.cli.admit import admit
from edgeseg.cli.export import export
from edgeseg.cli.main import main
from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError

LOOSE = Limits(dice_drop=1, dice_ratio=-1, ef_bias=1e9, ef_limits=1e9, volume_bias=1e9, mass_bias=1e9, hd95_rise=1e9,
               int8_parity=0)
NEVER = Limits(dice_drop=-1)
app = typer.Typer()
app.command("export")(export)
app.command("admit")(admit)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose data has five dev patients."""
    return tiny_run.make_run(tmp_path_factory.mktemp("five dev patients"), cases=52)


def make(run, name, limits, rungs=("post-training",), say=str):
    recipe = CalibrationRecipe(frames=8, rungs=rungs, limits=limits, fine_tune_steps=2)
    return open_bundle(export_bundle(run, run.folder.parent / name, recipe=recipe, seconds=0.05, say=say))


@pytest.fixture(scope="module")
def loose(run):
    return make(run, "loose.edgeseg", LOOSE)


def test_files_within_the_recipes_limits_are_admitted_on_the_first_rung(loose):
    measured = loose.manifest.measured
    assert measured.admission.patients >= FEWEST
    lost = [g for g in measured.admission.gates if g.name == "values lost" and not g.passed]
    for backend in ("openvino", "onnxruntime"):
        assert measured.admission.admitted(backend, "int8") != any(backend in g.subject for g in lost)
    assert [r.rung for r in measured.ladder] == ["post-training"] * 2
    assert loose.manifest.limits["dice_drop"] == 1


@pytest.mark.soak  # a second export, with fine-tuning
def test_the_last_rung_leaves_a_bundle_that_nothing_admits_with_the_runs_own_weights(run, loose):
    said = []
    bundle = make(run, "never.edgeseg", NEVER, ("post-training", "fine-tune"), said.append)
    assert any("fine-tuning with simulated INT8" in line for line in said)
    assert bundle.file("model.fp32.onnx").read_bytes() == loose.file("model.fp32.onnx").read_bytes()
    assert not any("tuned" in name for name in bundle.files)
    assert not any(bundle.manifest.measured.admission.admitted(b, "int8") for b in ("openvino", "onnxruntime"))


def test_admit_repeats_the_gates_with_the_bundles_own_limits(run, loose):
    found = admit_bundle(loose.path, run.recipe["data"][0], "dev", seconds=0.05)
    mine = {(g.subject, g.name): g for g in found.admission.gates}
    theirs = {(g.subject, g.name): g for g in loose.manifest.measured.admission.gates}
    assert mine.keys() == theirs.keys()
    for key, gate in mine.items():
        if gate.kind == "speed":
            continue
        assert gate.estimate.value == pytest.approx(theirs[key].estimate.value)
        assert (gate.limit, gate.passed) == (theirs[key].limit, theirs[key].passed)
    assert found.notes == ()


def test_a_missed_gate_is_said_and_strict_ends_in_code_3(run, loose, monkeypatch, capsys):
    recipe = run.folder.parent / "never.toml"
    recipe.write_text("[limits]\ndice_drop = -1.0\n")
    call = ["admit", str(loose.path), "--data", run.recipe["data"][0], "--calibration", str(recipe), "--seconds",
            "0.05"]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0
    assert "MISSED" in done.stdout
    assert "mean Dice drop" in done.stderr
    monkeypatch.setattr("sys.argv", ["edgeseg", *call, "--strict"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 3
    assert "gate(s) missed" in capsys.readouterr().err


def test_admit_refuses_what_it_cannot_judge(run, loose):
    with pytest.raises(EdgesegError, match="unknown split 'nowhere'"):
        admit_bundle(loose.path, run.recipe["data"][0], "nowhere")
    np.testing.assert_equal(CliRunner().invoke(app, ["admit", str(loose.path)]).exit_code, 2)  # --data is needed
