"""What surrounds the heart: chest wall, fat, lungs, liver, stomach, vessels, spine; none of it is labelled.

Positions are in mm around the middle of the heart, before the whole scene is turned: two layouts, the oblique short
axis (chest wall to the left, lung over and liver under the heart) and the nearly axial one (chest wall on top, a lung
on either side). Fat is painted negative: in balanced SSFP fat and water have opposite phase, so that the magnitude of a
voxel that holds both is dark (the black outlines of such images).
"""

from dataclasses import dataclass

import cv2
import numpy as np

from edgeseg.phantoms.texture import Canvas, coverage, ellipse, smooth_noise, stream

Pair = tuple[float, float]


@dataclass(frozen=True)
class Layout:
    """Centres, semi-axes (mm) and directions (rad) of a body plan."""

    trunk: tuple[Pair, Pair, float]
    diaphragm: tuple[float, float, float]  # tilt, curvature per 100 mm, rise in mm from base to apex
    liver: tuple[Pair, Pair, float]
    spleen: tuple[Pair, Pair, float]
    stomach: tuple[Pair, Pair, float]
    kidney: tuple[Pair, Pair, float]
    spine: tuple[Pair, Pair]  # a vertebra and the step to the next
    aorta: tuple[Pair, Pair, float]
    cava: tuple[Pair, Pair, float]


OBLIQUE = Layout(
    trunk=((28, 60), (138, 235), 0.10), diaphragm=(0.10, 0.10, 26),
    liver=((-42, 92), (72, 50), 0.35), spleen=((88, 62), (24, 36), 0.3), stomach=((46, 68), (34, 22), -0.5),
    kidney=((66, 112), (22, 34), 0.3), spine=((104, 70), (4, 33)), aorta=((66, 70), (10, 26), 0.15),
    cava=((8, 62), (9, 15), 0.5))
AXIAL = Layout(
    trunk=((-8, 26), (168, 116), 0.0), diaphragm=(-0.22, 0.12, 30),
    liver=((-62, 62), (82, 52), 0.25), spleen=((92, 76), (26, 40), -0.4), stomach=((62, 52), (34, 24), 0.3),
    kidney=((52, 98), (24, 18), 0.2), spine=((-8, 88), (0, 0)), aorta=((16, 76), (11, 12), 0.0),
    cava=((-38, 52), (12, 10), 0.0))


@dataclass(frozen=True)
class Body:
    """A drawn body; signals are shares of that of blood in the left ventricle."""

    layout: Layout
    size: float  # scale of the organs
    fat_mm: float
    muscle_mm: float
    reach: float  # mm from the middle of the heart to the inside of the chest wall
    floor: float  # mm from the middle of the heart down to the diaphragm, at the base
    fat: float
    muscle: float
    lung: float
    liver: float
    spleen: float
    stomach: float
    marrow: float
    ink: float = -1.0  # sign of fat's signal: negative makes dark outlines
    speckle: float = 1.0  # unevenness of the lung
    clutter: float = 0.0  # 0..1: how much is strewn over it that is no anatomy


def sample_body(rng: np.random.Generator, axial: bool, reach: float, floor: float) -> Body:
    """A body round a heart that needs `reach` mm to the chest wall and `floor` mm to the diaphragm."""
    return Body(
        layout=AXIAL if axial else OBLIQUE, size=float(rng.uniform(0.9, 1.12)), fat_mm=float(rng.uniform(5, 26)),
        muscle_mm=float(rng.uniform(8, 16)), reach=reach + float(rng.uniform(3, 12)),
        floor=floor + float(rng.uniform(0, 8)), fat=float(rng.uniform(0.85, 1.35)),
        muscle=float(rng.uniform(0.24, 0.42)), lung=float(rng.uniform(0.02, 0.16)),
        liver=float(rng.uniform(0.28, 0.58)), spleen=float(rng.uniform(0.3, 0.65)),
        stomach=float(rng.choice([0.06, 0.45, 1.05]) * rng.uniform(0.8, 1.2)), marrow=float(rng.uniform(0.35, 0.7)))


