"""Geometry of the echo phantom: a left ventricle of known volume, what hangs on it, and where it lies.

Heart coordinates, in pixels: u runs along the long axis from the apex (0) to the middle of the mitral annulus (L), v
across it towards the lateral wall. The ventricle seen from the side has half widths W f(s) (1 + p(s)) at s = u / L to
the septal and to the lateral side. Its volume is that of the body whose cross sections are circles over these widths
(disc summation, the rotational body where both sides are alike):

    V = pi L_true W^2 integral_0^1 f(s)^2 (1 + (p_septal(s) + p_lateral(s)) / 2)^2 ds,   L = L_true (1 - foreshortening)

W follows from V and L in every frame, so that the volume is exact whatever the length does.
"""

from dataclasses import dataclass, replace

import numpy as np

from edgeseg.phantoms.echo_beat import Moments
from edgeseg.phantoms.echo_domain import Domain

LEVELS = np.linspace(0, 1, 201)
"""Where the integral is taken."""


@dataclass(frozen=True, eq=False)
class Heart:
    """What is drawn of one heart; pixels unless said otherwise, angles in rad.

    Attributes:
        pixel: mm. length, width: of the LV as seen at end-diastole. middle: of its long axis then, x and y.
        tilt: of the axis from the vertical, positive with the base to the right. swing: by which it turns in systole.
        slope: of the annulus against a right angle to the axis. upright: how far the atria
        turn back to the vertical, 0..1. point, widest, narrow: of the profile f.
        ripple: [2, 3] of the septal and lateral side. shortening: of the axis per share of volume ejected.
        foreshortening: share of the axis not seen. apex_share: of the shortening that the apex does.
        wall: of the myocardium at end-diastole. rv_*, la_*, ra_*: the other chambers. drift, breath: of the place.
    """

    pixel: float
    length: float
    width: float
    middle: tuple[float, float]
    tilt: float
    swing: float
    slope: float
    upright: float
    point: float
    widest: float
    narrow: float
    ripple: np.ndarray
    shortening: float
    foreshortening: float
    apex_share: float
    wall: float
    rv_width: float
    rv_top: float
    rv_round: float
    rv_squeeze: float
    tricuspid: float
    la_length: float
    la_width: float
    la_squeeze: float
    ra_length: float
    ra_width: float
    drift: tuple[float, float]
    breath: float

    @property
    def edv(self) -> float:
        """ml at the drawn width and length."""
        return float(volume(self, self.width / 2, self.length))


def sample_heart(rng: np.random.Generator, domain: Domain) -> Heart:
    """Draw a heart of `domain`."""
    length = float(rng.uniform(*domain.length))
    width = float(np.clip(length * rng.uniform(*domain.ratio), 18, 54))
    tilt = np.deg2rad(np.clip(rng.normal(*domain.tilt), -15, 42))
    top = float(rng.uniform(*domain.top))
    top = min(top, 100 - length * np.cos(tilt))  # the annulus stays in view
    narrow = float(rng.uniform(0.0, 0.25))
    drift = rng.uniform(*domain.drift) * rng.standard_normal(2)
    heart = Heart(
        pixel=1.0, length=length, width=width,
        middle=(float(np.clip(rng.normal(61.5, 4.5), 50, 72)), float(top + length * np.cos(tilt) / 2)),
        tilt=float(tilt), swing=float(rng.normal(-0.03, 0.05)),
        slope=float(np.clip(rng.uniform(0.2, 1.0) * np.tan(tilt) + rng.normal(0, 0.06), -0.35, 0.6)),
        upright=float(rng.uniform(0.1, 0.9)), point=float(rng.uniform(0.36, 0.72)),
        widest=float(rng.uniform(0.55, 0.92)), narrow=narrow,
        ripple=rng.normal(0, 1, (2, 3)) * [0.09, 0.04, 0.025], shortening=float(rng.uniform(0.1, 0.35)),
        foreshortening=float(rng.uniform(*domain.foreshortening)), apex_share=float(rng.uniform(0.0, 0.35)),
        wall=float(rng.uniform(4.5, 9.5)), rv_width=width * float(rng.uniform(0.55, 1.25)),
        rv_top=float(rng.uniform(0.1, 0.5)), rv_round=float(rng.uniform(0.4, 1.0)),
        rv_squeeze=float(rng.uniform(0.1, 0.35)), tricuspid=float(rng.uniform(0, 6)),
        la_length=float(rng.uniform(0.55, 1.3)) * width, la_width=float(rng.uniform(0.85, 1.3)),
        la_squeeze=float(rng.uniform(0.15, 0.4)), ra_length=float(rng.uniform(0.55, 1.2)) * width,
        ra_width=float(rng.uniform(0.85, 1.3)), drift=(float(drift[0]), float(drift[1])),
        breath=float(rng.uniform(2.5, 6)))
    wanted = float(rng.uniform(60, 220))  # ml; how deep the picture reaches follows, within a probe's settings
    return replace(heart, pixel=float(np.clip((wanted / heart.edv) ** (1 / 3), 1.0, 1.8)))


