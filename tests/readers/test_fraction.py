import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from disks import dataset

from edgeseg.distill.recipe import Recipe
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.readers import Dataset, open_data
from edgeseg.readers.splits import take_fraction


@pytest.fixture(scope="module")
def data() -> Dataset:
    """22 training patients, one dev, one val, two cases each; one val patient's cases are in no split."""
    made = dataset(LabelScheme(("background", "LV")), patients=25)
    return replace(made, refs=tuple(replace(r, split=None) if r.patient == "p22" else r for r in made.refs))


def trained(data: Dataset) -> set[str]:
    return set(data.select("train").patients())


def test_a_fraction_keeps_whole_patients_of_split_train_and_all_others(data):
    half = take_fraction(data, 0.5, seed=0)
    assert len(trained(half)) == 11
    assert len(half.select("train")) == 22  # two cases each
    assert [r for r in half.refs if r.split != "train"] == [r for r in data.refs if r.split != "train"]
    assert half.select("dev").patients() == data.select("dev").patients()


def test_of_a_mixture_each_data_set_gives_its_fraction():
    """A single patient beside many is not lost by chance: half of one is one."""
    specs = ("phantom:echo?n=40:0.5", "phantom:echo?n=3&domain=other:0.5")
    for seed in range(6):
        recipe = Recipe(data=specs, teacher="none", kd_weight=0.0, fraction=0.5, seed=seed)
        assert sorted(Counter(r.origin for r in recipe.dataset().select("train").refs).values()) == [1, 14]


def test_a_share_without_a_training_case_is_refused(tmp_path):
    names = [open_data(f"phantom:echo?n=3&domain={d}").patients() for d in ("train", "other")]
    (tmp_path / "split.json").write_text(json.dumps({"train": names[0], "val": names[1]}))
    recipe = Recipe(data=("phantom:echo?n=3:0.5", "phantom:echo?n=3&domain=other:0.5"), teacher="none", kd_weight=0.0)
    assert len(recipe.dataset().select("train").patients()) == 2
    with pytest.raises(EdgesegError, match=r"domain=other.*: has a share of the mixture and no training case"):
        replace(recipe, split_file=str(tmp_path / "split.json")).dataset()


def test_a_smaller_fraction_of_a_seed_lies_within_a_larger_one(data):
    for seed in range(5):
        sets = [trained(take_fraction(data, f, seed)) for f in (0.05, 0.25, 0.5, 0.75, 1.0)]
        assert all(a < b for a, b in pairwise(sets))
        assert sets[-1] == trained(data)


def test_one_seed_takes_the_same_patients_whatever_their_order_and_another_seed_others(data):
    half = trained(take_fraction(data, 0.5, 1))
    assert half == trained(take_fraction(replace(data, refs=data.refs[::-1]), 0.5, 1))
    assert half != trained(take_fraction(data, 0.5, 2))
    # a fixed answer: another version or machine must not take others
    assert sorted(trained(take_fraction(data, 0.1, 0))) == ["p05", "p06"]


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_what_is_no_fraction_is_refused(data, fraction):
    with pytest.raises(EdgesegError, match="above 0 and at most 1, not"):
        take_fraction(data, fraction, 0)


def test_a_fraction_that_leaves_no_patient_says_how_many_there_are(data):
    with pytest.raises(EdgesegError, match=r"disks: fraction 0\.02 of 22 training patient\(s\) leaves none"):
        take_fraction(data, 0.02, 0)
    with pytest.raises(EdgesegError, match="of 0 training"):
        take_fraction(data.select("val"), 1.0, 0)


def test_half_a_patient_is_a_whole_one(data):
    assert len(trained(take_fraction(data, 0.5 / 22, 0))) == 1
