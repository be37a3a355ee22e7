"""The organs of the CT phantom but for the spleen's shape (ct_spleen.py), and how contrast medium colours them.

Hounsfield units by phase are means of what radiology text books give for adults; a patient's lie around them, wider
than in any one hospital.
"""

from dataclasses import dataclass

import numpy as np

from edgeseg.phantoms.ct_body import Body, Walls, paint_back, paint_wall
from edgeseg.phantoms.ct_scene import Scene
from edgeseg.phantoms.ct_spleen import Spleen, spleen_distance
from edgeseg.phantoms.texture import ellipse

ALL = ("background", "spleen", "liver", "kidneys", "stomach", "aorta", "spine", "body wall")
SPLEEN, LIVER, KIDNEYS, STOMACH, AORTA, SPINE, WALL = range(1, len(ALL))
PHASES = {"none": (50, 58, 33, 31, 42, 42), "arterial": (125, 72, 190, 85, 310, 95),
          "venous": (112, 106, 200, 180, 150, 158), "late": (88, 90, 160, 165, 108, 112)}
"""HU of spleen, liver, the kidney's cortex and medulla, aorta and veins."""
SHARES = (0.1, 0.15, 0.6, 0.15)
GAS = -900.0


@dataclass(frozen=True)
class Tissue:
    """HU of one patient. fleck: how uneven organs are, HU. mottle: the same of the spleen in the arterial phase."""

    phase: str
    spleen: float
    liver: float
    cortex: float
    medulla: float
    aorta: float
    veins: float
    gut: float
    fleck: float
    mottle: float


@dataclass(frozen=True)
class Blob:
    """An ellipsoid: centre and semi-axes (mm), direction of the first (rad) in the axial plane; `lean`: mm to the right
    that its tips lie beyond its middle."""

    at: tuple[float, float, float]
    semi: tuple[float, float, float]
    turn: float = 0.0
    lean: float = 0.0

    def cut(self, level: float) -> float:
        """Size of the cut at `level`, 0..1 of the semi-axes (0: not cut)."""
        return float(max(1 - ((level - self.at[2]) / self.semi[2]) ** 2, 0) ** 0.5)

    def semi_at(self, level: float, shrink: float = 0.0) -> tuple[float, float]:
        size = self.cut(level)
        return self.semi[0] * size - shrink, self.semi[1] * size - shrink

    def distance(self, x: np.ndarray, y: np.ndarray, level: float) -> np.ndarray:
        """mm to its cut, < 0 inside; far away where it is not cut."""
        size = self.cut(level)
        if size < 0.05:
            return np.full_like(x, 1e3)
        at = self.at[0] - self.lean * (1 - size), self.at[1]
        return ellipse(x, y, at, (self.semi[0] * size, self.semi[1] * size), self.turn)


@dataclass(frozen=True)
class Loop:
    """A stretch of gut: its shape, its wall (mm), what it holds (HU), whether gas stands above that, and how lumpy."""

    blob: Blob
    wall: float
    holds: float
    gas: float
    lumps: float


@dataclass(frozen=True)
class Organs:
    liver: tuple[Blob, ...]
    lesions: tuple[tuple[Blob, float], ...]
    kidneys: tuple[Blob, Blob]  # the patient's right one, then the left one
    perirenal: float
    sinus: float
    stomach: Loop
    gut: tuple[Loop, ...]
    pancreas: tuple[Blob, ...]
    aorta: tuple[float, float]  # x from the spine's middle and radius, mm
    cava: tuple[float, float]
    adrenal: float


def sample_tissue(rng: np.random.Generator) -> Tissue:
    phase = str(rng.choice(list(PHASES), p=SHARES))
    spread = np.exp(rng.normal(0, 0.1, 6))
    spread[:2] *= np.exp(rng.normal(0, 0.09))  # spleen and liver are late or early together
    spleen, liver, cortex, medulla, aorta, veins = (np.array(PHASES[phase]) * spread + rng.normal(0, 5, 6)).tolist()
    if rng.random() < 0.2:  # a fatty liver
        liver -= float(rng.uniform(5, 50))
    return Tissue(phase, spleen, liver, cortex, medulla, aorta, veins, float(rng.normal(75, 22)),
                  float(rng.uniform(0, 3)), float(rng.uniform(5, 25)) if phase == "arterial" else 0.0)


