"""Sweeps: what they plan, what they refuse, and that whatever ends one costs nothing that is finished."""

import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from disks import dataset

from edgeseg.cli.sweep import Shown
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.sweep import SHARED, UNPREPARED, Planned, Sweep, shared
from edgeseg.distill.sweep_jobs import INSIDE, Progress, alone, run_sweep
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.phantoms.write import write_acdc

BASE = "[base]\nteacher = 'none'\nkd_weight = 0.0\n"


def load(folder: Path, text: str) -> Sweep:
    file = folder / "sweep.toml"
    file.write_text(text)
    return Sweep.load(file)


def test_every_arm_meets_every_grid_value_and_seed(tmp_path):
    (tmp_path / "recipe.toml").write_text("teacher = 'nnunet:model'\ndata = ['acdc:x']\nepochs = 3\n")
    runs = load(tmp_path, """
        base = "recipe.toml"
        seeds = [0, 7]
        [[arms]]
        name = "none"
        kd_weight = 0.0
        temperature = 1.0
        [[arms]]
        name = "kl"
        [grid]
        temperature = [1.0, 4.0]
        fraction = [0.5, 1.0]
    """).runs()
    points = {(p.arm, p.recipe.kd_weight, p.recipe.temperature, p.recipe.fraction, p.recipe.seed) for p in runs}
    # the arm that has a temperature of its own is there once a fraction
    kl = {(f"kl-temperature{t}-fraction{f:g}", 0.5, t, f, s) for t in (1, 4) for f in (0.5, 1) for s in (0, 7)}
    assert points == kl | {(f"none-fraction{f:g}", 0.0, 1.0, f, s) for f in (0.5, 1) for s in (0, 7)}
    assert len(runs) == len({p.name for p in runs}) == 12
    assert [p.recipe.seed for p in runs] == [0] * 6 + [7] * 6  # an interrupted sweep has whole rounds
    assert {(p.recipe.epochs, p.recipe.teacher) for p in runs} == {(3, "nnunet:model")}


def test_values_that_make_no_folder_name_are_numbered(tmp_path):
    runs = load(tmp_path, f"{BASE}student = 'dense'\n[[arms]]\nname = 'a'\n[grid]\n"
                          "size = [[32, 32], [64, 64]]\nspacing = [[6.0, 6.0]]\nprecision = ['32-true']").runs()
    assert [p.name for p in runs] == ["a-size-0-spacing-0-precision-0-s0", "a-size-1-spacing-0-precision-0-s0"]
    assert runs[1].recipe.size == (64, 64)


