"""The trunk of the CT phantom: skin, fat, muscle, the cavity within, and how high the lungs reach down.

Positions are in mm from the body's middle: x to the patient's left, y to the back, z (level) to the head, 0 at the
middle of the spleen. Cross sections are superellipses |x/a|^p + |y/b|^p = 1 with another b in front and behind.
"""

from dataclasses import dataclass

import numpy as np

from edgeseg.phantoms.ct_scene import Scene, Value

LUNG, CANAL = -850.0, 25.0
"""HU."""


@dataclass(frozen=True)
class Bones:
    """Spine and ribs. size: scale. apart: mm from one vertebra to the next, first: level of one's middle. marrow,
    cortex, disc: HU. ribs: mm between two on the wall, and the direction (rad) of one at z = 0. table: mm under the
    back, curvature per metre and HU."""

    size: float
    apart: float
    first: float
    marrow: float
    cortex: float
    disc: float
    ribs: tuple[float, float]
    table: tuple[float, float, float]


@dataclass(frozen=True)
class Body:
    """A drawn trunk.

    Attributes:
        wide, front, back: semi-axes of the skin. power: of the superellipse. fat: thickness under the skin at the
        side, in front and behind. muscle: of the wall. spine: x, y of the vertebral bodies. lung: level where the
        lungs begin, their slope (mm a mm), and how much farther they reach down behind.
        skin, lean: HU of skin and muscle. lard: HU of fat. loose: 0..1, how streaky the fat inside is.
        bones: its bones.
    """

    wide: float
    front: float
    back: float
    power: float
    fat: tuple[float, float, float]
    muscle: float
    spine: tuple[float, float]
    lung: tuple[float, float, float]
    skin: float
    lean: float
    lard: float
    loose: float
    bones: Bones

    @property
    def inner(self) -> tuple[float, float, float]:
        """Semi-axes of the cavity: side, front, back."""
        side, front, back = self.fat
        return self.wide - side - self.muscle, self.front - front - self.muscle, self.back - back - self.muscle


def sample_body(rng: np.random.Generator) -> Body:
    """A trunk from slim to stout."""
    stout = float(rng.uniform(0, 1))
    wide = 140 + 45 * stout + float(rng.normal(0, 8))
    deep = wide * float(rng.uniform(0.64, 0.82))
    fat = 5 + 20 * stout * float(rng.uniform(0.3, 1.3))
    behind = fat * float(rng.uniform(0.5, 1.2))
    back = deep * float(rng.uniform(0.92, 1.04))
    return Body(
        wide=wide, front=deep * float(rng.uniform(0.95, 1.12)), back=back, power=float(rng.uniform(2.05, 2.6)),
        fat=(fat, fat * float(rng.uniform(0.6, 1.6)), behind), muscle=float(rng.uniform(5, 18)),
        spine=(float(rng.normal(0, 3)), back - behind - float(rng.uniform(48, 66))),
        lung=(float(rng.uniform(0, 60)), float(rng.uniform(0.5, 1.2)), float(rng.uniform(0, 25))),
        skin=float(rng.uniform(-30, 60)), lean=float(rng.normal(55, 11)), lard=float(rng.normal(-105, 8)),
        loose=float(rng.uniform(0, 1)), bones=sample_bones(rng))


def sample_bones(rng: np.random.Generator) -> Bones:
    marrow = float(rng.uniform(120, 280))
    return Bones(
        size=float(rng.uniform(0.88, 1.12)), apart=float(rng.uniform(29, 36)), first=float(rng.uniform(0, 36)),
        marrow=marrow, cortex=float(rng.uniform(350, 800)), disc=float(rng.uniform(60, 120)),
        ribs=(float(rng.uniform(45, 70)), float(rng.uniform(0, 1))),
        table=(float(rng.uniform(2, 22)), float(rng.uniform(0.4, 2.0)), float(rng.uniform(-500, 700))))


@dataclass(frozen=True)
class Walls:
    """Distances (mm, float32 [H, W], < 0 inside) to the skin, to the muscle under its fat, to the cavity within it and
    to the abdomen under the lungs (the cavity where there are none)."""

    skin: np.ndarray
    muscle: np.ndarray
    cavity: np.ndarray
    abdomen: np.ndarray


def walls(body: Body, x: np.ndarray, y: np.ndarray, level: float) -> Walls:
    """Where the layers of the trunk are at `level`."""
    narrow = 1 - 0.05 * min(max(-level / 80, 0), 1)  # the waist
    side, front, back = body.fat
    skin = superellipse(x, y, (body.wide * narrow, body.front, body.back), body.power)
    muscle = superellipse(x, y, (body.wide * narrow - side, body.front - front, body.back - back), body.power)
    behind = np.clip(y / np.float32(body.back), -0.4, 1)
    cavity = muscle + np.float32(body.muscle) * (1 + np.float32(0.25) * behind)
    start, slope, farther = body.lung
    lung = np.maximum((np.float32(level - start) + np.float32(farther) * behind) * np.float32(slope), 0)
    return Walls(skin, muscle, cavity, cavity + np.minimum(lung, 90))


