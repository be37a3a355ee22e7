"""A beating heart as closed contours: what is labelled, and the volumes that belong to it, are known exactly.

Every short-axis level has contours r(angle) in mm around the left ventricle's centre: endocardium, epicardium and the
outer wall of the right ventricle, which is the crescent between epicardium and that wall. Angles run from +x (columns)
to +y (rows, downwards). Levels z are mm from the end-diastolic base plane towards the apex. In systole the base comes
down to the resting apex, the cavity narrows and the muscle keeps its volume (up to `thickening`).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

ANGLES = 256
THETA = 2 * np.pi * np.arange(ANGLES) / ANGLES
GROUPS = ("NOR", "DCM", "HCM", "MINF", "RV")
"""Shapes named after ACDC's groups: normal, dilated, hypertrophic, infarcted, abnormal right ventricle."""

RANGES = {  # end-diastolic LV volume ml, LV ejection fraction, wall mm, LV length mm, end-diastolic RV ml, RV squeeze
    "NOR": ((90, 165), (0.54, 0.70), (6.0, 8.8), (74, 102), (100, 185), (0.36, 0.54)),
    "DCM": ((190, 320), (0.12, 0.34), (7.3, 10.2), (88, 112), (85, 240), (0.10, 0.44)),
    "HCM": ((75, 165), (0.60, 0.78), (10.0, 13.5), (74, 98), (65, 160), (0.38, 0.60)),
    "MINF": ((110, 240), (0.20, 0.44), (6.3, 9.2), (78, 102), (70, 180), (0.30, 0.52)),
    "RV": ((60, 160), (0.45, 0.63), (5.2, 8.0), (68, 96), (145, 265), (0.08, 0.38)),
}
"""Ranges per group. They cover the middle of what the manual labels of a public cine MRI collection span."""


class Contours(NamedTuple):
    """Radii in mm, [levels, ANGLES]; 0 where there is none. The RV lies between `septum` and `free_wall`."""

    endo: np.ndarray
    epi: np.ndarray
    septum: np.ndarray
    free_wall: np.ndarray
    material: np.ndarray  # [levels]: 0 at the base plane of this moment, 1 at the outer apex


@dataclass(frozen=True, eq=False)
class Heart:
    """Lengths in mm at end-diastole, fractions at end-systole, shapes [ANGLES] as factors."""

    length: float  # cavity, base to apex
    radius: float
    wall: float
    apex_wall: float
    shortening: float  # of the long axis
    squeeze: float  # of the cavity's radius
    thickening: float  # growth of the muscle's volume that is seen (trabeculae are pressed into the wall)
    septum: float  # direction of the right ventricle, rad
    base_shape: np.ndarray
    apex_shape: np.ndarray
    wall_shape: np.ndarray
    motion: np.ndarray  # regional share of the squeeze
    outflow: np.ndarray  # 0..1: where the wall is missing at the base
    lean: tuple[float, float]  # x, y of the centre per mm of level
    bend: tuple[float, float]
    rv_depth: float
    rv_span: float
    rv_tilt: float
    rv_side: float
    rv_top: float  # mm above the left base
    rv_apex: float  # share of the LV length
    rv_squeeze: float
    rv_drop: float  # mm that the base comes down
    rv_shape: np.ndarray
    es: float  # phase of end-systole
    rv_away: float = 0.7  # middle of the RV's ellipse, in radii of the LV's outside
    rv_least: float = 0.3  # its depth at the RV's apex, in the same unit
    rv_taper: float = 1.5  # the higher, the later the depth falls off towards the apex
    rv_narrow: float = 0.55  # share of the span that is lost on the way to the apex
    rv_flat: float = 0.0  # distance of a straight free wall, as a share of that of the ellipse; 0: no such wall

    @property
    def depth(self) -> float:
        """From the end-diastolic base to the outer apex, mm."""
        return self.length + self.apex_wall

    def centre(self, z: np.ndarray) -> np.ndarray:
        """[levels, 2]: x, y in mm of the LV's centre, relative to the middle of the heart."""
        u = np.clip(np.asarray(z)[:, None] / self.depth, -0.3, 1.1) - 0.5
        return u * self.depth * np.asarray(self.lean) + (u**2 - 0.1) * np.asarray(self.bend)