def paint_body(body: Body, canvas: Canvas, level: float, key: tuple[int, ...]) -> None:
    """Paint one slice; `level` is 0 at the heart's base and 1 at its apex, `key` names the random stream."""
    rng, plan, shape = stream(*key), body.layout, canvas.image.shape
    pixel, x, y = canvas.pixel, canvas.x, canvas.y
    (centre, semi, angle), scale = plan.trunk, body.size
    axis = 1 if plan is AXIAL else 0  # the chest wall in front of the heart keeps its distance
    shift = -(body.reach + body.fat_mm + body.muscle_mm) + semi[axis] * scale
    centre = (centre[0], shift) if axis else (shift, centre[1])
    trunk = ellipse(x, y, centre, (semi[0] * scale, semi[1] * scale), angle)
    rough, fine = smooth_noise(rng, shape, 26 / pixel), smooth_noise(rng, shape, 5 / pixel)
    wide = smooth_noise(rng, shape, 75 / pixel)
    inner = trunk + body.fat_mm * (1 + 0.4 * wide)
    thorax = inner + body.muscle_mm * (1 + 0.2 * wide + 0.08 * rough)

    canvas.paint(coverage(trunk, pixel), body.ink * body.fat * (1 + 0.05 * fine + 0.10 * rough))
    canvas.paint(coverage(np.abs(trunk + 1.5) - 1.2, pixel), 0.45 * body.muscle)  # skin
    canvas.paint(coverage(inner, pixel), body.muscle * (1 + 0.10 * fine))
    paint_ribs(body, canvas, inner, rng, level)
    cavity = coverage(thorax, pixel)
    canvas.paint(cavity, body.lung * (1 + 0.25 * body.speckle * fine) * (1 + 0.3 * body.speckle * rough))
    canvas.image += cavity * lung_vessels(rng, shape, pixel)
    if plan is OBLIQUE:
        paint_spine(body, canvas, level)
    paint_abdomen(body, canvas, cavity, level, rng, rough, fine)
    if plan is AXIAL:
        paint_spine(body, canvas, level)
    at, size, turn = plan.aorta
    at = (at[0] + float(rng.normal(0, 3)), at[1] + float(rng.normal(0, 3)))
    size = (size[0] * float(rng.uniform(0.85, 1.15)), size[1] * float(rng.uniform(0.6, 1.2)))
    canvas.ellipse(at, (size[0] + 1, size[1] + 1), body.muscle, turn)
    canvas.ellipse(at, size, float(rng.uniform(0.75, 1.15)), turn)
    if body.clutter:
        strew(body.clutter, canvas, rng)


def strew(amount: float, canvas: Canvas, rng: np.random.Generator) -> None:
    """Shapes of any signal, some like a ventricle (a ring), some with a smooth edge, anywhere but for the heart that is
    painted over them: what a network must not learn is where things lie and how bright they are."""
    shape, pixel = canvas.image.shape, canvas.pixel
    texture = 1 + 0.15 * smooth_noise(rng, (shape[0], shape[1]), 6 / pixel)
    if rng.random() < 0.3 * amount:  # another body altogether: patches of noise
        patches = smooth_noise(rng, (shape[0], shape[1]), float(rng.uniform(15, 60)) / pixel)
        for level in rng.uniform(-1.2, 1.2, 3):
            cover = coverage((float(level) - patches) * 8, 2 * pixel) * np.float32(rng.uniform(0.5, 1))
            canvas.paint(cover, texture * np.float32(rng.uniform(0.02, 1.3)))
    for _ in range(int(rng.poisson(10 * amount))):
        at = float(rng.uniform(canvas.x.min(), canvas.x.max())), float(rng.uniform(canvas.y.min(), canvas.y.max()))
        semi = float(rng.uniform(4, 35)), float(rng.uniform(4, 25))
        turn, value = float(rng.uniform(0, 3.2)), float(rng.choice([rng.uniform(0.02, 1.3), -rng.uniform(0.3, 1.0)]))
        canvas.ellipse(at, semi, value, turn)
        if rng.random() < 0.4 and min(semi) > 8:
            inner = float(rng.uniform(2, 0.6 * min(semi)))
            canvas.ellipse(at, (semi[0] - inner, semi[1] - inner), float(rng.uniform(0.02, 1.3)), turn)


def paint_ribs(body: Body, canvas: Canvas, inner: np.ndarray, rng: np.random.Generator, level: float) -> None:
    """Ribs (marrow in a dark shell) and fat planes, spaced round the muscle of the chest wall."""
    x0, y0 = (body.layout.trunk[0][0], body.layout.trunk[0][1])
    turn = np.arctan2(canvas.y - np.float32(y0), canvas.x - np.float32(x0))
    wave = np.cos(np.float32(17) * turn + np.float32(5 * level + rng.uniform(0, 1)))
    depth = np.abs(inner + 0.55 * body.muscle_mm) - 0.28 * body.muscle_mm
    rib = np.maximum(depth, (0.35 - wave) * 9)
    canvas.paint(coverage(rib - 1.2, canvas.pixel), 0.04)
    canvas.paint(coverage(rib, canvas.pixel), body.ink * body.marrow)
    gap = np.maximum(np.abs(inner + 0.15 * body.muscle_mm) - 0.9, (wave + 0.2) * 9)
    canvas.paint(coverage(gap, canvas.pixel), 0.8 * body.ink * body.fat)


