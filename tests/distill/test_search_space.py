"""What a search draws from, what its recipe says, and the rules by which candidates are chosen: no training here."""

import json
from collections import Counter

import pytest

from edgeseg.distill.recipe import Recipe
from edgeseg.distill.search_choice import halve, pareto, promising
from edgeseg.distill.search_recipe import SearchRecipe, milliseconds, parse_rungs
from edgeseg.distill.search_rung import load_candidates, save_candidates
from edgeseg.distill.search_space import SPACE, checked_space, control, parse_grid, sample
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Preprocessing
from edgeseg.students import build_student


def test_a_seed_draws_the_same_different_candidates_again():
    first, again, other = sample(200, 0), sample(200, 0), sample(200, 1)
    assert first == again
    assert len({c.key for c in first}) == len({c.name for c in first}) == 200
    assert {c.key for c in first} != {c.key for c in other}
    assert Counter(c.student for c in first).keys() == SPACE.keys()
    assert len({c.grid for c in first}) == 4


def test_every_candidate_can_be_built_and_fits_its_grid():
    for candidate in sample(60, 3):
        student = build_student({"family": candidate.student} | candidate.spec)
        assert all(n % student.spec.stride == 0 for n in candidate.size)
        recipe = candidate.recipe(Recipe(teacher="none", kd_weight=0.0))
        assert (recipe.student, recipe.spec, recipe.size) == (candidate.student, candidate.spec, candidate.size)


def test_a_space_that_is_used_up_gives_what_it_has_and_never_what_is_taken():
    space = checked_space({"mobilenetv2": {"width_mult": [0.5, 1.0], "expansion": [1, 2], "blocks": [1]}})
    four = sample(10, 0, ("192@1.5625",), space)
    assert len(four) == 4
    made = control("mine", Recipe(width_mult=0.5, expansion=2, spec={"blocks": [1, 1, 1, 1, 1]}),
                   Preprocessing((192, 192), (1.5625, 1.5625)))
    assert len(sample(10, 0, ("192@1.5625",), space, [made])) == 3


def test_candidates_come_back_from_their_file(tmp_path):
    drawn = sample(20, 0)
    save_candidates(tmp_path, drawn)
    assert list(load_candidates(tmp_path).values()) == drawn


@pytest.mark.parametrize(("space", "match"), [
    ({"resnet": {}}, "unknown student family 'resnet'; known: dense, mobilenetv2"),
    ({"dense": {"width": [8]}}, "space.dense: unknown key 'width'; known: stages"),
    ({"dense": {"stages": []}}, "space.dense.stages: an empty list"),
    ({"dense": {"stages": ["a"]}}, "space.dense.stages = 'a': give values like"),
    ({"dense": {"stages": [4, 3]}}, "space.dense.stages = 3"),
    ({"dense": {"growth": [-1.0]}}, "space.dense.growth = -1.0"),
    ({"dense": {"blocks": [True]}}, "space.dense.blocks = True"),
    ({"dense": {"head": ["fancy"]}}, "space.dense.head = 'fancy'"),
    ({"mobilenetv2": {"width_mult": ["x"]}}, "space.mobilenetv2.width_mult = 'x'"),
])
def test_a_bad_space_is_refused(space, match):
    with pytest.raises(EdgesegError, match=match):
        checked_space(space)


@pytest.mark.parametrize("text", ["192", "0@1.5", "192@0", "192x160@1.5", "-32@1.5", "192@nan"])
def test_a_bad_grid_is_refused(text):
    with pytest.raises(EdgesegError, match="SIDE@MM"):
        parse_grid(text)


@pytest.mark.parametrize(("text", "ms"), [("1.0ms", 1.0), ("0.8", 0.8), (" 12 ms", 12.0), (".5ms", 0.5)])
def test_milliseconds_are_read(text, ms):
    assert milliseconds(text) == ms


@pytest.mark.parametrize("text", ["fast", "", "0", "0.0ms", "-1ms", "nan", "inf", "1s", "1,5ms", "1e-3"])
def test_what_is_no_latency_is_refused(text):
    with pytest.raises(EdgesegError, match=r"write milliseconds above 0, as 1\.0ms or 0\.8"):
        milliseconds(text)


def test_rungs_are_read_or_refused():
    assert parse_rungs("24x2, 12x4") == ((24, 2), (12, 4))
    for text in ("24", "24x", "axb", "24x2;12x4", ""):
        with pytest.raises(EdgesegError, match="CANDIDATESxEPOCHS"):
            parse_rungs(text)


