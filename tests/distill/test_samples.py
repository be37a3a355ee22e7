"""Training samples: randomness is a function of (seed, epoch, sample index) and of nothing else."""

import random

import numpy as np
import pytest
import torch

from edgeseg.distill.cache import Cache, CachedCase
from edgeseg.distill.samples import FOREGROUND_SHARE, EpochSampler, SliceDataset, rician, window_centre


@pytest.fixture
def cache(tmp_path) -> Cache:
    rng = np.random.default_rng(0)
    labels = np.zeros((3, 90, 80), np.uint8)
    labels[:, 30:50, 20:45] = 1
    labels[:, 35:42, 25:35] = 2
    soft = np.stack([labels == k for k in range(3)], axis=1) * np.uint8(255)
    np.save(tmp_path / "0.image.npy", (labels[:, None] + rng.normal(0, 0.1, (3, 1, 90, 80))).astype(np.float32))
    np.save(tmp_path / "0.labels.npy", labels)
    np.save(tmp_path / "0.soft.npy", soft)
    return Cache(tmp_path, (CachedCase("c", "p", "0", 3, True),), 0.0)


def test_a_sample_depends_on_its_key_alone(cache):
    first, second = (SliceDataset(cache, (64, 64), seed=1) for _ in range(2))
    wanted = first[2, 5, 1]
    for other in [(0, 0, 0), (2, 4, 1), (3, 5, 1)]:  # draws in between change nothing
        assert not torch.equal(second[other]["image"], wanted["image"])
    random.random(), np.random.random(), torch.rand(3)
    again = second[2, 5, 1]
    assert all(torch.equal(again[k], wanted[k]) for k in wanted)
    assert not torch.equal(SliceDataset(cache, (64, 64), seed=2)[2, 5, 1]["image"], wanted["image"])


def test_global_random_state_is_left_as_it_was(cache):
    data = SliceDataset(cache, (64, 64), seed=1)
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    wanted = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    data[0, 0, 0]
    assert (random.random(), np.random.random(), torch.rand(1).item()) == wanted


def test_image_labels_and_stored_targets_move_together(cache):
    data = SliceDataset(cache, (64, 64), seed=1)
    agree = []
    for i in range(30):
        sample = data[0, i, i % 3]
        assert sample["soft"].sum(0).numpy() == pytest.approx(1, abs=1e-3)
        agree.append((sample["soft"].argmax(0) == sample["labels"]).float().mean().item())
    assert min(agree) > 0.97  # interpolated edges may differ by a pixel


def test_added_noise_is_that_of_a_magnitude_image_at_the_old_mean_and_deviation():
    """Where there is no signal the deviation is sqrt(2 - pi/2) = 0.655 of sigma, where there is much it is sigma."""
    torch.manual_seed(0)
    image = torch.zeros(1, 200, 200)
    image[:, :, 100:] = 2
    image = (image - image.mean()) / image.std()
    noisy = rician(image, 0.2)
    assert noisy.mean().item() == pytest.approx(image.mean().item(), abs=1e-5)
    assert noisy.std().item() == pytest.approx(image.std().item(), abs=1e-5)
    dark, bright = noisy[..., :100].std().item(), noisy[..., 100:].std().item()
    assert dark / bright == pytest.approx(0.655, rel=0.03)


def test_a_share_of_the_images_gets_noise_and_labels_never_change(cache):
    plain, noisy = (SliceDataset(cache, (64, 64), seed=1, noise=n) for n in (0.0, 0.5))
    pairs = [(plain[0, i, 0], noisy[0, i, 0]) for i in range(40)]
    changed = [not torch.equal(a["image"], b["image"]) for a, b in pairs]
    assert 10 <= sum(changed) <= 30
    assert all(torch.equal(a["labels"], b["labels"]) and torch.equal(a["soft"], b["soft"]) for a, b in pairs)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_share_one_epoch_without_overlap(world):
    whole = list(EpochSampler(37, 8, seed=0))
    parts = [list(EpochSampler(37, 8, 0, rank, world)) for rank in range(world)]
    assert sorted(x for p in parts for x in p) == sorted(whole)
    assert len(whole) == 32
    assert len({index for _, _, index in whole}) == 32


def test_every_epoch_has_its_own_order_and_a_small_data_set_is_repeated():
    sampler = EpochSampler(37, 8, seed=0)
    first = list(sampler)
    sampler.set_epoch(1)
    assert [i for *_, i in first] != [i for *_, i in sampler]
    small = list(EpochSampler(3, 8, seed=0))
    assert len(small) == 8
    assert {i for _, _, i in small} == {0, 1, 2}


def test_windows_stay_inside_and_a_third_is_drawn_to_the_foreground():
    labels = np.zeros((300, 200), np.uint8)
    labels[290, 3] = 1
    rng = np.random.default_rng(0)
    centres = np.array([window_centre(labels, (64, 64), rng) for _ in range(3000)])
    assert centres.min(axis=0).tolist() == [32, 32]
    assert (centres.max(axis=0) <= [268, 168]).all()
    assert np.mean((centres == [268, 32]).all(axis=1)) == pytest.approx(FOREGROUND_SHARE, abs=0.03)
    assert window_centre(labels[:20, :30], (64, 64), rng) == (10, 15)