def lung_vessels(rng: np.random.Generator, shape: tuple[int, int], pixel: float) -> np.ndarray:
    """float32 [H, W]: bright dots of several sizes."""
    image = np.zeros(shape, np.uint8)
    count = rng.poisson(130)
    spots = np.stack([rng.uniform(0, shape[1], count), rng.uniform(0, shape[0], count),
                      (rng.gamma(2.0, 0.7, count) + 0.5) / pixel], axis=1)
    for (x, y, radius), value in zip(np.rint(16 * spots).astype(int).tolist(), rng.uniform(0.1, 0.75, count),
                                     strict=True):
        cv2.circle(image, (x, y), radius, int(255 * value), -1, cv2.LINE_AA, shift=4)  # in sixteenths of a pixel
    return image.astype(np.float32) / 255


def paint_spine(body: Body, canvas: Canvas, level: float) -> None:
    """Vertebrae with dark discs between them, and the bright spinal canal behind."""
    (x, y), (dx, dy) = body.layout.spine
    canvas.ellipse((x + 14, y), (36, 120) if dy else (44, 26), body.muscle)
    for step in (-2, -1, 0, 1, 2) if dy else (0,):
        at = (x + step * dx, y + step * dy + 8 * level)
        canvas.ellipse(at, (19, 15), 0.12)
        canvas.ellipse(at, (17.5, 13.5), 0.7 * body.ink * body.marrow)
        behind = (at[0] + 24, at[1]) if dy else (at[0], at[1] + 23)
        canvas.ellipse(behind, (7, 17) if dy else (10, 7), 1.1)
        canvas.ellipse(behind, (3.5, 17) if dy else (5, 3.5), 0.5)


def paint_abdomen(body: Body, canvas: Canvas, cavity: np.ndarray, level: float, rng: np.random.Generator,
                  rough: np.ndarray, fine: np.ndarray) -> None:
    """Everything under the diaphragm, which rises towards the apex."""
    plan, x, y, pixel = body.layout, canvas.x, canvas.y, canvas.pixel
    tilt, curve, rise = plan.diaphragm
    edge = body.floor - rise * level + tilt * x + np.float32(curve / 100) * (x + 15) ** 2
    below = cavity * coverage(edge - y, pixel)
    fat = body.ink * body.fat * (0.85 + 0.15 * fine + 0.1 * rough)
    canvas.paint(below, np.where(rough + 0.2 * fine > 0.8, 0.3, fat))
    up = (0.0, body.floor - 42 - rise * (level - 0.5))

    wander = rng.normal(0, 5, 2)

    def organ(which: tuple[Pair, Pair, float], value: float, shrink: float = 0.0) -> None:
        at, semi, turn = which
        place = (at[0] * body.size + float(wander[0]), at[1] * body.size + up[1] + float(wander[1]))
        canvas.ellipse(place, (semi[0] - shrink, semi[1] - shrink), value, turn, within=below)

    for _ in range(7):  # bowel, anywhere low
        at = float(rng.uniform(-60, 110)), float(rng.uniform(85, 160))
        value = float(rng.choice([0.05, 0.4, 0.9]))
        loop = (at, (float(rng.uniform(8, 22)), float(rng.uniform(7, 14))), float(rng.uniform(0, 3)))
        organ(loop, 0.35)
        organ(loop, value, 2.5)
    organ(plan.spleen, body.spleen)
    organ(plan.kidney, 0.95 * body.spleen + 0.1)  # a ring, like the ventricle
    organ(plan.kidney, 0.7 * body.spleen, 6)
    organ(plan.kidney, 0.8 * body.ink * body.fat, 14)
    organ(plan.stomach, 0.9 * body.muscle)
    organ(plan.stomach, body.stomach, 4)
    at, semi, turn = plan.liver
    place = (at[0] * body.size, at[1] * body.size + up[1])
    liver = below * coverage(ellipse(x, y, place, (semi[0] * body.size, semi[1] * body.size), turn), pixel)
    canvas.paint(liver, body.liver * (1 + 0.07 * fine))
    ridge = np.clip(1 - np.abs(rough * 0.7 + 0.5 * smooth_noise(rng, rough.shape, 14 / pixel)) / 0.13, 0, 1)
    gate = smooth_noise(rng, rough.shape, 18 / pixel) > 0.7
    canvas.paint(liver * ridge * gate, body.liver + 0.35)  # hepatic vessels
    organ(plan.cava, float(rng.uniform(0.7, 1.1)))