def superellipse(x: np.ndarray, y: np.ndarray, semi: tuple[float, float, float], power: float) -> np.ndarray:
    """Distance (mm, first order) to a superellipse of semi-axes (side, front, back), < 0 inside."""
    a, p = np.float32(semi[0]), np.float32(power)
    b = np.where(y < 0, np.float32(semi[1]), np.float32(semi[2]))
    u, v = np.abs(x) / a, np.abs(y) / b
    up, vp = u ** (p - 1), v ** (p - 1)
    near = np.maximum(u * up + v * vp, np.float32(1e-6)) ** (1 / p)
    slope = np.hypot(up / a, vp / b) * near ** (1 - p)
    return (near - 1) / np.maximum(slope, np.float32(0.5 / max(semi)))


def paint_wall(scene: Scene, body: Body, at: Walls, level: float, label: int) -> None:
    """Table, skin, fat, muscle and ribs, then what the cavity is lined with: fat within, lung above."""
    x, y = scene.x, scene.y
    away, curve, value = body.bones.table
    surface = np.abs(y - np.float32(body.back + away + 6) + np.float32(curve / 1000) * x * x) - 2.0
    scene.put(np.maximum(surface, np.abs(x) - 215), value)
    fine, rough = scene.texture.fine, scene.texture.rough
    fat = np.float32(body.lard) + 6 * fine + 4 * rough
    scene.put(at.skin, fat, label)
    scene.put(np.abs(at.skin + 1.2) - 1.0, body.skin, label)
    lean = np.float32(body.lean) + 7 * fine - np.float32(70 * body.loose) * np.clip(rough - 1, 0, 1)
    scene.put(at.muscle, lean, label)
    layers = np.abs(at.muscle + np.float32(0.5 * body.muscle)) - np.float32(0.4 + 0.8 * body.loose)
    scene.put(np.maximum(layers, -2 * rough), fat, label)  # fat between the muscles of the wall
    scene.put(at.cavity, fat + np.float32(35 * body.loose) * np.clip(rough + 0.7 * fine - 0.6, 0, 3))
    paint_ribs(scene, body, at, level, label)
    above = at.abdomen - at.cavity
    if above.max() > 1:
        inside = np.maximum(at.cavity, 1.0 - above)
        scene.put(np.maximum(inside, -at.abdomen - 2.0), body.lean, label)  # the diaphragm
        lung = np.float32(LUNG) + 25 * fine + 800 * scene.texture.lung
        scene.put(np.maximum(inside, -at.abdomen), lung)


def paint_ribs(scene: Scene, body: Body, at: Walls, level: float, label: int) -> None:
    """Ribs cut obliquely: marrow in a bright shell, just outside the cavity, moving forward towards the feet."""
    step, start = body.bones.ribs
    side, front, back = body.inner
    for sign in (-1, 1):
        for n in range(7):
            turn = 1.25 - (n + start) * step / 120 + level / 110
            if not -0.75 - 0.004 * level < turn < 1.35:  # ribs end in front, the lower the farther back
                continue
            reach = 1 / np.hypot(np.cos(turn) / side, np.sin(turn) / (back if turn > 0 else front))
            reach += 0.45 * body.muscle + 1
            centre = float(sign * reach * np.cos(turn)), float(reach * np.sin(turn))
            angle = float(np.arctan2(np.cos(turn), -np.sin(turn) * sign))
            long = 9 + 5 * np.sin(3.0 * n + start * 6)
            scene.spot(centre, (long, 4.2), body.bones.cortex, angle, label)
            scene.spot(centre, (long - 2, 2.4), body.bones.marrow, angle, label)


def paint_back(scene: Scene, body: Body, level: float, wall: int, spine: int) -> None:
    """Muscles beside the spine, vertebrae with discs between them, the canal and the processes behind."""
    (x, y), bones, size = body.spine, body.bones, body.bones.size
    lean = np.float32(body.lean) + 9 * scene.texture.fine
    for sign in (-1, 1):
        scene.spot((x + sign * 33 * size, y + 36 * size), (33 * size, 23 * size), lean, sign * 0.15, wall)
        scene.spot((x + sign * 62 * size, y + 22 * size), (20 * size, 11 * size), lean, -sign * 0.6, wall)
        psoas = float(np.clip(10 - level / 9, 2, 19))
        scene.spot((x + sign * (26 + 0.4 * psoas), y + 4), (psoas, 1.2 * psoas), lean, 0.0, wall)
    phase = (level - bones.first) / bones.apart % 1  # 0 at the middle of a vertebra, 0.5 in a disc
    disc, plate = abs(phase - 0.5) < 0.09, abs(phase - 0.5) < 0.13
    marrow = np.float32(bones.cortex if plate else bones.marrow) * (1 + 0.15 * scene.texture.fine)

    def bone(left: float, behind: float, semi: tuple[float, float], value: Value, angle: float = 0.0) -> None:
        scene.spot((x + left * size, y + behind * size), (semi[0] * size, semi[1] * size), value, angle, spine)

    bone(0, 0, (23, 17), bones.disc if disc else bones.cortex)
    bone(0, 0, (21, 15), bones.disc if disc else marrow)
    for sign in (-1, 1):
        if phase < 0.3 or phase > 0.85:  # pedicles
            bone(sign * 14, 18, (5, 9), bones.cortex)
        if phase < 0.15:  # processes to the sides
            bone(sign * 31, 29, (15, 3.5), bones.cortex, sign * 0.35)
        bone(sign * 12, 34, (11, 6), 0.8 * bones.cortex, -sign * 0.7)
    bone(0, 50, (3, 10 + 6 * float(np.cos(2 * np.pi * phase))), 0.8 * bones.cortex)
    bone(0, 25, (10, 8), CANAL)