@pytest.mark.parametrize(("text", "words"), [
    ("not toml", "not a readable sweep"),
    ("arm = 1", "unknown key 'arm'; known: base, seeds, arms, grid"),
    (BASE, "at least one [[arms]]"),
    (f"seeds = [0.5]\n{BASE}[[arms]]\nname = 'a'", "seeds is a list of whole numbers"),
    (f"seeds = []\n{BASE}[[arms]]\nname = 'a'", "seeds is a list of whole numbers"),
    (f"{BASE}[[arms]]\nkd_weight = 0.5", "as a table [[arms]] with a name"),
    (f"{BASE}[[arms]]\nname = 'a'\n[[arms]]\nname = 'a'", "arm 'a' is there twice"),
    (f"{BASE}[[arms]]\nname = 'a/../b'", "a name is a folder's"),
    (f"{BASE}[[arms]]\nname = '..'", "a name is a folder's"),
    (f"{BASE}[[arms]]\nname = 'a'\nlerning_rate = 1", "arm 'a': recipe: unknown key 'lerning_rate'"),
    (f"{BASE}[[arms]]\nname = 'a'\nkd_weight = 0.5", "leaves nothing to distil"),
    (f"{BASE}[[arms]]\nname = 'a'\nteacher = 'nnunet:x'", "arm 'a' has a teacher of its own"),
    (f"{BASE}[[arms]]\nname = 'a'\n[grid]\nseed = [1]", "seeds have a key of their own"),
    (f"{BASE}[[arms]]\nname = 'a'\n[grid]\nfraction = 0.5", "[grid] fraction is a list of values"),
    (f"{BASE}[[arms]]\nname = 'a'\n[grid]\nfraction = [1, 1.0]", "two runs would be named a-fraction1-s0"),
    (f"{BASE}[[arms]]\nname = 'a'\n[grid]\nfraction = [0.0]", "fraction"),
    ("[[arms]]\nname = 'a'", "every run would train a teacher of its own"),
    ("base = 'no.toml'\n[[arms]]\nname = 'a'", "not a readable recipe"),
    ("base = 3\n[[arms]]\nname = 'a'", "base is the file of a recipe"),
    *((f"{BASE}[[arms]]\nname = 'a'\n{key} = {value}", f"arm 'a' changes {key}, which all arms share")
      for key, value in (("epochs", 9), ("learning_rate", 0.1), ("batch_size", 2), ("data", "['acdc:y']"),
                         ("fraction", 0.5), ("seed", 3))),
])
def test_what_makes_no_fair_comparison_is_refused_in_one_line(tmp_path, text, words):
    with pytest.raises(EdgesegError) as error:
        load(tmp_path, text).runs()
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_the_fields_that_are_named_are_the_recipes():
    known = {f.name for f in fields(Recipe)}
    assert set(SHARED) <= known
    assert set(UNPREPARED) <= known
    # what is left over decides what is distilled: an arm may change it
    assert {"teacher", "loss", "features", "kd_weight", "temperature", "student", "spec"} <= known - set(SHARED)


def test_runs_share_prepared_cases_when_they_need_the_same_and_only_then():
    one = Recipe(data=("acdc:x",), teacher="nnunet:t", targets="network")
    for same in ({"seed": 4}, {"kd_weight": 0.0}, {"temperature": 4.0}, {"epochs": 2}, {"width_mult": 0.5}):
        assert shared(one.changed(same)) == shared(one), same
    for other in ({"data": ("acdc:y",)}, {"teacher": "nnunet:u"}, {"size": (64, 64)}, {"fraction": 0.5},
                  {"targets": "stored"}, {"final": True}, {"split_file": "s.json"}):
        assert shared(one.changed(other)) != shared(one), other
    half = one.changed({"fraction": 0.5})
    assert shared(half.changed({"seed": 4})) != shared(half)  # other patients
    stored = one.changed({"targets": "stored"})
    assert shared(stored.changed({"tta": "none"})) != shared(stored)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, Sweep]:
    """One arm that can be trained, one of which the teacher is not there, on drawn disks."""
    folder = tmp_path_factory.mktemp("a sweep")
    data = write_acdc(dataset(LabelScheme(("background", "RV", "MYO", "LV"))), folder / "data of hearts")
    return folder / "some runs", load(folder, f"""
        {BASE}data = ["acdc:{data}"]
        size = [32, 32]
        spacing = [1.5, 1.25]
        width_mult = 0.5
        expansion = 2
        epochs = 3
        batch_size = 4
        validate_every = 1
        precision = "32-true"
        [[arms]]
        name = "good"
        [[arms]]
        name = "bad"
        teacher = "targets:/no/such/targets"
        kd_weight = 0.5
    """)


@pytest.fixture(scope="module")
def interrupted(sweep) -> tuple[Path, bytes]:
    """The sweep of the good arm, ended by Ctrl-C after its first epoch; and what that epoch left."""
    out, wanted = sweep
    run = out / "good-s0"

    def press(rows: list[Progress]) -> None:
        if (run / "last.ckpt").exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(wanted.runs()[:1], out, on_look=press)
    assert not (run / "run.json").exists()
    with alone(out):  # nobody is left who works there
        return run, (run / "metrics.csv").read_bytes().splitlines()[1]