def profile(heart: Heart, s: np.ndarray) -> np.ndarray:
    """f(s): 0 at the apex, 1 where the ventricle is widest, 1 - narrow at the annulus."""
    towards = np.sin(np.pi / 2 * np.clip(s / heart.widest, 0, 1)) ** heart.point
    return np.where(s < heart.widest, towards, 1 - heart.narrow * ((s - heart.widest) / (1 - heart.widest)) ** 2)


def sides(heart: Heart, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half widths to the septal and to the lateral side as shares of W."""
    waves = np.sin(np.pi * s[None] * np.arange(1, 4)[:, None])
    f = profile(heart, s)
    return f * (1 + heart.ripple[0] @ waves), f * (1 + heart.ripple[1] @ waves)


def fullness(heart: Heart) -> float:
    """The integral of the formula at the top of this file."""
    septal, lateral = sides(heart, LEVELS)
    return float(np.trapezoid(((septal + lateral) / 2) ** 2, LEVELS))


def volume(heart: Heart, half: np.ndarray | float, length: np.ndarray | float) -> np.ndarray | float:
    """ml of the ventricle of half width W = `half` and seen `length`, both in pixels."""
    true = length / (1 - heart.foreshortening)
    return np.pi * true * half**2 * fullness(heart) * heart.pixel**3 / 1000


@dataclass(frozen=True, eq=False)
class Pose:
    """The heart in one frame: W, L, wall, apex position, unit vectors along u and v, and the course's values."""

    half: float
    length: float
    wall: float
    apex: np.ndarray
    along: np.ndarray
    across: np.ndarray
    full: float
    mitral: float

    def place(self, heart: Heart, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Heart coordinates -> x, y in pixels [n, 2]. The annulus slants, the atria hang."""
        slant = u + heart.slope * v * np.clip(u / self.length, 0, 1) ** 2
        v = v - heart.upright * self.along[0] / self.along[1] * np.maximum(u - self.length, 0)
        return self.apex + slant[:, None] * self.along + v[:, None] * self.across


def poses(heart: Heart, at: Moments, times: np.ndarray) -> list[Pose]:
    """One pose per frame."""
    ejected = 1 - at.volume / heart.edv
    length = heart.length * (1 - heart.shortening * ejected) * (1 + at.twist)
    half = np.sqrt(at.volume / volume(heart, 1.0, length))
    muscle = (heart.width / 2 + heart.wall) ** 2 - (heart.width / 2) ** 2  # incompressible
    wall = np.sqrt(half**2 + muscle * heart.length / length) - half
    tilt = heart.tilt + heart.swing * ejected
    breath = np.sin(2 * np.pi * times / heart.breath)[:, None] * np.array(heart.drift)
    along = np.stack([np.sin(tilt), np.cos(tilt)], axis=1)
    first = np.array([np.sin(heart.tilt), np.cos(heart.tilt)]) * heart.length / 2
    apex = np.array(heart.middle) - first + breath + heart.apex_share * (heart.length - length)[:, None] * along
    across = np.stack([along[:, 1], -along[:, 0]], axis=1)
    return [Pose(float(half[t]), float(length[t]), float(wall[t]), apex[t], along[t], across[t], float(at.full[t]),
                 float(at.mitral[t])) for t in range(len(times))]


STEPS = np.linspace(1, 0, 40) ** 1.6
"""s of the outline's points on either side, from the annulus to the apex."""
OVERLAP = 4.0
"""Pixels by which the atria reach into the ventricles, so that blood flows on between them."""


def ventricle(heart: Heart, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """u, v of the left ventricle's outline, 80 points each; the closing side is the annulus."""
    septal, lateral = sides(heart, STEPS)
    u = np.concatenate([STEPS, STEPS[::-1]]) * pose.length
    return u, np.concatenate([-septal, lateral[::-1]]) * pose.half


@dataclass(frozen=True, eq=False)
class Chambers:
    """Outlines (u, v) of the other chambers, and the v where the annuli end."""

    rv: tuple[np.ndarray, np.ndarray]
    la: tuple[np.ndarray, np.ndarray]
    ra: tuple[np.ndarray, np.ndarray]
    septal: float
    lateral: float
    right: float
    tricuspid: float


def chambers(heart: Heart, pose: Pose) -> Chambers:
    """The right ventricle beside the septum, and both atria beyond the annuli."""
    (septal,), (lateral,) = sides(heart, np.ones(1))
    septal, lateral = -septal * pose.half, lateral * pose.half
    squeeze, fill = 1 - heart.rv_squeeze * (1 - pose.full), 1 - heart.la_squeeze * pose.full
    s = heart.rv_top + (1 - heart.rv_top) * np.linspace(0, 1, 16) ** 1.4
    inner = -sides(heart, s)[0] * pose.half - pose.wall
    outer = inner - heart.rv_width * squeeze * np.sin(np.pi / 2 * np.linspace(0, 1, 16) ** 0.9) ** heart.rv_round
    s = s - heart.tricuspid / pose.length * np.clip((s - 0.7) / 0.3, 0, 1)
    rv = np.concatenate([s, s[::-1]]) * pose.length, np.concatenate([inner, outer[::-1]])
    turn = np.linspace(0, np.pi, 24)
    reach = np.sin(turn) ** 0.7
    la = (pose.length - OVERLAP + (heart.la_length * fill + OVERLAP) * reach,
          (septal + lateral) / 2 + np.cos(turn) * (lateral - septal) / 2 * (1 + (heart.la_width * fill - 1) * reach))
    level = pose.length - heart.tricuspid - OVERLAP
    middle, right = (inner[-1] + outer[-1]) / 2, (inner[-1] - outer[-1]) / 2
    ra = (level + (heart.ra_length * fill + OVERLAP) * reach,
          middle + np.cos(turn) * right * (1 + (heart.ra_width * fill - 1) * reach))
    return Chambers(rv, la, ra, float(septal), float(lateral), float(outer[-1]), float(inner[-1]))


def leaflets(start: float, end: float, level: float, mitral: float,
             swing: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """u, v of the two leaflets that span v = `start`..`end` at u = `level`, `mitral` (0..1) of `swing` degrees open."""
    made = []
    meet = start + 0.6 * (end - start)
    for hinge in (start, end):
        reach = abs(meet - hinge) * 1.04
        inward = 1.0 if meet > hinge else -1.0
        angle = np.deg2rad(12 + (swing - 12) * mitral)  # closed leaflets tent a little
        bent = np.array([0, 0.5, 1]) * reach
        droop = np.array([0, 0.12, 0.0]) * reach * mitral
        made.append((level - bent * np.sin(angle) - droop, hinge + inward * bent * np.cos(angle)))
    return made
