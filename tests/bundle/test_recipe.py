from dataclasses import fields
from pathlib import Path

import pytest

from edgeseg.bundle.recipe import RUNGS, CalibrationRecipe, Limits
from edgeseg.errors import EdgesegError

FOLDER = Path(__file__).parents[2] / "calibration"
RECIPES = sorted(FOLDER.glob("*.toml"))


def write(folder, text):
    file = folder / "mine.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("file", RECIPES, ids=lambda f: f.stem)
def test_every_recipe_that_ships_loads_under_its_own_name_and_is_in_the_readme(file):
    assert CalibrationRecipe.load(file).name == file.stem
    assert f"`{file.name}`" in (FOLDER / "README.md").read_text("utf-8")


def test_there_is_a_recipe_with_patients_and_one_without():
    assert CalibrationRecipe.load(FOLDER / "cine.toml").source == "run"
    assert CalibrationRecipe.load(FOLDER / "cine-phantom.toml").source.startswith("phantom:cine?")


def test_cine_writes_out_the_defaults():
    text = (FOLDER / "cine.toml").read_text("utf-8")
    assert CalibrationRecipe.load(FOLDER / "cine.toml") == CalibrationRecipe(name="cine")
    keys = [f.name for f in fields(CalibrationRecipe) if f.name not in ("name", "limits")]
    assert all(f"\n{key} = " in text for key in (*keys, *(f.name for f in fields(Limits))))


def test_the_readme_explains_every_key():
    text = (FOLDER / "README.md").read_text("utf-8")
    keys = [f.name for f in (*fields(CalibrationRecipe), *fields(Limits)) if f.name not in ("name", "limits")]
    assert [k for k in keys if f"`{k}`" not in text] == []
    assert [r for r in RUNGS if f"`{r}`" not in text] == []


def test_an_empty_file_is_the_default_recipe_under_its_name(tmp_path):
    assert CalibrationRecipe.load(write(tmp_path, "")) == CalibrationRecipe(name="mine")


@pytest.mark.parametrize(("text", "message"), [
    ("framez = 3", "unknown key framez: there are name, source, frames"),
    ("[limits]\ndicedrop = 1", "unknown key limits.dicedrop: there are dice_drop"),
    ("[limits]\ndice_drop = nan", "limits.dice_drop is nan"),
    ("[limits]\nhd95_rise = inf", "limits.hd95_rise is inf"),
    ("limits = 3", "limits: "),
    ('stratify = ["sex"]', "stratify: Input should be 'phase', 'group', 'vendor' or 'position'"),
    ('rungs = ["fine-tune", "post-training"]', "in this order"),
    ("rungs = []", "rungs are some of"),
    ('rungs = ["prayer"]', "rungs: Input should be 'post-training'"),
    ("frames = 0", "at least 2 frames, not 0"),
    ("frames = 1", "at least 2 frames, not 1"),
    ("frames = -5", "at least 2 frames, not -5"),
    ('frames = "many"', "frames: "),
    ("seed = -1", "seed is -1"),
    ("fine_tune_steps = 0", "fine_tune_steps is 0"),
    ('source = "/data"', "source is '/data': write \"run\", acdc:DIR"),
    ('source = "acdc:"', "source is 'acdc:'"),
    ('source = "phantom:lung"', "source is 'phantom:lung'"),
    ("source =", "not a readable calibration recipe"),
])
def test_a_bad_recipe_is_one_line_that_names_the_file_and_the_key(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(EdgesegError) as raised:
        CalibrationRecipe.load(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_there_or_no_text_is_named(tmp_path):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for file in (tmp_path / "none.toml", tmp_path / "binary.toml", tmp_path):
        with pytest.raises(EdgesegError, match="not a readable calibration recipe"):
            CalibrationRecipe.load(file)
