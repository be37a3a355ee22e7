"""The rasteriser against scikit-image, which the published masks were made with."""

import numpy as np
import pytest

from edgeseg.readers.tracing import fill_polygon, mask_of

draw = pytest.importorskip("skimage.draw")


def theirs(rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[draw.polygon(rows, columns, shape)] = True
    return mask


def test_every_polygon_is_filled_as_scikit_image_fills_it():
    rng = np.random.default_rng(0)
    for corners in [3, 4, 5, 8, 40] * 40:  # crossing itself, outside the image, without area, with repeated corners
        spread = rng.choice([3, 10, 40])
        rows, columns = rng.integers(-spread // 2, spread, (2, corners))
        assert np.array_equal(fill_polygon(rows, columns, (30, 25)), theirs(rows, columns, (30, 25)))


def test_tracings_of_ventricles_are_filled_as_published():
    rng = np.random.default_rng(1)
    for _ in range(50):
        half = np.sin(np.linspace(0.1, 2.4, 20)) * rng.uniform(8, 25) + rng.normal(0, 0.7, 20)
        y = np.linspace(rng.uniform(-5, 30), rng.uniform(60, 118), 20)
        tracing = np.vstack([[50, y[0], 60, y[-1]], np.stack([50 - half, y - 2, 52 + half, y + 2], axis=1)])
        x1, y1, x2, y2 = np.rint(tracing[1:]).astype(int).T
        expected = theirs(np.r_[y1, y2[::-1]], np.r_[x1, x2[::-1]], (112, 112))
        assert expected.any()
        assert np.array_equal(mask_of(tracing, (112, 112)), expected)


@pytest.mark.parametrize("corners", [[(5, 5)] * 3, [(2, 2), (2, 9), (2, 4)], [(-9, -9), (-9, -5), (-5, -5)]])
def test_polygons_without_area_or_outside_the_image(corners):
    rows, columns = np.array(corners).T
    assert np.array_equal(fill_polygon(rows, columns, (12, 12)), theirs(rows, columns, (12, 12)))
