"""The prepared cases: made once, made again when what they depend on has changed."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from edgeseg.case import Case
from edgeseg.distill.cache import Preparation
from edgeseg.errors import EdgesegError
from edgeseg.geometry import outside_window
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import CaseRef, Dataset, open_data

SCHEME = LabelScheme(("background", "a", "b"))


def case(number: int, labelled: bool = True) -> Case:
    frames = np.random.default_rng(number).normal(100, 9, (2, 1, 20, 24)).astype(np.float32)
    labels = np.zeros((2, 20, 24), np.uint8)
    labels[:, 0, :3] = 1  # three pixels a slice in the corner, one inside
    labels[:, 10, 12] = 2
    return Case(f"c{number}", f"p{number}", frames, (1.0, 1.0), labels=labels if labelled else None,
                scheme=SCHEME if labelled else None)


def preparation(numbers: tuple[int, ...] = (0, 1), **changes) -> Preparation:
    refs = tuple(CaseRef(f"c{n}", f"p{n}", "train", None, None, None, partial(case, n)) for n in numbers)
    base = Preparation(Dataset("d", "d", refs, SCHEME, "none"), SCHEME, Preprocessing((16, 16), (1.0, 1.0)))
    return replace(base, **changes)


def test_prepared_cases_are_kept(tmp_path):
    preparation().run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    preparation().run(tmp_path)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", [
    {"numbers": (0, 2)},
    {"preprocessing": Preprocessing((16, 16), (0.5, 0.5))},
    {"scheme": LabelScheme(("background", "b"))},
    {"soft_targets": lambda c: np.full((2, 3, 20, 24), 1 / 3, np.float32)},
])
def test_another_split_grid_scheme_or_teacher_is_prepared_anew(tmp_path, change):
    preparation().run(tmp_path / "kept")
    again = preparation(**change).run(tmp_path / "kept")
    fresh = preparation(**change).run(tmp_path / "fresh")
    assert again.cases == fresh.cases
    for c in again.cases:
        for kind in ("image", "labels", *(["soft"] if c.soft else [])):
            np.testing.assert_array_equal(again.array(c, kind), fresh.array(c, kind))


def test_the_share_outside_the_window_is_that_of_all_foreground(tmp_path):
    assert preparation().run(tmp_path).outside == pytest.approx(3 / 4)


def test_unlabelled_cases_are_ignored_pixels_or_refused(tmp_path):
    refs = (CaseRef("c", "p", "train", None, None, None, partial(case, 0, labelled=False)),)
    unlabelled = replace(preparation(), dataset=Dataset("d", "d", refs, None, "none"))
    with pytest.raises(EdgesegError, match="no labels"):
        unlabelled.run(tmp_path / "a")
    kept = replace(unlabelled, need_labels=False).run(tmp_path / "b")
    assert (kept.array(kept.cases[0], "labels") == IGNORE).all()


def test_the_default_window_leaves_out_next_to_nothing_of_acdcs_hearts(acdc):
    window, outside, total = Preprocessing((192, 192), (1.5625, 1.5625)).extent_mm, 0, 0
    for c in open_data(f"acdc:{acdc}").select("train"):
        cut, labelled = outside_window(c.labels, c.spacing, window)
        outside, total = outside + cut, total + labelled
    assert total > 100_000
    assert outside / total <= 0.001
