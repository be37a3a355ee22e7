"""Deformation of a whole scene that keeps areas: what is labelled keeps its true volume."""

from dataclasses import dataclass

import numpy as np

from edgeseg.phantoms.texture import enlarge, stream


@dataclass(frozen=True)
class Deformation:
    """`stretch`: one direction is stretched by exp(stretch), the other squeezed as much; `toward`: that direction, rad.

    `waves`: (mm, mm) pairs of deviation of the displacement and distance between the grid points of a random stream
    function; its curl is free of divergence, so that areas stay (to first order in the displacement's gradient).
    `keep`: share of the displacement that a slice has in common with the one above.
    """

    stretch: float
    toward: float
    waves: tuple[tuple[float, float], ...]
    keep: float = 0.8


class Bender:
    """Applies a Deformation to one slice after another."""

    def __init__(self, deformation: Deformation, shape: tuple[int, int], pixel: float) -> None:
        self.how, self.shape, self.pixel = deformation, shape, pixel
        self.coarse: list[np.ndarray] = []

    def __call__(self, x: np.ndarray, y: np.ndarray, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Positions in mm along the image's columns and rows, broadcastable to [H, W] -> where in the undeformed scene
        they lie, [H, W]. `key` names the slice's random stream."""
        rng, how = stream(*key), self.how
        first = not self.coarse
        for n, (size, cell) in enumerate(how.waves):
            grid = [max(4, round(s * self.pixel / cell) + 1) for s in self.shape]
            fresh = rng.standard_normal(grid, np.float32)
            if first:
                self.coarse.append(fresh)
            else:
                self.coarse[n] = np.float32(how.keep) * self.coarse[n] + np.float32((1 - how.keep**2) ** 0.5) * fresh
            dy, dx = np.gradient(enlarge(self.coarse[n], self.shape))  # x and y run along the image's axes
            grow = size * cell / self.pixel  # a slope of about 1 / cell becomes a displacement of about `size`
            x, y = x + np.float32(grow) * dy, y - np.float32(grow) * dx
        squeeze, cos, sin = np.exp(-how.stretch), np.cos(how.toward), np.sin(how.toward)
        along, across = (cos * x + sin * y) * squeeze, (cos * y - sin * x) / squeeze
        return cos * along - sin * across, sin * along + cos * across