def sample_organs(rng: np.random.Generator, body: Body, spleen: Spleen) -> Organs:
    """Organs in the cavity of `body`; levels are from the spleen's middle."""
    side, front, back = body.inner
    spine_x, spine_y = body.spine

    def some(mean: float, spread: float = 0.12) -> float:
        return float(mean * np.clip(1 + rng.normal(0, spread), 0.6, 1.5))

    low = -float(rng.uniform(50, 140))
    top = float(rng.uniform(70, 120))
    slim = float(rng.uniform(0.3, 0.55))  # a low right lobe lies along the wall, much as a spleen does on the left
    right = Blob((-(0.98 - slim) * side, float(rng.normal(0, 0.15)) * back, (low + top) / 2),
                 (slim * side, some(0.68, 0.15) * back, (top - low) / 2), float(rng.normal(0.1, 0.2)),
                 lean=float(rng.uniform(0, 0.4)) * side)
    left = Blob((some(-0.2, 0.4) * side, -0.3 * front, top - some(60)),
                (some(0.55, 0.2) * side, some(0.4, 0.2) * front, some(65)), float(rng.normal(-0.25, 0.15)))
    lesions = []
    for _ in range(int(rng.poisson(0.8))):
        at = (float(rng.uniform(-0.8, -0.3)) * side, float(rng.uniform(-0.4, 0.4)) * back, float(rng.uniform(-50, 80)))
        lesions.append((Blob(at, (some(9, 0.5), some(9, 0.5), some(10, 0.4))), float(rng.uniform(10, 80))))
    kidneys = tuple(
        Blob((spine_x + sign * some(66, 0.09), spine_y + some(-2, 3), float(rng.normal(-35 if sign > 0 else -45, 20))),
             (some(31), some(25), some(55)), sign * float(rng.uniform(0.4, 1.1))) for sign in (-1, 1))
    stomach = Loop(
        Blob((some(0.38) * side, some(-0.42) * front, float(rng.uniform(5, 60))),
             (some(42, 0.25), some(28, 0.3), some(55)), float(rng.normal(0.6, 0.4))),
        wall=float(rng.uniform(3, 9)), holds=float(rng.choice([10.0, 50.0, 220.0], p=[0.45, 0.4, 0.15])),
        gas=float(rng.uniform(-1, 1)) if rng.random() < 0.6 else -2.0, lumps=float(rng.uniform(0, 25)))
    pancreas = tuple(Blob((spine_x + 18 * n - 25, spine_y - 48 - 7 * np.sin(n + 0.5) + 3.5 * n,
                           float(rng.normal(-22 + 5 * n, 8))),
                          (some(14), some(9, 0.2), some(18)), float(rng.normal(0.2, 0.4))) for n in range(6))
    return Organs(
        liver=(right, left), lesions=tuple(lesions), kidneys=(kidneys[0], kidneys[1]),
        perirenal=float(rng.uniform(1, 9)), sinus=float(rng.uniform(0.25, 0.6)), stomach=stomach,
        gut=sample_gut(rng, body, spleen), pancreas=pancreas,
        aorta=(float(rng.normal(7, 4)), some(10.5)), cava=(float(rng.normal(-19, 4)), some(11, 0.2)),
        adrenal=float(rng.uniform(0, 4)))


def sample_gut(rng: np.random.Generator, body: Body, spleen: Spleen) -> tuple[Loop, ...]:
    """Loops anywhere in front of the spine, colon near the spleen's lower pole too."""
    side, front, _ = body.inner
    oral = float(rng.uniform(120, 350)) if rng.random() < 0.2 else None  # contrast medium was drunk
    loops = []
    for n in range(int(rng.integers(25, 70))):
        near = n < 3  # the left flexure of the colon
        x = float(rng.uniform(0.45, 0.85) if near else rng.uniform(-0.55, 0.8)) * side
        y = float(rng.uniform(-0.45, 0.1) if near else rng.uniform(-0.9, 0.05)) * front
        z = float(rng.normal(-0.8 * spleen.height, 20) if near else rng.uniform(-130, 60))
        long = float(rng.uniform(8, 26))
        blob = Blob((x, y, z), (long, long * float(rng.uniform(0.4, 1)), float(rng.uniform(12, 40))),
                    float(rng.uniform(0, np.pi)))
        filled = float(rng.choice([12.0, 45.0, 80.0, -500.0], p=[0.2, 0.3, 0.4, 0.1]))
        holds = oral if oral is not None and rng.random() < 0.6 else filled
        gas = float(rng.uniform(-1, 1)) if rng.random() < 0.35 else -2.0
        loops.append(Loop(blob, float(rng.uniform(1.5, 3.5)), holds, gas, float(rng.exponential(20))))
    return tuple(loops)


