"""What the beam meets in the echo phantom: greys of the heart and its surroundings, one picture per frame.

Greys are shares of white before speckle, on the pixels of the stored picture. Outlines are filled at twice its
resolution; the mask is where a pixel's centre lies inside the left ventricle's outline.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from edgeseg.phantoms.echo_domain import Domain
from edgeseg.phantoms.echo_heart import Chambers, Heart, Pose, chambers, leaflets, ventricle
from edgeseg.phantoms.texture import smooth_noise

SIZE = 112
"""Rows and columns of a picture."""
FINE, SHIFT = 2, 4
"""Resolution of outlines over that of the picture; fractional bits of OpenCV's coordinates."""
Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


@dataclass(frozen=True, eq=False)
class Look:
    """Greys and fine structure of one clip; lengths in pixels.

    Attributes:
        septum, lateral, apex, blood: greys. edge: (septal, lateral, apical) pixels over which the wall rises.
        shift: where it has risen by half, outside the mask's edge. haze, haze_depth: of cavities near the probe.
        lateral_wall, apex_wall: thickness over the septum's. pericardium, rv_wall, atrial_septum, valve: greys.
        trabeculae: grey of what reaches into the cavity. papillary: (s, v share, length, width, grey) each.
        root: grey of the dark outflow beside the septum's base, 0 without one.
        veil: thickness of the inner muscle that looks dim, lateral and apical, per doubling of the wall; dim: its grey
        as a share of the wall's.
        around: [H, W] of what lies round the heart. mottle: [H, W] noise of the tissue. cloud: [H, W] of the haze.
    """

    septum: float
    lateral: float
    apex: float
    blood: float
    edge: tuple[float, float, float]
    shift: float
    haze: float
    haze_depth: float
    lateral_wall: float
    apex_wall: float
    pericardium: float
    rv_wall: float
    atrial_septum: float
    valve: float
    valve_swing: float
    valve_wide: int
    trabeculae: float
    papillary: tuple[tuple[float, float, float, float, float], ...]
    tendon: float
    root: float
    veil: float
    dim: float
    around: np.ndarray
    mottle: np.ndarray
    cloud: np.ndarray


def sample_look(rng: np.random.Generator, domain: Domain) -> Look:
    """Draw the greys of a clip of `domain`."""
    papillary = tuple((float(rng.uniform(0.35, 0.75)), float(rng.choice([-1, 1], p=[0.2, 0.8]) * rng.uniform(0.6, 1.0)),
                       float(rng.uniform(*domain.papillary)), float(rng.uniform(1.2, 3)),
                       float(rng.uniform(0.3, 0.9)))
                      for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.35, 0.35, 0.2, 0.1]))))
    septum = float(rng.uniform(*domain.septum))
    veil, dim = (float(rng.uniform(*domain.veil)) * (rng.random() < 0.5), float(rng.uniform(0.15, 0.6))
                 ) if domain.veil else (0.0, 1.0)
    return Look(
        septum=septum, lateral=min(float(rng.uniform(*domain.lateral)), septum + 0.15),
        apex=min(float(rng.uniform(*domain.apex)), septum), blood=float(rng.uniform(*domain.blood)),
        edge=(float(rng.uniform(1, 3.5)), float(rng.uniform(1.5, 9)), float(rng.uniform(2, 12))),
        shift=float(rng.normal(0.3, 0.6)), haze=float(rng.uniform(*domain.haze)) * (rng.random() < 0.75),
        haze_depth=float(rng.uniform(12, 45)), lateral_wall=float(rng.uniform(0.8, 1.6)),
        apex_wall=float(rng.uniform(0.4, 1.3)), pericardium=float(rng.uniform(0, 0.9)) * (rng.random() < 0.7),
        rv_wall=float(rng.uniform(0, 0.7)), atrial_septum=float(rng.uniform(0.25, 1.0)),
        valve=float(rng.uniform(0.35, 1.0)), valve_swing=float(rng.uniform(50, 85)),
        valve_wide=int(rng.integers(1, 4)),
        trabeculae=float(rng.uniform(0, 0.5)) * (rng.random() < 0.6), papillary=papillary,
        tendon=float(rng.uniform(0.2, 0.6)) * (rng.random() < 0.12),
        root=float(rng.uniform(3, 8)) * (rng.random() < 0.12), veil=veil, dim=dim, around=surroundings(rng, domain),
        mottle=smooth_noise(rng, (SIZE, SIZE), float(rng.uniform(2.5, 6))),
        cloud=smooth_noise(rng, (SIZE, SIZE), float(rng.uniform(10, 25))))


