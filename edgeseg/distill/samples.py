"""Training samples: a window of one slice, augmented the way nnU-Net augments.

All randomness (order, window, augmentation) is a pure function of (seed, epoch, sample index): it depends on neither
the number of workers, nor ranks, nor restarts.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from edgeseg import geometry
from edgeseg.distill.cache import Cache, CachedCase
from edgeseg.geometry import Shape
from edgeseg.labels import IGNORE
from edgeseg.readers import CaseRef, draw_probabilities
from edgeseg.torchvision_ops import import_torchvision

FOREGROUND_SHARE = 1 / 3
"""Share of windows that are made to hold a foreground pixel near their centre (nnU-Net: 0.33)."""


MOST_NOISE = 0.5
"""Largest deviation of added noise, in deviations of the image: about a seventh of the 99th percentile of cardiac MR,
where a reader would still see the myocardium. nnU-Net's own noise goes to 0.3, for one image in ten."""


class EpochSampler(Sampler):
    """Yields (epoch, position, slice index): the shuffled slices of one epoch, whole batches only, dealt out to ranks.

    `size` samples make an epoch; fewer slices than that are shown again, each time augmented anew. With `weights` (of a
    mixture of data sets) an epoch draws as many with replacement, each as often as its weight says.
    """

    def __init__(self, slices: int, batch_size: int, seed: int, rank: int = 0, world: int = 1,
                 weights: np.ndarray | None = None) -> None:
        self.slices, self.seed, self.rank, self.world, self.weights = slices, seed, rank, world, weights
        self.batch_size = batch_size
        self.size = max(slices // batch_size, 1) * batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.world

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        order = (rng.permutation(self.slices) if self.weights is None
                 else rng.choice(self.slices, self.size, p=self.weights))
        for position in range(self.rank, self.size, self.world):
            yield self.epoch, position, int(order[position % len(order)])


def sample_weights(refs: Sequence[CaseRef], cases: Sequence[CachedCase]) -> np.ndarray | None:
    """How often to draw each sample (of these cases), summing to 1, when the data are a mixture with shares (`refs`);
    None when they are not, and an epoch shows every sample once."""
    if not any(ref.share for ref in refs):
        return None
    chance = dict(zip([ref.id for ref in refs], draw_probabilities(refs), strict=True))
    count = Counter(case.id for case in cases)
    return np.array([chance[case.id] / count[case.id] for case in cases])


class SliceDataset(Dataset):
    """Augmented windows: {"image" float32 [C, h, w], "labels" uint8 [h, w], "soft" float32 [K, h, w] if stored}."""

    def __init__(self, cache: Cache, size: Shape, seed: int, mirror_axes: tuple[int, ...] = (0, 1),
                 noise: float = 0.0, augment: bool = True, labelled_only: bool = False) -> None:
        self.cache, self.size, self.seed, self.noise = cache, size, seed, noise
        self.slices = [(case, i) for case in cache.cases for i in range(case.slices)
                       if not labelled_only or (cache.array(case, "labels")[i] != IGNORE).any()]
        self.transform: Any = None
        self.source_size = size
        if augment:
            self.transform, self.source_size = nnunet_augmentation(size, mirror_axes)

    def __len__(self) -> int:
        return len(self.slices)

    @property
    def cases(self) -> list[CachedCase]:
        """Of each sample."""
        return [case for case, _ in self.slices]

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        epoch, position, index = key
        with seeded([self.seed, epoch, position]) as rng:
            return self.sample(*self.slices[index], rng)

    def sample(self, case: CachedCase, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        labels = self.cache.array(case, "labels")[index]
        centre = window_centre(labels, self.size, rng)
        start = (centre[0] - self.source_size[0] // 2, centre[1] - self.source_size[1] // 2)

        def cut(kind: str, fill: float) -> torch.Tensor:
            array = self.cache.array(case, kind)[index]
            return torch.from_numpy(geometry.take_window(array, start, self.source_size, fill))

        data: dict[str, Any] = {"image": cut("image", 0), "segmentation": cut("labels", 0)[None].to(torch.int16)}
        if case.soft:
            data["regression_target"] = cut("soft", 0).float() / 255
        out = data if self.transform is None else self.transform(**data)
        image = out["image"].float()
        if self.noise and rng.random() < self.noise:
            image = rician(image, float(rng.uniform(0, MOST_NOISE)))
        result = {"image": image, "labels": out["segmentation"][0].to(torch.uint8)}
        if case.soft:
            soft = out["regression_target"].float()
            soft[0] += 1 - soft.sum(0)  # what lies outside the image is background
            result["soft"] = soft.clamp(0, 1)
        return result


def window_centre(labels: np.ndarray, size: Shape, rng: np.random.Generator) -> tuple[int, int]:
    """Centre (row, column) of a window that lies inside the image where it can, a third of them around foreground."""
    foreground = np.argwhere((labels > 0) & (labels != IGNORE))
    around = len(foreground) > 0 and rng.random() < FOREGROUND_SHARE
    wanted = foreground[rng.integers(len(foreground))] if around else None
    centre = []
    for axis, (n, g) in enumerate(zip(labels.shape, size, strict=True)):
        low, high = min(g // 2, n // 2), max(n - g // 2, n // 2)
        free = int(rng.integers(low, high + 1))
        centre.append(free if wanted is None else int(np.clip(wanted[axis], low, high)))
    return centre[0], centre[1]


def nnunet_augmentation(size: Shape, mirror_axes: tuple[int, ...]) -> tuple[Any, Shape]:
    """nnU-Net's own 2D training transforms (rotation, scaling, noise, blur, brightness, contrast, low resolution,
    gamma, mirroring; translation comes from the window) and the size of the source window that they expect."""
    import_torchvision()
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.utils.random import RandomTransform
    from nnunetv2.training.data_augmentation.compute_initial_patch_size import get_patch_size
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    # nnU-Net's rule: any angle for nearly square patches, +-15 degrees for elongated ones
    angle = math.pi if max(size) / min(size) <= 1.5 else math.pi / 12
    rotation = (-angle, angle)
    source = get_patch_size(size, rotation, rotation, rotation, (0.85, 1.25))
    transform = nnUNetTrainer.get_training_transforms(size, rotation, None, mirror_axes, False)
    for step in transform.transforms:
        if isinstance(step, RandomTransform) and isinstance(step.transform, GaussianBlurTransform):
            # it would time FFT against direct convolution and keep the faster: results would depend on the clock
            step.transform.benchmark = False
    return transform, (int(source[0]), int(source[1]))


def rician(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Normalised image [C, h, w] with the noise of a magnitude image (Gudbjartsson and Patz 1995): |x + n1 + i n2|
    above the darkest pixel of each channel, n1 and n2 of deviation `sigma`; then normalised to what it was, as a noisy
    image would have been."""
    floor = image.amin((1, 2), keepdim=True)
    real, imaginary = sigma * torch.randn_like(image), sigma * torch.randn_like(image)
    noisy = torch.hypot(image - floor + real, imaginary)
    std, mean = torch.std_mean(image, (1, 2), keepdim=True)
    noisy_std, noisy_mean = torch.std_mean(noisy, (1, 2), keepdim=True)
    return (noisy - noisy_mean) / noisy_std.clamp_min(1e-8) * std + mean


@contextmanager
def seeded(key: list[int]) -> Iterator[np.random.Generator]:
    """Every global random source (python, numpy, torch), which nnU-Net's transforms draw from, set from `key`, and
    put back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    rng = np.random.default_rng(key)
    random.seed(int(rng.integers(2**31)))
    np.random.seed(int(rng.integers(2**31)))
    torch.manual_seed(int(rng.integers(2**31)))
    try:
        yield rng
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
