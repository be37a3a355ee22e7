"""Recipe and Run: text that reads back, and refusals that say what to do."""

import json

import pytest

from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run, latest_run
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.preprocess import Normalisation, Preprocessing


def test_a_resolved_recipe_reads_back_equal(tmp_path):
    recipe = Recipe(data=("acdc:a folder with é", "mnms:b"), teacher="nnunet:t", folds=(0, 2), spacing=(1.25, 1.5),
                    kd_weight=1, seed=7, student="dense", spec={"widths": [8, 8, 8, 16], "head": "bilinear"})
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert Recipe.load(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown key 'epoch'; known: .*epochs"),
        ("epochs = [", "not a readable recipe"),
        ("kd_weight = 1.5", "lies in 0..1"),
        ("ema = 1", "0.999, not 1"),
        ("noise = 2.0", "share of the images"),
        ("[spec]\nnum_classes = 9", "num_classes: the data"),
        ("student = 'dense'\nwidth_mult = 0.5", "are MobileNetV2's"),
        ("spec = 3", "spec = 3"),
        ("temperature = 0", "must be positive"),
        ("epochs = 0", "at least 1"),
        ("data = []", "at least one data set"),
        ("data = ['acdc:x']", "name the teacher"),
        ("data = 'acdc:x'", "data = 'acdc:x'"),
        ("epochs = 'six'", "epochs = 'six'"),
        ("targets = 'some'", "'network' or 'stored'"),
        ("precision = 'int4'", "bf16-mixed"),
        ("size = [192]", "two numbers"),
        ("teacher = 'none'", "nothing to distil"),
    ],
)
def test_a_bad_recipe_is_one_line(tmp_path, text, message):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(EdgesegError, match=message):
        Recipe.load(tmp_path / "r.toml")


def make_run(folder) -> Run:
    from dataclasses import asdict

    folder.mkdir(parents=True)
    grid = Preprocessing((64, 96), (1.5, 1.25), (Normalisation("ct", mean=3, std=2, low=-9, high=9), Normalisation()))
    scheme = LabelScheme(("background", "liver", "spleen"), (0, 6, 1))
    run = Run(folder, json.loads(json.dumps(asdict(Recipe()))), {"family": "mobilenetv2"}, scheme, grid, ("CT", "T1"),
              {"dataset": "x"}, {"name": "y", "licence": "z", "splits": {}}, {"dev": {"dice": 0.5}})
    run.save()
    return run


def test_a_run_reads_back_equal(tmp_path):
    run = make_run(tmp_path / "a")
    assert Run.open(run.folder) == run


def test_the_latest_run_is_the_one_finished_last(tmp_path):
    import os

    for age, name in enumerate(("b", "a")):
        os.utime(make_run(tmp_path / name).folder / "run.json", (1000 + age, 1000 + age))
    assert latest_run(tmp_path).name == "a"
    with pytest.raises(EdgesegError, match="edgeseg distill"):
        latest_run(tmp_path / "none")


def test_an_unfinished_or_absent_run_says_how_to_go_on(tmp_path):
    with pytest.raises(EdgesegError, match="no such run"):
        Run.open(tmp_path / "no")
    with pytest.raises(EdgesegError, match="--resume"):
        Run.open(tmp_path)
