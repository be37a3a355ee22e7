"""The spleen of the CT phantom: a crescent along the inside of the wall, behind and left, of known volume.

At every level it lies between the wall (less a gap) and a thickness further in, a function of the direction from the
body's middle: a bump, thicker at one end or in the middle, with notches and a bulge towards the hilum.
"""

from dataclasses import dataclass, replace

import numpy as np

from edgeseg.phantoms.ct_body import Body

LEAST, MOST = 60.0, 500.0
"""ml; adults' spleens on CT lie within it but for splenomegaly."""


@dataclass(frozen=True)
class Spleen:
    """Lengths in mm, directions in rad from the patient's left towards the back.

    Attributes:
        volume: ml. height: half of its extent along the body. thick: most thickness. half: half its extent along the
        wall. towards: direction of its middle, and how much it turns from the top to the lower pole. skew: how much
        thicker behind. blunt: exponent of the bump; small: blunt ends. lobes: (place -1..1, width, mm), added.
        gap: between it and the wall. lean: how far up its widest level is, -1..1 of the height.
    """

    volume: float
    height: float
    thick: float
    half: float
    towards: tuple[float, float]
    skew: float
    blunt: float
    lobes: tuple[tuple[float, float, float], ...]
    gap: float
    lean: float


def sample_spleen(rng: np.random.Generator, body: Body) -> Spleen:
    """A spleen from 60 to 500 ml, of any of the usual shapes."""
    volume = float(np.clip(190 * np.exp(rng.normal(0, 0.5)), LEAST, MOST))
    flat = float(rng.uniform(0.75, 1.35))  # a long thin one, or a compact one
    lobes = tuple((float(rng.uniform(-0.9, 0.9)), float(rng.uniform(0.12, 0.35)), float(rng.uniform(-9, 9)))
                  for _ in range(int(rng.integers(0, 5))))
    spleen = Spleen(
        volume=volume, height=52 * float(rng.uniform(0.85, 1.2)), thick=36 / flat, half=52 * flat,
        towards=(float(rng.normal(0.14, 0.2)), float(rng.uniform(0, 0.4))), skew=float(rng.normal(0.15, 0.4)),
        blunt=float(rng.uniform(0.3, 0.75)), lobes=lobes, gap=float(rng.uniform(0.3, 4.5)),
        lean=float(rng.uniform(-0.35, 0.25)))
    for _ in range(4):
        scale = (volume / volume_ml(spleen, body)) ** (1 / 3)
        spleen = replace(spleen, height=spleen.height * scale, thick=spleen.thick * scale, half=spleen.half * scale)
    return spleen


def thickness(spleen: Spleen, along: np.ndarray, level: float) -> np.ndarray:
    """mm of spleen at `along` mm of the wall from its middle's direction at z = 0; below 0 where it has ended."""
    z = level / spleen.height
    z -= spleen.lean * (1 - z * z)  # the widest level is not the middle one
    if abs(z) >= 1:
        return np.full_like(along, -1.0)
    size = np.float32((1 - z * z) ** 0.5)
    u = along / np.float32(spleen.half * (0.35 + 0.65 * size))
    inside = np.maximum(1 - u * u, 0)
    thick = spleen.thick * size * inside ** np.float32(spleen.blunt) * (1 + np.float32(spleen.skew) * np.clip(u, -1, 1))
    for at, width, mm in spleen.lobes:
        thick = thick + np.float32(mm) * size * inside * np.exp(-(((u - np.float32(at)) / np.float32(width)) ** 2))
    return np.where(inside > 0, thick, (1 - np.abs(u)) * np.float32(spleen.half))


def volume_ml(spleen: Spleen, body: Body) -> float:
    """Volume of the whole spleen against the wall of `body`, before kidney, stomach and lung take their room."""
    radius = wall_radius(body)
    along = np.linspace(-1.3 * spleen.half, 1.3 * spleen.half, 121, dtype=np.float32)
    total = 0.0
    levels = np.linspace(-1, 1, 41) * spleen.height
    for level in levels:
        t = np.maximum(thickness(spleen, along, float(level)), 0)
        total += float((t * (1 - (spleen.gap + t / 2) / radius)).sum())
    return total * float(along[1] - along[0]) * float(levels[1] - levels[0]) / 1000


def wall_radius(body: Body) -> float:
    """mm from the body's middle to the inside of the wall, at the left and behind."""
    side, _, back = body.inner
    return 0.6 * side + 0.4 * back


def spleen_distance(spleen: Spleen, body: Body, x: np.ndarray, y: np.ndarray, wall: np.ndarray,
                    level: float) -> np.ndarray:
    """Distance (mm, < 0 inside), from `wall`, the distance to the inside of the body's wall."""
    turn = spleen.towards[0] + spleen.towards[1] * level / spleen.height / 2
    along = (np.arctan2(y, x) - np.float32(turn)) * np.float32(wall_radius(body))
    depth = -wall - np.float32(spleen.gap)
    return np.maximum(-depth, depth - thickness(spleen, along, level))
