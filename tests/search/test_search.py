"""`edgeseg search` the whole way on small real files, then resuming, Ctrl-C and bad input on copies of that search.

In a folder, and so in a process, of its own: a search never loads OpenVINO beside torch, and where the tests of bundle/
had loaded both, Ctrl-C ended the process in a segmentation fault.
"""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nnunet_folders
import pytest
from disks import dataset

from edgeseg.bundle.search_stopwatch import Stopwatch, read_lines
from edgeseg.cli.main import main
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.search_recipe import SearchRecipe
from edgeseg.distill.search_rung import StoredTeacher
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.write import write_acdc
from edgeseg.preprocess import Preprocessing
from edgeseg.students import build_student

HEART = LabelScheme(("background", "RV", "MYO", "LV"))
HAND = {"student": "mobilenetv2", "width_mult": 0.5, "expansion": 2, "size": [32, 32], "spacing": [2.5, 2.5]}


@pytest.fixture(scope="module")
def hearts(tmp_path_factory) -> Path:
    return write_acdc(dataset(HEART), tmp_path_factory.mktemp("data of hearts"))


@pytest.fixture(scope="module")
def recipe_file(hearts, tmp_path_factory) -> Path:
    """A search of one tiny student, trained for an epoch (each further one costs ten seconds of a core)."""
    folder = tmp_path_factory.mktemp("recipes")
    teacher = nnunet_folders.model_folder(folder / "teacher", patch=(32, 32), spacing=(1.5, 1.25))
    recipe = SearchRecipe().changed({
        "max_latency": 10_000.0, "candidates": 1, "rungs": [[1, 1]], "threads": [1], "frame": "48x56@1.5x1.25",
        "grids": ["32@2.5"],
        "space": {"dense": {"stages": [4], "first": [8], "growth": [1.0], "first_blocks": [0], "stem_stride": [2]}},
        "distill": {"data": [f"acdc:{hearts}"], "teacher": f"nnunet:{teacher}", "tta": "none", "batch_size": 4,
                    "precision": "32-true", "ema": 0.9}})
    (folder / "s.toml").write_text(recipe.to_toml())
    return folder / "s.toml"


def run(monkeypatch, capfd, *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["edgeseg", "search", *map(str, arguments)])
    code, handler = 0, signal.getsignal(signal.SIGTERM)
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        signal.signal(signal.SIGTERM, handler)
    said = capfd.readouterr()
    return code, said.out, said.err


@pytest.fixture(scope="module")
def searched(recipe_file, tmp_path_factory) -> tuple[Path, str]:
    """A whole search, and what it said."""
    folder = tmp_path_factory.mktemp("searches") / "my search"
    done = subprocess.run([sys.executable, "-m", "edgeseg", "search", "--recipe", str(recipe_file), "--out",
                           str(folder), "--jobs", "2"], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture
def again(searched, tmp_path) -> Path:
    """A copy of the search as it was before its result was written; its recipe may be edited."""
    folder = shutil.copytree(searched[0], tmp_path / "a copy")
    for name in ("search.json", "search.md", "search.png", "winner.toml"):
        (folder / name).unlink()
    return folder


def edit(folder: Path, **changes) -> None:
    file = folder / "search.toml"
    file.write_text(SearchRecipe.load(file).changed(changes).to_toml())


def test_a_search_measures_trains_and_names_a_winner(searched):
    folder, said = searched
    found = json.loads((folder / "search.json").read_text())
    row, = found["latency"]
    one = row["threads"]["1"]
    assert 0 < one["low"] <= one["ms"] <= one["high"]
    assert row["parameters"] > row["bytes"] / 8 > 0
    assert [r["name"] for r in found["rungs"][0]["rows"]] == found["rungs"][0]["front"] == [found["winner"]] == ["d000"]
    assert found["rungs"][0]["rows"][0]["dice"] > 0
    assert "1 candidates (0 by hand), 0 of them measured already" in said
    assert "latency  1/1" in said
    assert f"edgeseg distill --recipe {folder / 'winner.toml'}" in said


def test_what_is_left_holds_no_image_and_no_path_of_the_data(searched, hearts):
    folder = searched[0]
    assert sorted(p.name for p in folder.iterdir()) == [
        "candidates.json", "latency.jsonl", "rungs", "search.json", "search.md", "search.png", "search.toml",
        "task.json", "winner.toml"]
    assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".json", ".jsonl", ".md", ".png", ".toml"}
    assert str(hearts.parent) not in (folder / "search.json").read_text()
    assert str(hearts.parent) not in (folder / "search.md").read_text()


