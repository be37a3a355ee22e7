"""The signal of the heart itself: blood, muscle, papillary muscles, trabeculae, fat, and the atria above the base."""

from dataclasses import dataclass

import numpy as np

from edgeseg.phantoms.heart import ANGLES, THETA, Contours, Heart, bump, outline
from edgeseg.phantoms.texture import Canvas, coverage, ellipse, smooth_noise, stream


@dataclass(frozen=True, eq=False)
class Tissue:
    """Signals as shares of that of blood in the left ventricle; lengths in mm."""

    muscle: float
    right_blood: float
    fat: float
    fat_mm: np.ndarray  # [ANGLES]: thickness of the fat on the heart
    rv_wall: float
    rough_lv: float  # mean depth of trabeculae
    rough_rv: float
    papillary: tuple[tuple[float, float, float, float, float], ...]  # angle, share of radius, mm, first and last level
    swirl: float  # flow artefact in the blood
    mottle: float  # unevenness of the muscle
    atria: bool = False  # seen beside the base of the left ventricle where the right one does not reach
    strands: float = 1.0  # contrast of the right ventricle's trabeculae
    pericardium: float = 0.0  # thickness of a grey shell round the fat, mm
    rim: float = 0.0  # thickness of a dark line between muscle and fat, mm
    ink: float = -1.0  # sign of fat's signal: negative makes dark outlines


def sample_tissue(rng: np.random.Generator, heart: Heart, fat: float) -> Tissue:
    """Contrast and fine structure of one heart."""
    papillary = []
    for away in (2.2, -2.4):  # antero-lateral and postero-medial, seen from the septum
        for _ in range(int(rng.integers(1, 3))):
            papillary.append((heart.septum + away + float(rng.normal(0, 0.28)), float(rng.uniform(0.58, 0.84)),
                              float(rng.uniform(2.5, 5.2)), float(rng.uniform(0.12, 0.35)),
                              float(rng.uniform(0.6, 0.85))))
    thick = rng.uniform(0.2, 1.2) + rng.uniform(0, 8) * bump(heart.septum + rng.uniform(-0.5, 1.1), 0.6)
    thick = thick + rng.uniform(0, 5) * bump(rng.uniform(0, 2 * np.pi), 0.4)
    thick = thick * np.clip(outline(rng, 0.9, first=3), 0.1, 2)
    return Tissue(
        muscle=float(np.clip(rng.normal(0.38, 0.075), 0.26, 0.58)),
        right_blood=float(np.clip(rng.normal(0.83, 0.09), 0.62, 1.05)), fat=fat, fat_mm=thick,
        rv_wall=float(rng.uniform(2, 4)), rough_lv=float(rng.uniform(0.6, 2.4)), rough_rv=float(rng.uniform(1.0, 4.0)),
        papillary=tuple(papillary), swirl=float(rng.uniform(0.03, 0.22)), mottle=float(rng.uniform(0.04, 0.11)))


class Polar:
    """Pixels of one slice around the LV's centre: radius in mm and a look-up of contours by angle."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y, self.r = x, y, np.hypot(x, y)
        at = np.arctan2(y, x) * np.float32(ANGLES / (2 * np.pi)) % ANGLES
        low = at.astype(np.int32)
        self.share = at - low
        self.low, self.high = low % ANGLES, (low + 1) % ANGLES

    def __call__(self, radii: np.ndarray) -> np.ndarray:
        """[ANGLES] -> float32 [H, W]: the contour's radius in the direction of every pixel."""
        radii = radii.astype(np.float32)
        first = radii[self.low]
        return first + self.share * (radii[self.high] - first)


def label_slice(polar: Polar, at: Contours, k: int) -> np.ndarray:
    """uint8 [H, W] of level `k`: 1 RV, 2 MYO, 3 LV, decided at the pixels' centres."""
    labels = np.zeros(polar.r.shape, np.uint8)
    if at.free_wall[k].any():
        labels[(polar.r >= polar(at.septum[k])) & (polar.r < polar(at.free_wall[k]))] = 1
    labels[polar.r < polar(at.epi[k])] = 2
    labels[polar.r < polar(at.endo[k])] = 3
    return labels


@dataclass(frozen=True)
class Grain:
    """Random structure of one slice, the same in every phase."""

    lv: np.ndarray  # [ANGLES] depth of trabeculae, mm
    rv: np.ndarray
    muscle: np.ndarray  # [H, W]
    strands: np.ndarray
    bend: np.ndarray


def grain_of(tissue: Tissue, shape: tuple[int, int], pixel: float, key: tuple[int, ...]) -> Grain:
    """Trabeculae and texture from the random stream of `key`."""
    rng = stream(*key)

    def teeth(depth: float) -> np.ndarray:
        wave = np.zeros(ANGLES)
        for n in range(2, 24):
            wave += rng.normal(0, 1.2 - 0.045 * n) * np.cos(n * THETA - rng.uniform(0, 6.3))
        return np.clip(depth * (0.7 + 0.4 * wave) * np.clip(outline(rng, 0.8, first=1), 0.1, 2.5), 0, None)

    return Grain(teeth(tissue.rough_lv), teeth(tissue.rough_rv), smooth_noise(rng, shape, 4 / pixel),
                 smooth_noise(rng, shape, 7 / pixel), smooth_noise(rng, shape, 30 / pixel))


