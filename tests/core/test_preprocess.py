"""Normalisation as nnU-Net does it, and the whole way from raw pixels to a label map."""

import numpy as np
import pytest

from edgeseg.preprocess import Normalisation, Preprocessing, bounding_box


def volume(seed: int = 0) -> np.ndarray:
    out = np.zeros((4, 2, 30, 40), np.float32)
    out[1:, :, 5:25, 3:33] = np.random.default_rng(seed).gamma(2, 200, (3, 2, 20, 30))
    out[2, :, 10:14, 10:20] = 0  # a hole, which nnU-Net fills
    return out


def nnunet_reference(frames: np.ndarray, scheme: str, masked: bool, properties: dict) -> np.ndarray:
    """The same volume through nnunetv2: crop to non-zero, then its normalisation class, pasted back."""
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.preprocessing.normalization import default_normalization_schemes as schemes

    data, seg, box = crop_to_nonzero(frames.transpose(1, 0, 2, 3).copy())
    out = np.zeros(frames.transpose(1, 0, 2, 3).shape, np.float32)
    for c in range(len(data)):
        normal = getattr(schemes, scheme)(masked, properties).run(data[c], seg[0])
        out[c][tuple(slice(a, b) for a, b in box)] = normal
    return out.transpose(1, 0, 2, 3), tuple(slice(a, b) for a, b in box)


@pytest.mark.parametrize(
    ("scheme", "ours"),
    [
        ("ZScoreNormalization", Normalisation("zscore")),
        ("ZScoreNormalization", Normalisation("zscore", masked=True)),
        ("CTNormalization", Normalisation("ct", mean=300, std=120, low=20, high=900)),
        ("NoNormalization", Normalisation("none")),
        ("RescaleTo01Normalization", Normalisation("rescale")),
    ],
)
def test_normalisation_is_nnunets_inside_the_nonzero_box(scheme, ours):
    frames = volume()
    properties = {"mean": 300, "std": 120, "percentile_00_5": 20, "percentile_99_5": 900}
    reference, box = nnunet_reference(frames, scheme, ours.masked, properties)
    normal = Preprocessing((32, 32), (1, 1), (ours, ours)).normalise(frames)
    inside = (box[0], slice(None), *box[1:])
    np.testing.assert_allclose(normal[inside], reference[inside], atol=2e-5)


def test_an_empty_volume_gives_no_bounding_box_and_zeros():
    empty = np.zeros((1, 3, 3), bool)
    assert all(s == slice(0, 0) for s in bounding_box(empty))
    assert not Normalisation().apply(np.zeros((1, 3, 3), np.float32), empty).any()


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.8, 1.7)])
def test_an_image_larger_than_the_grid_is_tiled_not_cut(spacing):
    """A network that marks bright pixels finds one in every corner of an image four times as large as the grid."""
    frames = np.ones((1, 1, 150, 120), np.float32)
    for y in (6, 143):
        for x in (6, 113):
            frames[0, 0, y - 3 : y + 4, x - 3 : x + 4] = 900

    def bright(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.full_like(x, 2), x], axis=1)

    labels = Preprocessing((64, 64), (1.0, 1.0)).segment(frames, spacing, bright)
    assert labels.shape == (1, 150, 120)
    assert all(labels[0, y, x] == 1 for y in (6, 143) for x in (6, 113))
    assert labels[0, 75, 60] == 0