def contraction(heart: Heart, phase: float) -> float:
    """0 at end-diastole (phase 0), 1 at end-systole (phase heart.es): ejection, early filling, rest, atrial kick."""
    phase = phase % 1.0
    if phase <= heart.es:
        return float(0.5 - 0.5 * np.cos(np.pi * phase / heart.es))
    x = (phase - heart.es) / (1 - heart.es)
    early, late = np.clip(x / 0.5, 0, 1), np.clip((x - 0.75) / 0.25, 0, 1)
    return float(1 - 0.8 * early**2 * (3 - 2 * early) - 0.2 * late**2 * (3 - 2 * late))


def contours(heart: Heart, levels: np.ndarray, systole: float) -> Contours:
    """The contours at `levels` (mm, [levels]) at contraction `systole` (0..1)."""
    z, c = np.asarray(levels, float)[:, None], systole
    now = heart.depth * (1 - heart.shortening * c)
    material = (z - (heart.depth - now)) / now
    m, there = np.clip(material, 0, 1), (material >= 0) & (material <= 1)
    shape = heart.base_shape * (1 - m) + heart.apex_shape * m
    neck = 0.92 + 0.08 * np.minimum(m / 0.2, 1)
    endo0 = heart.radius * neck * taper(m * heart.depth / heart.length) * shape
    epi0 = (heart.radius + heart.wall * heart.wall_shape) * neck * taper(m) * shape
    endo0 = np.where(endo0 > 1, np.minimum(endo0, epi0 - 2), 0)
    endo = endo0 * (1 - c * np.minimum(heart.squeeze * heart.motion * (0.92 + 0.16 * m), 0.9))
    muscle = (epi0**2 - endo0**2) * (1 + heart.thickening * c) / (1 - heart.shortening * c)
    epi = np.sqrt(endo**2 + muscle)
    epi = endo + (epi - endo) * (1 - heart.outflow * np.clip(1 - m / 0.14, 0, 1))
    free_wall = right_ventricle(heart, z, epi, c)
    return Contours(endo * there, epi * there, epi, np.where(free_wall > epi + 0.5, free_wall, 0), material[:, 0])


def taper(m: np.ndarray) -> np.ndarray:
    """Radius along the long axis as a share of the widest: blunt, closed at 1."""
    return np.sqrt(np.clip(1 - np.clip(m, 0, 1) ** 2.6, 0, None))


