"""The quick forms of the tables on a tiny data set with a tiny teacher, and of the command that runs every script."""

import json
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import nnunet_folders
import numpy as np
import pytest
import tiny_bundle

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


def script(name: str, *options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPTS / f"{name}.py", *map(str, options)], capture_output=True, text=True,
                          check=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Eight patients (two of them val) and a tiny nnU-Net with random weights."""
    place = tmp_path_factory.mktemp("ismrm tables")
    tiny_bundle.write_nnunet_data(place / "Dataset001", cases=8)
    nnunet_folders.model_folder(place / "model", patch=(32, 32), spacing=(1.5, 1.5))
    return place


def options(place: Path) -> list:
    return ["--quick", "--data", f"nnunet:{place / 'Dataset001'}", "--teacher", f"nnunet:{place / 'model'}", "--work",
            place / "work", "--out", place / "out"]


@pytest.fixture(scope="module")
def table1(place) -> Path:
    done = script("ismrm_table1", *options(place))
    assert done.returncode == 0, done.stderr[-3000:]
    return place


@pytest.fixture(scope="module")
def table2(place) -> tuple[Path, str]:
    """Table 2 through the command that runs all, with two scripts that cannot run."""
    done = script("all", *options(place), "--only", "ismrm_table2", "admission", "main_job", "--bundle", place / "none")
    return place, done.stdout + done.stderr


def document(place: Path, name: str) -> dict:
    return json.loads((place / "out" / f"{name}.json").read_text())


@pytest.mark.soak  # the whole main job, small
def test_table_1_has_the_teacher_and_both_precisions_of_the_student_with_dice_and_speed(table1):
    found = document(table1, "ismrm_table1")
    assert (found["schema"], found["quick"], found["seed"]) == ("edgeseg.ismrm_table1/1", True, 0)
    names = ["teacher mirror", "teacher none", "student t=4 FP32", "student t=4 INT8"]
    assert list(found["evaluations"]) == names
    for one in found["evaluations"].values():
        assert {"RV", "MYO", "LV", "mean"} == set(one["structures"])
        assert one["structures"]["LV"]["all"]["dice"]["n"] == one["patients"] == 2
    rows = {row["name"]: row for row in found["bench"]["rows"]}
    assert set(rows) == {"teacher OpenVINO FP32", "teacher PyTorch FP32", *names[2:]}
    assert "teacher OpenVINO FP32" in rows["student t=4 INT8"]["speed_up"]
    assert [t["limit"] for t in found["targets"]] == [10, 10]
    assert found["costs"]["student t=4 INT8"]["parameters"] > 10_000
    assert found["costs"]["teacher mirror"]["passes"]["mirror"] == 4
    assert set(found["minus_teacher"]) == set(names[2:])


@pytest.mark.soak
def test_what_is_finished_is_not_made_again_and_more_ratios_share_one_bench(table1):
    work = table1 / "work"
    shutil.copytree(work / "expansion-4", work / "expansion-2")  # as if it had been trained
    recipe = work / "expansion-2" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("expansion = 4", "expansion = 2"))
    shutil.copytree(work / "expansion-4.edgeseg", work / "expansion-2.edgeseg")
    kept = {p: p.stat().st_mtime_ns for n in (2, 4) for p in (work / f"expansion-{n}" / "run.json",
                                                              work / f"expansion-{n}.edgeseg" / "manifest.json")}
    done = script("ismrm_table1", *options(table1), "--expansions", 2, 4, "--tta", "none")
    assert done.returncode == 0, done.stderr[-3000:]
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert "epoch" not in done.stdout
    found = document(table1, "ismrm_table1")
    assert {r["name"] for r in found["bench"]["rows"] if r["role"] == "student"} == {
        f"student t={t} {p}" for t in (2, 4) for p in ("FP32", "INT8")}


@pytest.mark.soak  # the whole main job, small
def test_a_run_begun_with_another_recipe_is_refused_before_anything_is_made(table1, tmp_path):
    recipe = tmp_path / "other.toml"
    recipe.write_text("learning_rate = 0.5\n")
    before = sorted(p.name for p in (table1 / "work").iterdir())
    done = script("ismrm_table1", *options(table1)[:-1], tmp_path / "out", "--recipe", recipe)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "learning_rate = 0.002, not 0.5" in done.stderr
    assert sorted(p.name for p in (table1 / "work").iterdir()) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.soak  # the whole main job, small
def test_table_2_pairs_every_cell_with_the_student_without_distillation(table2):
    found = document(table2[0], "ismrm_table2")
    cells = {(c["temperature"], c["weight"]): c for c in found["cells"]}
    assert set(cells) == {(None, 0.0), (1.0, 0.5), (2.0, 0.5)}
    plain = np.array(cells[None, 0.0]["patient_dice"][0]["mean"])
    for key, one in cells.items():
        own = np.array(one["patient_dice"][0]["mean"])
        assert one["dice"]["mean"]["value"] == pytest.approx(own.mean())
        if key == (None, 0.0):
            assert one["minus_w0"] is None
        else:
            assert one["minus_w0"]["n"] == 2
            assert one["minus_w0"]["value"] == pytest.approx((own - plain).mean())
    assert set(found["teacher"]) == {"teacher none"}
    assert found["lower_temperature_is_better"]["slope"]["n"] == 2
    assert found["expansion"] == 8


@pytest.mark.soak
def test_an_interrupted_run_is_gone_on_with(table2):
    work, name = table2[0] / "work", "x8-t2-w0.5-s0"
    weights = (work / name / "student.safetensors").read_bytes()
    for made_at_the_end in ("run.json", "score.json", "cost.json"):
        (work / name / made_at_the_end).unlink()
    done = script("students", work, name, "--score")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (work / name / "run.json").is_file()
    assert (work / name / "score.json").is_file()
    assert (work / name / "student.safetensors").read_bytes() == weights  # its one epoch was finished


@pytest.mark.soak  # the whole main job, small
def test_the_command_for_all_says_what_ran_what_was_skipped_and_what_failed(table2):
    said = {line.split()[0]: line for line in table2[1].splitlines() if line.strip()}
    assert "ran, " in said["ismrm_table2"]
    assert "skipped: it has no quick form" in said["admission"]
    assert "FAILED with code" in said["main_job"]  # the bundle that was named is not there


@pytest.mark.soak  # the whole main job, small
@pytest.mark.parametrize("name", ["ismrm_table1", "ismrm_table2"])
def test_results_name_no_patient_and_no_folder_of_this_machine(table1, table2, name):
    for ending in ("json", "md"):
        text = (table1 / "out" / f"{name}.{ending}").read_text()
        assert "case" not in text.replace("cases", "")  # the patients are case0 ... case7
        assert str(table1) not in text
    assert "A quick run" in text
    assert (table1 / "out" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.fixture
def ismrm_table2(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import ismrm_table2

    return ismrm_table2


@pytest.mark.parametrize(("slope", "word"), [(-0.01, "holds"), (0.01, "contradicted"), (0.0, "not shown")])
def test_the_claim_about_temperature_comes_out_as_the_patients_have_it(ismrm_table2, slope, word):
    rng = np.random.default_rng(0)

    def scored(t, w):
        noise = rng.normal(0, 0.002, 20)
        return ismrm_table2.Cell(t, w, [{"mean": 0.8 + slope * np.log2(t or 1) + noise - noise.mean()}], 0.8)

    cells = [scored(None, 0.0), *(scored(t, w) for w in (0.5, 1.0) for t in (1.0, 2.0, 8.0))]
    found = ismrm_table2.lower_is_better(cells, 0)
    assert found["verdict"].startswith(word)
    assert found["slope"].value == pytest.approx(slope, abs=1e-6)
    assert found["lowest_minus_highest"]["0.5"].value == pytest.approx(-3 * slope, abs=1e-6)


def test_seeds_are_averaged_within_a_patient(ismrm_table2):
    cell = ismrm_table2.Cell(1.0, 0.5, [{"mean": np.array([0.2, 0.8])}, {"mean": np.array([0.4, 1.0])}], 0.5)
    np.testing.assert_allclose(cell.dice(), [0.3, 0.9])


def test_the_grid_has_one_cell_without_distillation_and_every_seed_in_every_cell(ismrm_table2):
    from edgeseg.distill.recipe import Recipe

    given = Namespace(temperatures=(1.0, 4.0), weights=(0.0, 0.5, 1.0), seeds=(0, 3), expansion=8)
    found = ismrm_table2.grid(Recipe(), given)
    assert list(found) == [(None, 0.0), (1.0, 0.5), (4.0, 0.5), (1.0, 1.0), (4.0, 1.0)]
    recipes = [r for cell in found.values() for r in cell.values()]
    assert len({name for cell in found.values() for name in cell}) == len(recipes) == 10
    assert {(r.temperature, r.kd_weight) for r in recipes if r.kd_weight} == set(list(found)[1:])
    assert {r.seed for r in found[None, 0.0].values()} == {0, 3}
    assert {r.expansion for r in recipes} == {8}
