"""Clips in training: windows of consecutive frames, one augmentation for all of them, mixtures by share."""

from dataclasses import replace

import clip_data
import numpy as np
import pytest
import torch

from edgeseg.distill.cache import Preparation
from edgeseg.distill.clips import ClipDataset, window_frames
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.samples import EpochSampler, sample_weights
from edgeseg.distill.train import student_grid
from edgeseg.errors import EdgesegError
from edgeseg.preprocess import Normalisation, Preprocessing
from edgeseg.teachers.deeplabv3 import GREY, SIZE

GRID = Preprocessing((32, 32), (1.0, 1.0), (Normalisation("ct", mean=0.0, std=1.0, low=0.0, high=255.0),))


@pytest.fixture
def cache(tmp_path):
    data = clip_data.clips(5)

    def soft(case):
        p = np.where(case.labels == 1, 0.8, 0.1).astype(np.float32)
        return np.stack([1 - p, p], axis=1)

    return Preparation(data.select("train"), data.scheme, GRID, True, soft).run(tmp_path / "cache", lambda _: None)


def test_a_window_is_consecutive_frames_and_a_short_clip_is_played_forwards_and_backwards():
    rng = np.random.default_rng(0)
    starts = set()
    for _ in range(50):
        taken = window_frames(12, 5, rng)
        assert np.array_equal(np.diff(taken), np.ones(4))
        assert taken[0] >= 0
        assert taken[-1] < 12
        starts.add(int(taken[0]))
    assert starts == set(range(8))
    assert window_frames(3, 8, rng).tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert window_frames(1, 3, rng).tolist() == [0, 0, 0]


def test_without_augmentation_a_sample_is_what_the_clip_holds(cache):
    sample = ClipDataset(cache, (32, 32), 0, 6, augment=False)[0, 0, 0]
    stored = cache.array(cache.cases[0], "image")
    starts = [i for i in range(7) if np.array_equal(stored[i : i + 6], sample["image"].numpy())]
    assert len(starts) == 1
    taken = slice(starts[0], starts[0] + 6)
    assert np.array_equal(cache.array(cache.cases[0], "labels")[taken], sample["labels"].numpy())
    soft = cache.array(cache.cases[0], "soft")[taken]
    assert np.allclose(soft[:, 1:] / 255, sample["soft"].numpy()[:, 1:], atol=1e-6)


def test_all_frames_of_a_clip_are_augmented_alike(cache):
    """A clip whose frames are all the same stays one whatever the transform did."""
    data = ClipDataset(cache, (32, 32), 0, 6)
    still = cache.cases[0]
    for kind in ("image", "labels", "soft"):
        array = np.load(cache.folder / f"{still.stem}.{kind}.npy")
        np.save(cache.folder / f"{still.stem}.{kind}.npy", np.repeat(array[:1], len(array), axis=0))
    changed = 0
    for position in range(12):
        sample = data[0, position, 0]
        for kind in ("image", "labels", "soft"):
            same = sample[kind].float()
            assert torch.allclose(same, same[:1].expand_as(same), atol=1e-4), kind
        assert torch.allclose(sample["soft"].sum(1), torch.ones(6, 32, 32), atol=1e-5)
        changed += not np.allclose(sample["image"][0, 0], np.load(cache.folder / f"{still.stem}.image.npy")[0, 0])
    assert changed >= 6  # it does augment


def test_a_sample_depends_on_seed_epoch_and_position_alone(cache):
    a, b = (ClipDataset(cache, (32, 32), 3, 6)[1, 2, 1] for _ in range(2))
    other = ClipDataset(cache, (32, 32), 3, 6)[2, 2, 1]
    assert torch.equal(a["image"], b["image"])
    assert not torch.equal(a["image"], other["image"])


def test_an_epoch_shows_as_many_windows_as_fit_end_to_end(cache):
    assert len(ClipDataset(cache, (32, 32), 0, 6)) == 3 * 2
    assert len(ClipDataset(cache, (32, 32), 0, 25)) == 3


def test_a_mixture_is_drawn_by_its_shares(cache):
    """Two clips share 0.7, the third, of another data set, has 0.3; their numbers of windows do not matter."""
    refs = [replace(ref, origin=o, share=s) for ref, (o, s) in
            zip(clip_data.clips(5).refs, [("A", 0.7), ("A", 0.7), ("B", 0.3)], strict=False)]
    cases = [cache.cases[0]] * 9 + [cache.cases[1]] * 3 + [cache.cases[2]] * 5
    weights = sample_weights(refs, cases)
    drawn = [index for epoch in range(40) for sampler in [EpochSampler(17, 5, 0, weights=weights)]
             for _, _, index in (sampler.set_epoch(epoch) or sampler)]
    assert len(drawn) == 40 * 15
    assert np.mean(np.array(drawn) < 12) == pytest.approx(0.7, abs=0.06)
    assert np.mean(np.array(drawn) < 9) == pytest.approx(0.35, abs=0.06)
    assert sample_weights(clip_data.clips(5).refs[:3], cases) is None


@pytest.mark.parametrize(("values", "said"), [({"clip": 0}, "clip is a number of frames"),
                                              ({"loss": "soft_bce", "temperature": 2.0}, "no temperature")])
def test_what_a_recipe_of_clips_refuses(values, said):
    with pytest.raises(EdgesegError, match=said):
        Recipe().changed(values)


def test_a_student_of_clips_without_a_teacher_has_echonets_grid_and_constants():
    grid = student_grid(Recipe(teacher="none", kd_weight=0.0, student="convlstm"), None, 1, 1)
    assert (grid.size, grid.spacing, grid.channels) == (SIZE, (1.0, 1.0), (GREY,))
