"""Training samples for a student of clips: windows of consecutive frames, augmented alike."""

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from edgeseg import geometry
from edgeseg.distill.cache import Cache, CachedCase
from edgeseg.distill.samples import seeded
from edgeseg.geometry import Shape
from edgeseg.torchvision_ops import import_torchvision

ANGLE = np.pi / 12
"""Largest rotation: apical views are held upright."""
MARGIN = 1.5
"""Source window of a rotation by ANGLE and a zoom out to 0.8, in sizes of the sample."""


class ClipDataset(Dataset):
    """{"image" float32 [T, C, h, w], "labels" uint8 [T, h, w], "soft" float32 [T, K, h, w] if stored}.

    An epoch takes as many windows of a clip as fit into it end to end, each begun anywhere. A clip shorter than a
    window is played forwards and backwards.
    """

    def __init__(self, cache: Cache, size: Shape, seed: int, frames: int, augment: bool = True) -> None:
        self.cache, self.size, self.seed, self.frames = cache, size, seed, frames
        self.cases = [case for case in cache.cases for _ in range(max(1, case.slices // frames))]
        self.transform = clip_augmentation(size) if augment else None

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, key: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        epoch, position, index = key
        with seeded([self.seed, epoch, position]) as rng:
            return self.sample(self.cases[index], rng)

    def sample(self, case: CachedCase, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        taken = window_frames(case.slices, self.frames, rng)
        kinds = {"image": 0.0, "labels": 0.0, **({"soft": 0.0} if case.soft else {})}
        cut = {kind: self.cut(np.asarray(self.cache.array(case, kind)[taken]), fill) for kind, fill in kinds.items()}
        if self.transform is None:
            return finished(cut["image"], cut["labels"], cut.get("soft"))
        t, c = cut["image"].shape[:2]
        data: dict[str, Any] = {"image": cut["image"].flatten(0, 1),  # frames as channels: one transform for all
                                "segmentation": cut["labels"].to(torch.int16)}
        if case.soft:
            data["regression_target"] = cut["soft"].flatten(0, 1).float()
        out = self.transform(**data)
        soft = out["regression_target"].unflatten(0, (t, -1)) if case.soft else None
        return finished(out["image"].unflatten(0, (t, c)), out["segmentation"], soft)

    def cut(self, array: np.ndarray, fill: float) -> torch.Tensor:
        """The centred window [.., h, w]: of the sample's size, or larger where it will be turned."""
        size = self.size if self.transform is None else source_size(self.size)
        start = geometry.centre_start(array.shape[-2:], size)
        return torch.from_numpy(geometry.take_window(array, start, size, fill))


def finished(image: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor | None) -> dict[str, torch.Tensor]:
    result = {"image": image.float(), "labels": labels.to(torch.uint8)}
    if soft is not None:
        soft = soft.float() / 255
        soft[:, 0] += 1 - soft.sum(1)  # what lies outside the image is background
        result["soft"] = soft.clamp(0, 1)
    return result


def window_frames(count: int, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `frames` consecutive ones of `count`."""
    if count >= frames:
        start = int(rng.integers(count - frames + 1))
        return np.arange(start, start + frames)
    there_and_back = np.concatenate([np.arange(count), np.arange(count - 2, 0, -1)]) if count > 1 else np.zeros(1, int)
    return np.resize(there_and_back, frames)


def source_size(size: Shape) -> Shape:
    return int(MARGIN * size[0]), int(MARGIN * size[1])


def clip_augmentation(size: Shape) -> Any:
    """nnU-Net's kinds of transforms (batchgeneratorsv2), every frame with the same parameters, no mirroring."""
    import_torchvision()
    from batchgeneratorsv2.helpers.scalar_type import RandomScalar
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    span: RandomScalar = BGContrast((0.75, 1.25))
    return ComposeTransforms([
        SpatialTransform(size, patch_center_dist_from_border=0, random_crop=False, p_elastic_deform=0, p_rotation=0.5,
                         rotation=(-ANGLE, ANGLE), p_scaling=0.5, scaling=(0.8, 1.25),
                         p_synchronize_scaling_across_axes=1, bg_style_seg_sampling=False),
        RandomTransform(GaussianBlurTransform((0.5, 1.0), synchronize_channels=True, synchronize_axes=True,
                                              p_per_channel=1), 0.2),
        RandomTransform(MultiplicativeBrightnessTransform(span, synchronize_channels=True, p_per_channel=1), 0.3),
        RandomTransform(ContrastTransform(span, preserve_range=True, synchronize_channels=True, p_per_channel=1), 0.3),
        RandomTransform(GammaTransform(BGContrast((0.7, 1.5)), p_invert_image=0, synchronize_channels=True,
                                       p_per_channel=1, p_retain_stats=1), 0.3),
    ])