def paint_organs(scene: Scene, body: Body, at: Walls, spleen: Spleen, organs: Organs, tissue: Tissue,
                 level: float) -> None:
    """Everything at `level`, from back to front; what is painted later lies before what it meets."""
    paint_wall(scene, body, at, level, WALL)
    x, y, fleck = scene.x, scene.y, np.float32(tissue.fleck) * scene.texture.fine
    fat = np.float32(body.lard) + 6 * scene.texture.fine
    scene.paint(scene.texture.mesentery * (at.abdomen < -12), tissue.veins)
    for loop in organs.gut:
        paint_loop(scene, loop, tissue.gut, level, at.abdomen, 0)
    paint_loop(scene, organs.stomach, tissue.gut, level, at.abdomen, STOMACH)
    for blob in organs.pancreas:
        scene.spot(blob.at[:2], blob.semi_at(level), 0.85 * tissue.spleen + fleck, blob.turn, within=at.abdomen)
    if abs(level + 10) < 10:  # the splenic vein, from the hilum to the middle
        for n in range(14):
            scene.spot((body.spine[0] + 6.5 * n, body.spine[1] - 38 + 0.12 * n * n), (5, 3.2), tissue.veins)
    liver = np.minimum(*(blob.distance(x, y, level) for blob in organs.liver)) + 2 * scene.texture.rough
    liver = np.maximum(liver, at.abdomen + 2)
    scene.put(liver, tissue.liver + fleck, LIVER)
    scene.paint(scene.texture.liver * (liver < -6), max(tissue.veins, tissue.liver))
    for blob, value in organs.lesions:
        scene.spot(blob.at[:2], blob.semi_at(level), value, label=LIVER, within=liver + 1)
    shape = spleen_distance(spleen, body, x, y, at.abdomen, level)
    scene.put(shape - 1.0, fat)
    mottled = np.float32(tissue.mottle) * scene.texture.rough
    scene.put(shape, tissue.spleen + fleck + mottled, SPLEEN)
    for blob in organs.kidneys:
        paint_kidney(scene, blob, organs, tissue, level, at.cavity, fat)
    paint_back(scene, body, level, WALL, SPINE)
    paint_vessels(scene, body, organs, tissue, level)


def paint_loop(scene: Scene, loop: Loop, wall: float, level: float, cavity: np.ndarray, label: int) -> None:
    """A gut loop or the stomach: wall, contents, and gas in front, which is up in a patient on the back."""
    semi = loop.blob.semi_at(level)
    if min(semi) < 1:
        return
    centre = loop.blob.at[:2]
    scene.spot(centre, semi, wall + 8 * scene.texture.fine, loop.blob.turn, label, cavity + 1)
    holds = np.float32(loop.holds) + np.float32(loop.lumps) * scene.texture.fine
    if loop.gas > -1.5:
        holds = np.where(scene.y < np.float32(centre[1] + loop.gas * semi[1]), np.float32(GAS), holds)
    scene.spot(centre, loop.blob.semi_at(level, loop.wall), holds, loop.blob.turn, label, cavity + 1 + loop.wall)


def paint_kidney(scene: Scene, blob: Blob, organs: Organs, tissue: Tissue, level: float, cavity: np.ndarray,
                 fat: np.ndarray) -> None:
    """Fat around it, cortex, medulla, and the sinus, which opens to the front and the middle."""
    size, (x, y, _), sign = blob.cut(level), blob.at, float(np.sign(blob.at[0]))
    if size < 0.05:
        return
    semi, around = blob.semi_at(level), organs.perirenal
    scene.spot((x, y), (semi[0] + around, semi[1] + around), fat, blob.turn, within=cavity + 1)
    scene.spot((x, y), semi, tissue.cortex + 4 * scene.texture.fine, blob.turn, KIDNEYS, cavity + 2)
    pyramids = tissue.medulla + 0.25 * (tissue.cortex - tissue.medulla) * scene.texture.rough
    scene.spot((x, y), blob.semi_at(level, 7), pyramids, blob.turn, KIDNEYS, cavity + 2)
    depth = (abs(level - blob.at[2]) / blob.semi[2] / organs.sinus) ** 2
    if depth < 1:
        wide = 13 * (1 - depth) ** 0.5
        at = x - sign * 0.45 * semi[0] * (1 - depth), y - 0.35 * semi[1] * (1 - depth)
        scene.spot(at, (wide, 0.6 * wide), fat, sign * 0.6)
        scene.spot((at[0] + sign * 3, at[1] + 1), (0.4 * wide, 0.3 * wide), tissue.veins, sign * 0.5)


def paint_vessels(scene: Scene, body: Body, organs: Organs, tissue: Tissue, level: float) -> None:
    """Aorta, inferior vena cava, the crura beside the aorta, adrenals, and the vessels that leave in front."""
    (x, y), size = body.spine, body.bones.size
    front = y - 17 * size
    away, radius = organs.aorta
    for sign in (-1, 1):
        scene.spot((x + away + sign * (radius + 3), front - 4), (3, 11), body.lean, sign * 0.2)
        if organs.adrenal and abs(level) < 15:
            scene.spot((x + sign * 38, front - 8), (1 + organs.adrenal, 11), 0.7 * tissue.spleen, sign * 0.5)
    aorta = (x + away, front - radius)
    scene.spot(aorta, (radius, radius), tissue.aorta, label=AORTA)
    away, radius = organs.cava
    scene.spot((x + away, front - radius + 2), (1.15 * radius, 0.8 * radius), tissue.veins - 15, 0.2)
    scene.spot((aorta[0] + 2, aorta[1] - 22), (4.5, 4.5), tissue.aorta)
    scene.spot((aorta[0] - 14, aorta[1] - 24), (6.5, 6), tissue.veins)