def surroundings(rng: np.random.Generator, domain: Domain) -> np.ndarray:
    """Lung, liver and chest wall: [H, W], another grey on each side, uneven, with bright interfaces far away."""
    left, right, far = (float(rng.uniform(*domain.around)) for _ in range(3))
    across = 1 / (1 + np.exp(-(X - 60) / np.float32(rng.uniform(6, 20))))
    down = 1 / (1 + np.exp(-(Y - rng.uniform(75, 100)) / np.float32(rng.uniform(4, 15))))
    grey = left + (right - left) * across
    grey = grey + (far - grey) * down
    grey = grey + float(rng.uniform(0.05, 0.3)) * smooth_noise(rng, (SIZE, SIZE), float(rng.uniform(9, 22)))
    depth, angle = np.hypot(X - 66, Y), np.arctan2(X - 66, Y)
    for _ in range(int(rng.integers(0, 5))):
        at, toward = rng.uniform(70, 112), rng.uniform(-0.75, 0.75)
        bend = depth + rng.uniform(-25, 25) * (angle - toward)
        bright = np.exp(-((bend - at) / rng.uniform(1.5, 6)) ** 2 - ((angle - toward) / rng.uniform(0.1, 0.4)) ** 2)
        grey = grey + float(rng.uniform(0.3, 1.0)) * bright
    return np.clip(grey, -0.2, 1.1).astype(np.float32)