def right_ventricle(heart: Heart, z: np.ndarray, epi: np.ndarray, systole: float) -> np.ndarray:
    """Radii of the RV's outer wall, [levels, ANGLES]: where rays from the LV's centre leave a tilted ellipse."""
    top = -heart.rv_top + systole * heart.rv_drop
    level = (z - top) / (heart.rv_apex * heart.length - top)
    m, there = np.clip(level, 0, 1), (level >= 0) & (level < 1)
    size, squeezed = epi.mean(axis=1, keepdims=True), systole * heart.rv_squeeze
    a = np.maximum(heart.rv_least * size + heart.rv_depth * (1 - m**heart.rv_taper) * (1 - 0.9 * squeezed), 1)
    b = heart.rv_span * (1 - heart.rv_narrow * m) * (1 - 0.35 * squeezed)
    cos, sin = np.cos(heart.rv_tilt), np.sin(heart.rv_tilt)
    angle = THETA[None] - heart.septum

    def turned(p: np.ndarray, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (cos * p + sin * q) / a, (cos * q - sin * p) / b

    dp, dq = turned(np.cos(angle), np.sin(angle))
    op, oq = turned(-heart.rv_away * size, -heart.rv_side * b)
    along, across, rest = dp**2 + dq**2, dp * op + dq * oq, op**2 + oq**2 - 1
    inside = across**2 - along * rest
    leave = (-across + np.sqrt(np.clip(inside, 0, None))) / along
    leave = np.where((inside > 0) & (leave > 0) & there, leave, 0)
    if heart.rv_flat:  # the smooth minimum of ellipse and line
        line = np.cos(angle) / (heart.rv_flat * (heart.rv_away * size + a))  # 1 / distance
        leave = leave / (1 + (leave * np.clip(line, 0, None)) ** 8) ** 0.125
    return leave * heart.rv_shape


def volumes(heart: Heart, systole: float, step: float = 0.5) -> dict[str, float]:
    """ml of RV, MYO and LV at contraction `systole`, integrated over the contours in steps of `step` mm."""
    at = contours(heart, np.arange(-max(heart.rv_top, 0) - 1, heart.depth + 1, step) + step / 2, systole)
    right = np.clip(at.free_wall**2 - at.septum**2, 0, None)
    areas = {"RV": right, "MYO": at.epi**2 - at.endo**2, "LV": at.endo**2}
    return {name: float(a.sum() * np.pi / ANGLES * step / 1000) for name, a in areas.items()}


def sample_heart(rng: np.random.Generator, group: str, septum: float) -> Heart:
    """A heart of `group` (GROUPS) whose right ventricle lies in direction `septum` (rad)."""
    edv, ejected, wall, length, rv_ml, rv_squeeze = (float(rng.uniform(*r)) for r in RANGES[group])
    shortening = ejected * rng.uniform(0.16, 0.28)
    base = outline(rng, 0.045)
    flat = 0.10 if group == "RV" else 0.03
    base = base - rng.uniform(0, flat) * bump(septum, 0.7)
    wall_shape = outline(rng, 0.08, first=1)
    motion = outline(rng, 0.08, first=1)
    if group == "HCM":
        wall_shape = wall_shape + rng.uniform(0, 0.6) * bump(septum + rng.uniform(-0.6, 0.9), rng.uniform(0.5, 1.2))
    if group == "MINF":
        scar = bump(rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0))
        wall_shape = wall_shape - rng.uniform(0.15, 0.4) * scar
        motion = motion - rng.uniform(0.5, 0.95) * scar
        motion = motion / motion.mean()
    heart = Heart(
        length=length, radius=1000 * (edv / 1000 / (np.pi * length * 0.675)) ** 0.5, wall=wall,
        apex_wall=float(wall * rng.uniform(0.5, 0.9)), shortening=shortening,
        squeeze=1 - ((1 - ejected) / (1 - shortening)) ** 0.5, thickening=float(rng.uniform(0.0, 0.2)),
        septum=septum, base_shape=base, apex_shape=outline(rng, 0.07), wall_shape=wall_shape, motion=motion,
        outflow=rng.uniform(0.3, 1.0) * bump(septum + rng.uniform(0.2, 0.9), rng.uniform(0.35, 0.7)),
        lean=(float(rng.normal(0, 0.06)), float(rng.normal(0, 0.06))),
        bend=(float(rng.normal(0, 6)), float(rng.normal(0, 6))),
        rv_depth=23.0, rv_span=46.0, rv_tilt=float(rng.normal(-0.15, 0.18)), rv_side=float(rng.normal(0, 0.12)),
        rv_top=float(rng.uniform(-8, 5)), rv_apex=float(rng.uniform(0.78, 1.0)), rv_squeeze=rv_squeeze,
        rv_drop=float(22 * rv_squeeze * rng.uniform(0.6, 1.2)),
        rv_shape=outline(rng, 0.06) - rng.uniform(0, 0.08) * bump(septum + rng.uniform(-0.3, 0.3), 0.35),
        es=float(rng.uniform(0.30, 0.42)))
    for _ in range(4):  # the RV has no closed formula: scale it to its volume
        scale = (rv_ml / volumes(heart, 0.0, step=3.0)["RV"]) ** 0.5
        heart = replace(heart, rv_depth=float(np.clip(heart.rv_depth * scale, 11, 45)),
                        rv_span=float(np.clip(heart.rv_span * scale**0.5, 32, 60)))
    return heart


def outline(rng: np.random.Generator, size: float, first: int = 2) -> np.ndarray:
    """[ANGLES]: 1 + a random Fourier series of orders first..6, standard deviation about `size`."""
    wave = np.zeros(ANGLES)
    for order in range(first, 7):
        wave += rng.normal(0, size / order) * 1.4 * np.cos(order * THETA - rng.uniform(0, 2 * np.pi))
    return 1 + wave


def bump(angle: float, width: float) -> np.ndarray:
    """[ANGLES]: 1 at `angle`, falling off over `width` rad."""
    away = (THETA - angle + np.pi) % (2 * np.pi) - np.pi
    return np.exp(-0.5 * (away / width) ** 2)