def test_the_winner_is_a_recipe_of_the_full_schedule(searched):
    found = json.loads((searched[0] / "search.json").read_text())
    recipe = Recipe.load(searched[0] / "winner.toml")
    row = next(r for r in found["latency"] if r["name"] == found["winner"])
    assert recipe.student == row["student"]
    assert recipe.spec == row["spec"]
    assert (recipe.epochs, recipe.ema, recipe.size) == (40, 0.9, (32, 32))


def test_the_kept_result_names_full_trainings_and_refuses_those_of_others(searched, tmp_path):
    found = json.loads((searched[0] / "search.json").read_text())["latency"][0]
    student = build_student({"family": "dense"} | found["spec"]).spec.to_dict()
    for name, spec in (("mine", student), ("another", student | {"widths": [16, 16, 16, 16]})):
        grid = Preprocessing(tuple(found["size"]), tuple(found["spacing"]))
        (tmp_path / name).mkdir()
        Run(tmp_path / name, {"epochs": 40, "seed": 1}, spec, HEART, grid, ("MR",), {}, {},
            {"dev": {"dice": 0.75, "epoch": 7}}).save()
    script = Path(__file__).parents[2] / "benchmarks" / "search.py"
    command = [sys.executable, str(script), str(searched[0]), "--out", str(tmp_path / "results"), "--run"]
    done = subprocess.run([*command, str(tmp_path / "another")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "its student is not one of the search" in done.stderr
    assert not (tmp_path / "results").exists()
    subprocess.run([*command, str(tmp_path / "mine")], capture_output=True, text=True, check=True)
    kept = json.loads((tmp_path / "results" / "search.json").read_text())
    assert kept["full"][0]["name"] == "d000"
    assert "| 40 | 1 | 0.7500 | 8 |" in (tmp_path / "results" / "search.md").read_text()
    assert (tmp_path / "results" / "search.png").stat().st_size > 10_000


def test_resuming_a_finished_search_shows_it_again(searched, monkeypatch, capfd):
    code, out, _ = run(monkeypatch, capfd, "--resume", searched[0], "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1]) == json.loads((searched[0] / "search.json").read_text())


def test_rungs_discard_all_but_the_best_and_go_on_from_what_is_trained(again, monkeypatch, capfd):
    edit(again, rungs=[[2, 1], [1, 3]], candidates=2, controls={"hand": HAND})
    line, = read_lines(again / "latency.jsonl")
    (again / "latency.jsonl").write_text("".join(json.dumps(line | {"name": n}) + "\n" for n in (
        "d000", "d001", "hand")))
    for rung, scores in (("1", {"hand": 0.1, "d000": 0.2, "d001": 0.3}), ("2", {"hand": 0.9, "d001": 0.6})):
        (again / "rungs" / rung).mkdir(exist_ok=True)
        for name, dice in scores.items():
            (again / "rungs" / rung / f"{name}.json").write_text(json.dumps(
                {"name": name, "dice": dice, "seconds": 1.0, "window": "centre", "per_structure": {}}))
    code, out, _ = run(monkeypatch, capfd, "--resume", again)
    assert code == 0
    first, second = json.loads((again / "search.json").read_text())["rungs"]
    assert first["discarded"] == ["d000"]
    assert [r["name"] for r in second["rows"]] == ["hand", "d001"]
    assert "discarded: d000" in out
    assert "hand*" in out  # made by hand, within the limit and best: the search says so
    assert "d000" in (again / "search.md").read_text()
    assert Recipe.load(again / "winner.toml").width_mult == 1.0  # a control's fields are all in its spec
    assert Recipe.load(again / "winner.toml").spec == {"width_mult": 0.5, "expansion": 2, "stem_stride": 2}


def test_ctrl_c_while_measuring_is_one_line_and_keeps_what_was_measured(again, monkeypatch, capfd):
    before = (again / "latency.jsonl").read_text()
    edit(again, candidates=2)
    (again / "latency.jsonl").write_text(before + '{"name": "d0')

    def press(watch, candidate):
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Stopwatch, "measure", press)
        code, _, error = run(patch, capfd, "--resume", again)
    assert code == 130
    assert error == f"edgeseg: {again}: interrupted; go on with `edgeseg search --resume {again}`\n"
    assert (again / "latency.jsonl").read_text() == before  # without the line that a kill tore


def test_a_limit_that_nothing_meets_names_the_fastest_and_may_be_raised(again, monkeypatch, capfd):
    shutil.rmtree(again / "rungs")
    code, _, error = run(monkeypatch, capfd, "--resume", again, "--max-latency", "0.0001ms")
    assert code == 3
    assert error.count("\n") == 1
    assert "no candidate takes at most 0.0001 ms: the fastest, " in error
    assert SearchRecipe.load(again / "search.toml").max_latency == 0.0001


def test_the_limit_stays_once_candidates_are_trained(again, monkeypatch, capfd):
    code, _, error = run(monkeypatch, capfd, "--resume", again, "--max-latency", "2ms")
    assert code == 2
    assert "trained already" in error


def test_latencies_of_another_cpu_are_not_mixed_with_those_of_this_one(again, monkeypatch, capfd):
    lines = read_lines(again / "latency.jsonl")
    (again / "latency.jsonl").write_text(json.dumps(lines[0] | {"cpu": ["another"]}) + "\n")
    code, _, error = run(monkeypatch, capfd, "--resume", again)
    assert code == 2
    assert "measured on another CPU" in error


def test_candidates_that_are_not_those_that_were_measured_are_refused(again, monkeypatch, capfd):
    kept = (again / "candidates.json").read_text()
    (again / "candidates.json").write_text(kept.replace('"size": [32, 32]', '"size": [48, 48]'))
    code, _, error = run(monkeypatch, capfd, "--resume", again)
    assert code == 2
    assert "draws other candidates" in error


def test_a_folder_that_holds_something_else_stays_as_it_is(searched, recipe_file, tmp_path, monkeypatch, capfd):
    before = (searched[0] / "search.json").read_text()
    code, _, error = run(monkeypatch, capfd, "--recipe", recipe_file, "--out", searched[0])
    assert code == 2
    assert "holds another search" in error
    assert (searched[0] / "search.json").read_text() == before
    (tmp_path / "mine.txt").write_text("keep")
    assert "is not empty" in run(monkeypatch, capfd, "--recipe", recipe_file, "--out", tmp_path)[2]
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def no_dev(folder: Path) -> list[object]:
    split = {"train": [f"patient{i:03d}" for i in range(1, 6)], "dev": [], "val": ["patient006"]}
    (folder / "split.json").write_text(json.dumps(split))
    return ["--split-file", folder / "split.json"]


@pytest.mark.parametrize(("options", "match"), [
    (lambda f: ["--jobs", 0], "--jobs is at least 1, not 0"),
    (lambda f: ["--max-latency", "fast"], "--max-latency fast: write milliseconds above 0"),
    (lambda f: ["--rungs", "many"], "--rungs many: write CANDIDATESxEPOCHS"),
    (lambda f: ["--threads", "0"], "at least 1, not 0"),
    (lambda f: ["--candidates", 0], "candidates is at least 1"),
    (lambda f: ["--frame", "big"], "--frame 'big'"),
    (lambda f: ["--data", f"acdc:{f / 'nowhere'}"], "nowhere"),
    (lambda f: ["--distill", f / "none.toml"], "none.toml: not a readable recipe"),
    (no_dev, "no dev patients to rank candidates on"),
])
def test_bad_input_is_one_line_and_leaves_nothing(recipe_file, tmp_path, monkeypatch, capfd, options, match):
    arguments = options(tmp_path)
    code, _, error = run(monkeypatch, capfd, "--recipe", recipe_file, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert error.count("\n") == 1
    assert match in error
    assert not (tmp_path / "out").exists()


def test_a_search_needs_a_limit_and_a_resumed_one_no_other_options(searched, monkeypatch, capfd):
    assert "--max-latency 1.0ms" in run(monkeypatch, capfd)[2]
    assert "give no other options" in run(monkeypatch, capfd, "--resume", searched[0], "--seed", 3)[2]
    assert "nothing to resume" in run(monkeypatch, capfd, "--resume", searched[0] / "rungs")[2]


def test_a_stored_prediction_is_made_once_and_missed_when_it_is_not_there(tmp_path):
    import numpy as np

    case = next(iter(dataset(HEART)))

    class Teacher:
        asked = 0

        def predict(self, case, tta):
            self.asked += 1
            return None, np.full((2, 4, 48, 56), 0.25, np.float32)

    teacher = Teacher()
    for _ in range(2):
        soft = StoredTeacher(tmp_path, (0, 1), teacher).predict(case, "none")[1]
    assert teacher.asked == 1
    np.testing.assert_allclose(soft, 0.25, atol=1 / 255)
    np.testing.assert_array_equal(StoredTeacher(tmp_path, ()).predict(case, "none")[1], soft)
    with pytest.raises(EdgesegError, match="no stored prediction"):
        StoredTeacher(tmp_path / "empty", ()).predict(case, "none")


def test_a_training_ends_with_the_search_that_started_it(tmp_path):
    code = ("import sys, time; from edgeseg.distill import search_rung; "
            "search_rung.train_one = lambda *a: time.sleep(300); sys.exit(search_rung.main(['a', 'b', '1', 'c']))")
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=tmp_path) as process:
        process.stdin.close()  # as when the search is killed
        assert process.wait(60) == 1