@pytest.fixture(scope="module")
def ended(sweep, interrupted) -> list[list[Progress]]:
    """The same sweep again, both arms: what was shown of it."""
    out, wanted = sweep
    shown: list[list[Progress]] = []
    rows = run_sweep(wanted.runs(), out, jobs=2, on_look=shown.append)
    assert rows == shown[-1]
    return shown


def test_an_interrupted_run_is_gone_on_with(sweep, interrupted, ended):
    run, first_epoch = interrupted
    lines = (run / "metrics.csv").read_bytes().splitlines()
    assert lines[1] == first_epoch  # with its seconds: it was not trained again
    assert len(lines) == 1 + 3
    assert Run.open(run).metrics["dev"]["dice"] >= 0


def test_a_failing_arm_is_told_in_one_line_and_the_others_go_on(sweep, ended):
    good, bad = ended[-1]
    assert (good.state, good.epoch, good.why) == ("done", 3, "")
    assert (bad.state, bad.planned.name) == ("failed", "bad-s0")
    assert "/no/such/targets" in bad.why
    assert "\n" not in bad.why
    assert not (sweep[0] / "bad-s0").exists()


def test_progress_is_that_of_the_folder(ended):
    states = [rows[0].state for rows in ended]
    assert states[0] in ("preparing", "training")
    assert sorted(set(states), key=states.index)[-2:] == ["training", "done"]
    last = next(rows[0] for rows in reversed(ended) if rows[0].state == "training")
    assert 1 <= last.epoch <= 3
    assert last.dice is not None
    assert last.left is not None
    assert last.left >= 0


def test_what_is_finished_is_not_made_again_and_prepared_images_go_with_the_last_run(sweep, ended):
    out, wanted = sweep
    assert list((out / INSIDE).glob("cache-*"))  # one arm is not finished: they are still needed
    weights = (out / "good-s0" / "student.safetensors").stat().st_mtime_ns
    rows = run_sweep(wanted.runs()[:1], out)
    assert [r.state for r in rows] == ["done"]
    assert (out / "good-s0" / "student.safetensors").stat().st_mtime_ns == weights
    assert not list((out / INSIDE).glob("cache-*"))


def test_a_run_begun_with_another_recipe_is_refused_before_anything_is_made(sweep, ended):
    out, wanted = sweep
    before = sorted(out.rglob("*"))
    with pytest.raises(EdgesegError, match=r"good-s0: was begun with epochs = 3, not 4: choose another --out"):
        run_sweep(wanted.changed({"epochs": 4}).runs(), out)
    assert sorted(out.rglob("*")) == before


def test_two_sweeps_do_not_work_in_one_folder(sweep, ended):
    out, wanted = sweep
    with alone(out), pytest.raises(EdgesegError, match="another sweep is at work there"):
        run_sweep(wanted.runs(), out)


def test_where_nobody_watches_a_line_tells_what_changed(capsys):
    planned = Planned("a-s0", "a", Recipe())
    with Shown() as shown:
        for state, epoch, dice in (("waiting", 0, None), ("training", 1, None), ("training", 1, None),
                                   ("training", 2, 0.5), ("done", 40, 0.75)):
            shown([Progress(planned, state, epoch, 40, dice, 90.0)])
    assert capsys.readouterr().out.splitlines() == [
        "training  a-s0  epoch 1/40  1.5 min left", "training  a-s0  epoch 2/40  dev Dice 0.5000  1.5 min left",
        "done      a-s0  epoch 40/40  dev Dice 0.7500  (1 of 1 runs ended)"]


def test_a_recipe_of_a_sweep_is_one_that_distill_reads(tmp_path):
    planned = load(tmp_path, f"{BASE}[[arms]]\nname = 'a'\nexpansion = 2").runs()[0]
    (tmp_path / "r.toml").write_text(planned.recipe.to_toml())
    assert json.dumps(asdict(Recipe.load(tmp_path / "r.toml"))) == json.dumps(asdict(planned.recipe))
    assert os.sep not in planned.name