def paint_heart(canvas: Canvas, polar: Polar, heart: Heart, tissue: Tissue, at: Contours, k: int, grain: Grain,
                flow: np.ndarray) -> None:
    """Paint level `k` of `at` over the body; `flow` [H, W] multiplies the blood."""
    r, pixel, m = polar.r, canvas.pixel, float(at.material[k])
    muscle = tissue.muscle * (1 + tissue.mottle * grain.muscle)
    epi, free = at.epi[k], at.free_wall[k]
    right = free > 0
    if m < 0 or not epi.any() or (tissue.atria and m < 0.25 and not right.any()):
        paint_above_or_below(canvas, polar, heart, tissue, at, k, grain, muscle, flow)
    outer = np.maximum(epi, np.where(right, free + tissue.rv_wall, 0))
    if outer.any():
        fat = tissue.ink * tissue.fat * (0.8 + 0.12 * grain.muscle + 0.1 * grain.bend)
        edge = r - polar(round_off(outer) + tissue.fat_mm)
        if tissue.pericardium:
            canvas.paint(coverage(edge - tissue.pericardium, pixel), 0.9 * muscle)
        canvas.paint(coverage(edge, 1.5 * pixel), fat)
        if tissue.rim:
            canvas.paint(coverage(r - polar(outer) - tissue.rim, pixel), 0.25 * muscle)
    if right.any():
        septum, wall = polar(at.septum[k]), polar(np.where(right, free, at.septum[k]))
        canvas.paint(coverage(np.maximum(r - wall - tissue.rv_wall * (wall > septum), septum - r), pixel), muscle)
        blood = tissue.right_blood * flow
        depth = wall - r - 1.5 * np.maximum(grain.strands, 0)
        apical = 1 + 1.2 * np.clip(m, 0, 1)
        teeth = coverage(depth - polar(grain.rv) * np.float32(apical), 2.5)
        strand = np.clip((grain.strands - 1.0 + 0.3 * np.float32(apical)) * 0.8, 0, 0.45)
        mix = np.maximum(0.7 * teeth, np.float32(tissue.strands) * strand)
        canvas.paint(coverage(np.maximum(r - wall, septum - r), pixel), blood + mix * (muscle - blood))
    if epi.any():
        canvas.paint(coverage(r - polar(epi), pixel), muscle)
    if at.endo[k].any():
        paint_cavity(canvas, polar, tissue, at, k, grain, muscle, flow)


def paint_cavity(canvas: Canvas, polar: Polar, tissue: Tissue, at: Contours, k: int, grain: Grain, muscle: np.ndarray,
                 flow: np.ndarray) -> None:
    """Blood, trabeculae and papillary muscles inside the endocardium (all of it is labelled LV, as readers draw it)."""
    r, pixel, m, radii = polar.r, canvas.pixel, float(at.material[k]), at.endo[k]
    endo = polar(radii)
    teeth = coverage(endo - r - polar(np.minimum(grain.lv * (0.7 + 0.9 * m), 0.45 * radii)), 1.5 * pixel)
    dark = 0.9 * teeth * (r < endo + 1)
    for angle, share, size, first, last in tissue.papillary:
        reach = float(np.clip(min(m - first, last - m) / 0.08, 0, 1)) * size
        if reach > 0.5:
            away = share * radii[int(angle / (2 * np.pi) * ANGLES) % ANGLES]
            spot = np.hypot(polar.x - np.float32(away * np.cos(angle)), polar.y - np.float32(away * np.sin(angle)))
            dark = np.maximum(dark, 0.95 * coverage(spot - min(reach, 0.4 * float(radii.mean())), pixel))
    canvas.paint(coverage(r - endo, pixel), flow + dark * (muscle - flow))


def paint_above_or_below(canvas: Canvas, polar: Polar, heart: Heart, tissue: Tissue, at: Contours, k: int,
                         grain: Grain, muscle: np.ndarray, flow: np.ndarray) -> None:
    """Beyond the apex a pad of fat; above the base atria, aortic root and pulmonary artery (blood, not labelled)."""
    x, y, r, pixel, size = polar.x + 4 * grain.bend, polar.y - 3 * grain.bend, polar.r, canvas.pixel, heart.radius
    if at.material[k] > 0:
        canvas.paint(coverage(r - 0.55 * size, pixel), tissue.ink * tissue.fat)
        return
    p, q = np.cos(heart.septum), np.sin(heart.septum)

    def vessel(along: float, across: float, semi: tuple[float, float], wall: float, turn: float) -> None:
        centre = size * (along * p - across * q), size * (along * q + across * p)
        edge = ellipse(x, y, centre, (size * semi[0], size * semi[1]), heart.septum + turn)
        canvas.paint(coverage(edge - wall - 2 - 2 * grain.bend, 2 * pixel), 0.8 * tissue.ink * tissue.fat)
        canvas.paint(coverage(edge - wall, pixel), muscle)
        canvas.paint(coverage(edge, pixel), shade * flow)

    shade = tissue.right_blood
    if not at.free_wall[k].any():
        vessel(1.45, -0.5, (0.9, 1.15), 1.5, -0.25)  # right atrium
        vessel(0.95, 1.2, (0.85, 0.5), 1.5, 0.3)  # outflow of the right ventricle
    shade = 0.95
    vessel(-0.3, -0.35, (1.1, 0.95), 1.2, 0.4)  # left atrium
    vessel(0.45, 0.5, (0.55, 0.5), 1.2, 0.0)  # aortic root


def round_off(radii: np.ndarray) -> np.ndarray:
    """[ANGLES]: the largest radius near each angle, smoothed: fat fills the groove between the ventricles."""
    widest = np.max([np.roll(radii, s) for s in range(-9, 10, 3)], axis=0)
    return np.maximum(radii, np.mean([np.roll(widest, s) for s in range(-12, 13, 4)], axis=0))
