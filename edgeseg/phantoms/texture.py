"""Small tools of the phantoms: seeded streams, smooth noise, ellipses and painting with partial-volume edges."""

import cv2
import numpy as np


def stream(*key: int) -> np.random.Generator:
    """The random stream of `key` (non-negative integers): PCG64, the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """float32 [*shape]: noise of about unit deviation whose grains are `cell` pixels wide."""
    coarse = [max(4, int(np.ceil(n / cell)) + 2) for n in shape]
    return enlarge(rng.standard_normal(coarse, np.float32), shape) * np.float32(1.25)


def enlarge(coarse: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """float32 [h, w] -> [*shape], cubic."""
    return cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)


def coverage(distance: np.ndarray, pixel: float) -> np.ndarray:
    """Share of a pixel (size in mm) inside a shape, from the distance of its centre to the edge (mm, < 0 inside)."""
    return np.clip(0.5 - distance / np.float32(pixel), 0, 1)


def ellipse(x: np.ndarray, y: np.ndarray, centre: tuple[float, float], semi: tuple[float, float],
            angle: float = 0.0) -> np.ndarray:
    """Distance (mm, first order) of points to an ellipse, < 0 inside; `angle` (rad) turns its first axis from +x."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    p, q = (cos * dx + sin * dy) / np.float32(semi[0]), (cos * dy - sin * dx) / np.float32(semi[1])
    near = np.sqrt(p * p + q * q)
    slope = np.sqrt((p / np.float32(semi[0])) ** 2 + (q / np.float32(semi[1])) ** 2)
    return near * (near - 1) / (slope + np.float32(1e-6))


class Canvas:
    """An image [H, W] with the position of every pixel in mm, painted from back to front."""

    def __init__(self, x: np.ndarray, y: np.ndarray, pixel: float) -> None:
        """`x`, `y`: float32 [H, W] positions in mm; `pixel`: size in mm."""
        self.x, self.y, self.pixel = x, y, pixel
        self.image: np.ndarray = np.zeros(x.shape, np.float32)
        self.rows, self.cols = (y.min(axis=1), y.max(axis=1)), (x.min(axis=0), x.max(axis=0))

    def paint(self, cover: np.ndarray, value: np.ndarray | float) -> None:
        """Blend `value` in where `cover` (0..1) says so."""
        self.image += cover * (np.asarray(value, np.float32) - self.image)

    def ellipse(self, centre: tuple[float, float], semi: tuple[float, float], value: float, angle: float = 0.0,
                within: np.ndarray | None = None) -> None:
        """Paint an ellipse (mm), only where `within` (0..1) allows. Looks at the rows and columns near it alone."""
        reach = max(semi) + 2
        rows = np.flatnonzero((self.rows[0] < centre[1] + reach) & (self.rows[1] > centre[1] - reach))
        cols = np.flatnonzero((self.cols[0] < centre[0] + reach) & (self.cols[1] > centre[0] - reach))
        if not len(rows) or not len(cols):
            return
        box = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
        cover = coverage(ellipse(self.x[box], self.y[box], centre, semi, angle), self.pixel)
        if within is not None:
            cover = cover * within[box]
        self.image[box] += cover * (np.float32(value) - self.image[box])