def test_a_recipe_comes_back_from_its_toml(tmp_path):
    recipe = SearchRecipe().changed({
        "max_latency": "0.8ms", "rungs": [[4, 1], [2, 3]], "threads": [1, 2], "frame": "256x216@1.40625",
        "space": {"dense": {"stages": [4, 5], "head": ["subpixel"]}},
        "distill": {"data": ["phantom:cine?n=8"], "teacher": "none", "kd_weight": 0.0, "spec": {"blocks": [1]}},
        "controls": {"by-hand": {"student": "dense", "spec": {"widths": [16, 16, 32, 32]}, "size": [160, 160]}}})
    (tmp_path / "search.toml").write_text(recipe.to_toml())
    assert SearchRecipe.load(tmp_path / "search.toml") == recipe
    assert recipe.max_latency == 0.8


@pytest.mark.parametrize(("text", "match"), [
    ("candidate = 3", "unknown key 'candidate'; known: back, candidates"),
    ("[distill]\nepoch = 3", "distill: unknown key 'epoch'"),
    ("[controls.a]\nepochs = 3", "controls.a: unknown key 'epochs'; known: student, spec"),
    ("[controls.d017]\nstudent = 'dense'", "not as those that are drawn"),
    ('[controls."../a"]\nstudent = "dense"', "name it with letters"),
    ("[controls.a]\nstudent = 'vit'", "controls.a: student"),
    ("max_latency = 0", "milliseconds above 0"),
    ("max_latency = nan", "milliseconds above 0"),
    ("candidates = 0", "candidates is at least 1"),
    ("rungs = []", "rungs are pairs"),
    ("rungs = [[3, 2], [6, 4]]", "fewer candidates and more epochs"),
    ("rungs = [[3, 0]]", "rungs are pairs"),
    ("rungs = [[24, 2], [12, 1]]", "fewer candidates and more epochs"),
    ("rungs = [[24, 2], [24, 4]]", "fewer candidates and more epochs"),
    ("threads = [0]", "at least 1, not 0"),
    ("grids = ['big']", "SIDE@MM"),
    ("grids = []", "at least one grid"),
    ("dtype = 'int8'", "dtype = 'int8'"),
    ("candidates = ", "not a readable search recipe"),
])
def test_a_bad_recipe_is_one_line_with_its_file(tmp_path, text, match):
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(EdgesegError, match=match) as said:
        SearchRecipe.load(tmp_path / "s.toml")
    assert str(tmp_path / "s.toml") in str(said.value)
    assert "\n" not in str(said.value)


def rows(count: int) -> list[dict]:
    return [{"name": f"d{k:03d}", "ms": 1 + k / 100, "macs": k % 7, "parameters": -k} for k in range(count)]


def test_the_first_rung_takes_the_most_computing_of_each_latency_and_some_by_lot():
    chosen = promising(rows(100), 24, seed=0)
    assert len(chosen) == 24
    assert Counter(chosen.values()) == {"most MACs of its latency": 9, "most parameters of its latency": 9, "drawn": 6}
    assert chosen == promising(rows(100)[::-1], 24, seed=0)
    assert chosen != promising(rows(100), 24, seed=1)
    assert chosen["d006"] == "most MACs of its latency"  # 6 is the largest k % 7 of the fastest eleventh or so
    assert set(promising(rows(5), 24, 0).values()) == {"all that are fast enough"}


def test_the_best_go_on_and_controls_beside_them():
    results = {"a": {"dice": 0.1}, "b": {"dice": 0.3}, "c": {"failed": "x"}, "mine": {"dice": 0.0}, "d": {"dice": 0.2}}
    kept, out = halve(results, ["mine"], 2)
    assert kept == ["b", "d", "mine"]
    assert out == ["a", "c"]
    assert halve({"mine": {"failed": "x"}, "a": {"dice": 0.5}}, ["mine"], 1) == (["a"], ["mine"])


def test_nobody_on_the_front_is_beaten_in_both():
    points = [("slow", 3.0, 0.8), ("worse", 2.0, 0.6), ("fast", 1.0, 0.5), ("good", 2.0, 0.7), ("bad", 4.0, 0.75)]
    assert pareto(points) == ["fast", "good", "slow"]
    assert pareto([]) == []
    assert json.dumps(pareto([("one", 1.0, 0.0)])) == '["one"]'