def paint(heart: Heart, look: Look, pose: Pose, warp: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Grey float32 [H, W] and the left ventricle's mask bool [H, W]; `warp`: x, y of every pixel at end-diastole."""
    others, edge = chambers(heart, pose), pose.place(heart, *ventricle(heart, pose))
    around, mottle, cloud = (cv2.remap(a, *warp, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
                             for a in (look.around, look.mottle, look.cloud))
    outside = distance(edge)
    u = (X - np.float32(pose.apex[0])) * np.float32(pose.along[0]) + (Y - np.float32(pose.apex[1])) * np.float32(
        pose.along[1])
    v = (X - np.float32(pose.apex[0])) * np.float32(pose.across[0]) + (Y - np.float32(pose.apex[1])) * np.float32(
        pose.across[1])
    lateral = 1 / (1 + np.exp(-v * np.float32(4 / pose.half)))
    apical = np.clip(1 - u * np.float32(3.2 / pose.length), 0, 1)
    image = behind(heart, look, pose, others, around)
    below = np.clip(-(u - pose.length - heart.slope * v) / 2, 0, 1)  # no muscle beyond the annulus
    thick = np.float32(pose.wall) * mixed(1.0, look.lateral_wall, look.apex_wall, lateral, apical)
    wall = mixed(look.septum, look.lateral, look.apex, lateral, apical) + np.float32(0.12) * mottle
    if look.veil:
        hidden = np.float32(look.veil * max(pose.wall / heart.wall - 1, 0)) * mixed(0.2, 1.0, 1.0, lateral, apical)
        bright = look.dim + (1 - look.dim) * np.clip((outside - hidden) / 2 + 1, 0, 1)
        wall = look.blood + bright * (wall - look.blood)
    image += np.clip((thick - outside) / 1.5 + 0.5, 0, 1) * below * (wall - image)
    if look.pericardium:
        line = np.exp(-((outside - thick - 1) / 1.8) ** 2) * lateral * below * (1 - apical)
        image = np.maximum(image, np.float32(look.pericardium) * line)
    blood = look.blood + np.float32(look.haze) * np.exp(-Y / np.float32(look.haze_depth)) * (1 + 0.5 * cloud)
    soft = mixed(*look.edge, lateral, apical)
    inside = np.clip(0.5 - (outside - np.float32(look.shift)) / soft, 0, 1)
    image += inside * (blood - image)
    if look.trabeculae:
        strands = np.clip(mottle + 0.3, 0, 1.5) * np.exp(np.minimum(outside, 0) / 3) * inside * (0.3 + 0.7 * lateral)
        image += np.float32(look.trabeculae) * strands
    return np.maximum(image, front(heart, look, pose, others)), outside < 0


def mixed(septal: float, lateral: float, apical: float, side: np.ndarray, tip: np.ndarray) -> np.ndarray:
    """A value for every pixel from those of the three walls; `side`: 0 septal .. 1 lateral, `tip`: 1 at the apex."""
    value = np.float32(septal) + np.float32(lateral - septal) * side
    return value + tip * (np.float32(apical) - value)


def behind(heart: Heart, look: Look, pose: Pose, others: Chambers, around: np.ndarray) -> np.ndarray:
    """The right ventricle and the atria, dark in what lies around, with their walls."""
    walls, dark = layer(), layer()
    rv = points(pose.place(heart, *others.rv))
    cv2.polylines(walls, [rv[len(rv) // 2:]], False, 255 * look.rv_wall, 7, cv2.LINE_AA, SHIFT)
    for outline, shade in ((rv, 255), (points(pose.place(heart, *others.la)), 245),
                           (points(pose.place(heart, *others.ra)), 235)):
        cv2.fillPoly(dark, [outline], shade, cv2.LINE_AA, SHIFT)
    image = np.maximum(around, small(walls))
    return image + cv2.GaussianBlur(small(dark), (0, 0), 1.0) * (np.float32(look.blood) - image)


def front(heart: Heart, look: Look, pose: Pose, others: Chambers) -> np.ndarray:
    """Valves, the septum between the atria, annuli and papillary muscles: grey, -1 where there is nothing."""
    image, level = layer(), pose.length
    crux = (others.septal + others.tricuspid) / 2

    def line(u: np.ndarray, v: np.ndarray, grey: float, width: int) -> None:
        cv2.polylines(image, [points(pose.place(heart, u, v))], False, 255 * grey, width, cv2.LINE_AA, SHIFT)

    for grey, share in ((0.7 * look.atrial_septum, 1.0), (look.atrial_septum, 0.35)):
        line(level + np.array([0, share]) * 0.95 * heart.la_length, np.array([crux, crux - 1]), grey, 5)
    line(np.array([level - 1, level + 3]), np.array([crux, crux]), look.atrial_septum, 8)
    line(np.array([level - 2, level + 2]), np.array([others.lateral + 2, others.lateral + 3]), look.lateral, 8)
    valves = [(others.septal, others.lateral, level, look.valve),
              (others.right, others.tricuspid, level - heart.tricuspid, 0.8 * look.valve)]
    for start, end, at, grey in valves:
        for u, v in leaflets(start, end, at, pose.mitral, look.valve_swing):
            line(u, v, grey, look.valve_wide)
    for s, share, long, wide, grey in look.papillary:
        half = pose.half * share * np.interp(s, [0, 0.3, 1], [0.4, 0.9, 1])
        turn = np.linspace(0, 2 * np.pi, 10)
        outline = pose.place(heart, s * level + long * np.cos(turn), half + wide * np.sin(turn))
        cv2.fillPoly(image, [points(outline)], 255 * grey, cv2.LINE_AA, SHIFT)
    if look.tendon:
        line(np.array([0.35, 0.55]) * level, np.array([-0.9, 0.9]) * pose.half, look.tendon, 1)
    if look.root:  # the aortic root opens the septum's base
        place = pose.place(heart, np.array([level - 1]), np.array([others.septal - pose.wall / 2]))
        cv2.circle(image, points(place)[0], int(look.root * FINE * 2**SHIFT), 0, -1, cv2.LINE_AA, SHIFT)
    found = small(image)
    return np.where(found > 0.02, found, np.float32(-1))


def distance(outline: np.ndarray) -> np.ndarray:
    """float32 [H, W]: signed distance of pixel centres to a closed outline [n, 2], < 0 inside, within 0.2 pixels."""
    filled = layer()
    cv2.fillPoly(filled, [points(outline)], 255, cv2.LINE_8, SHIFT)  # the pixels that the line crosses are filled too
    out = cv2.distanceTransform(255 - filled, cv2.DIST_L2, cv2.DIST_MASK_5)
    within = cv2.distanceTransform(filled, cv2.DIST_L2, cv2.DIST_MASK_5)
    return cv2.resize(out - np.maximum(within - 1, 0), (SIZE, SIZE), interpolation=cv2.INTER_AREA) / FINE


def layer() -> np.ndarray:
    return np.zeros((FINE * SIZE, FINE * SIZE), np.uint8)


def small(image: np.ndarray) -> np.ndarray:
    """A layer on the picture's pixels, 0..1."""
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def points(xy: np.ndarray) -> np.ndarray:
    """Positions in pixels (centres at whole numbers) -> OpenCV's fixed point coordinates of a layer."""
    return np.rint((xy * FINE + (FINE - 1) / 2) * 2**SHIFT).astype(np.int32)


def warp_of(heart: Heart, rest: Pose, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """float32 x and y [H, W]: where the tissue now at a pixel lies in the pose `rest`, less and less so far away."""
    dx, dy = COARSE_X - pose.apex[0], COARSE_Y - pose.apex[1]
    u, v = dx * pose.along[0] + dy * pose.along[1], dx * pose.across[0] + dy * pose.across[1]
    near = np.exp(-np.maximum(np.hypot(u - 0.5 * pose.length, v) - 0.8 * pose.length, 0) / 30)
    grow = (rest.half - pose.half) * np.tanh(v / pose.half)
    u0 = np.where(u < pose.length, u * rest.length / pose.length, u + rest.length - pose.length)
    x0 = rest.apex[0] + u0 * rest.along[0] + (v + grow) * rest.across[0]
    y0 = rest.apex[1] + u0 * rest.along[1] + (v + grow) * rest.across[1]
    moved = [cv2.resize((near * d).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
             for d in (x0 - COARSE_X, y0 - COARSE_Y)]
    return X + moved[0], Y + moved[1]


COARSE_Y, COARSE_X = np.mgrid[:28, :28] * 4.0 + 1.5
"""Centres of 28 x 28 blocks of pixels."""
