"""The scanner of the echo phantom: sector, beam, speckle, gain, dropout, shadow, clutter and the stored picture.

Greys become amplitudes on a grid of depth and angle; each is multiplied by complex Gaussian scatterers that move with
the tissue, and blurred with a pulse of constant length and a beam of constant angle, so that speckle widens with depth
as in a phased array. The magnitude is compressed logarithmically and brought to pixels.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from edgeseg.phantoms.echo_domain import Domain
from edgeseg.phantoms.echo_scene import SIZE, X, Y
from edgeseg.phantoms.texture import enlarge, smooth_noise

DEPTHS, ANGLES = 144, 112
"""Samples of the grid along the beam and across it."""
GRAIN = 2
"""Scatterers per pixel and direction."""
MOST = 0.3
"""Gain at most, as a share of white."""


@dataclass(frozen=True, eq=False)
class Scan:
    """What is drawn of one clip's acquisition; pixels, rad, grey as a share of white.

    Attributes:
        apex: x, y of the sector's tip. half: half its angle. near, far: depths between which there is a picture.
        decibel: dynamic range. bright: see Domain. beam: deviation of the point spread in samples of depth, of angle.
        weight: [depths, angles] added to greys: gain over depth, weak places, shadows. clutter: grey of what
        reverberates near the probe, same grid. floor: grey of the receiver's noise, same grid. scatter: two fields.
        fixed: share of the scatterers' amplitude that stays with the tissue. keep: of the rest, from frame to frame.
        persistence: share of the frame before. sharp: edges of the stored picture, < 0 blurred. gamma, jpeg: of it.
        marks: [H, W], 0 without.
    """

    apex: tuple[float, float]
    half: float
    near: float
    far: float
    decibel: float
    bright: float
    beam: tuple[float, float]
    weight: np.ndarray
    clutter: np.ndarray
    floor: np.ndarray
    scatter: np.ndarray
    fixed: float
    keep: float
    persistence: float
    sharp: float
    gamma: float
    jpeg: int
    marks: np.ndarray


def sample_scan(rng: np.random.Generator, domain: Domain) -> Scan:
    """Draw the acquisition of a clip of `domain`."""
    half = np.deg2rad(45 if rng.random() < 0.6 else rng.uniform(36, 47))
    apex = float(rng.normal(66 if rng.random() < 0.7 else 58, 2.5)), float(rng.normal(0.5, 2))
    apex = apex[0], apex[1] + 9 * (rng.random() < 0.15)
    far = float(rng.uniform(105, 114))
    r = np.linspace(0, far, DEPTHS, dtype=np.float32)[:, None]
    a = np.linspace(-half, half, ANGLES, dtype=np.float32)[None, :]
    near_field = np.exp(-r / rng.uniform(6, 16)) * (0.75 + 0.25 * np.sin(r * rng.uniform(0.8, 2.0)))
    clutter = -1.0 + (1.0 + rng.uniform(0.2, 0.9)) * near_field + 0.1 * smooth_noise(rng, (DEPTHS, ANGLES), 12)
    floor = rng.uniform(*domain.noise) - 0.35 + rng.uniform(0.1, 0.4) * (r / far) ** 2 + 0 * a
    return Scan(
        apex=apex, half=float(half), near=float(rng.uniform(1, 5)), far=far,
        decibel=float(rng.uniform(*domain.decibel)), bright=float(rng.uniform(*domain.bright)),
        beam=(float(rng.uniform(*domain.axial_psf)) * DEPTHS / far, float(rng.uniform(*domain.lateral_psf)) * ANGLES
              / (2 * half)),
        weight=weights(rng, domain, r, a).astype(np.float32), clutter=clutter.astype(np.float32),
        floor=floor.astype(np.float32), scatter=rng.standard_normal((2, GRAIN * SIZE, GRAIN * SIZE), np.float32),
        fixed=float(rng.uniform(0.7, 0.95)), keep=float(rng.uniform(0.8, 0.97)),
        persistence=float(rng.uniform(0.1, 0.5)), sharp=float(rng.uniform(*domain.sharp)),
        gamma=float(rng.uniform(0.8, 1.4)), jpeg=int(rng.uniform(*domain.jpeg)),
        marks=marks(rng, apex) if rng.random() < 0.7 else np.zeros((SIZE, SIZE), np.uint8))


def weights(rng: np.random.Generator, domain: Domain, r: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Grey added over the sector: gain over depth, weak places, fading sides and shadows."""
    far, half = float(r[-1, 0]), float(a[0, -1])
    curve = enlarge(rng.normal(0, 0.08, (4, 1)).astype(np.float32), (1, DEPTHS))[0][:, None]
    found = curve + 0.06 * smooth_noise(rng, (DEPTHS, ANGLES), 30)
    for _ in range(int(rng.integers(0, domain.dropout + 1))):
        at, deep = rng.uniform(-half, half), rng.uniform(0.2, 1.0) * far
        hole = np.exp(-((a - at) / rng.uniform(0.08, 0.3)) ** 2 - ((r - deep) / rng.uniform(12, 45)) ** 2)
        found = found - rng.uniform(0.15, 0.7) * hole
    for side in (-1, 1):  # contact is lost at the edges of the probe
        if rng.random() < 0.45:
            edge = np.clip((side * a - half * rng.uniform(0.3, 0.95)) / rng.uniform(0.05, 0.3), 0, 1)
            found = found - rng.uniform(0.2, 1.0) * edge * np.clip(1.6 - r / rng.uniform(50, 140), 0, 1)
    if rng.random() < domain.shadow:
        at, wide = rng.uniform(-half, half), rng.uniform(0.04, 0.14)
        band = 1 / (1 + np.exp((np.abs(a - at) - wide) / 0.03)) / (1 + np.exp((rng.uniform(0, 50) - r) / 4))
        found = found - rng.uniform(0.2, 0.8) * band
    return found


def marks(rng: np.random.Generator, apex: tuple[float, float]) -> np.ndarray:
    """uint8 [H, W]: the probe's mark at the top and a scale beside the sector."""
    image = np.zeros((SIZE, SIZE), np.uint8)
    if rng.random() < 0.8:
        place = int(apex[0] + rng.integers(-2, 5)), int(rng.integers(2, 5))
        cv2.circle(image, place, int(rng.integers(1, 3)), int(rng.integers(90, 220)), -1, cv2.LINE_AA)
    if rng.random() < 0.8:
        x, y, long = int(rng.integers(76, 104)), int(rng.integers(8, 34)), int(rng.integers(8, 18))
        x = max(x, int(apex[0] + y + 8))
        cv2.line(image, (x, y), (x + long, y + long), int(rng.integers(120, 255)), 1)
        for k in range(1, int(rng.integers(1, 6))):
            cv2.circle(image, (x + long + 4 * k, y + long + 5 * k), 0, 255, -1)
    return cv2.GaussianBlur(image, (0, 0), 0.5)


class Scanner:
    """Turns greys into pictures, one frame after another (it remembers the frame before)."""

    def __init__(self, scan: Scan, rng: np.random.Generator) -> None:
        self.scan, self.rng = scan, rng
        r = np.linspace(0, scan.far, DEPTHS, dtype=np.float32)[:, None]
        a = np.linspace(-scan.half, scan.half, ANGLES, dtype=np.float32)[None, :]
        self.at = scan.apex[0] + r * np.sin(a), scan.apex[1] + r * np.cos(a)  # x, y of the grid
        depth = np.hypot(X - scan.apex[0], Y - scan.apex[1])
        angle = np.arctan2(X - scan.apex[0], Y - scan.apex[1])
        self.back = ((angle + scan.half) * ((ANGLES - 1) / (2 * scan.half)), depth * ((DEPTHS - 1) / scan.far))
        self.sector = (np.abs(angle) <= scan.half) & (depth >= scan.near) & (depth <= scan.far)
        self.slope = np.float32(scan.decibel * np.log(10) / 20)  # grey 0..1 -> natural logarithm of an amplitude
        self.floor = np.exp(self.slope * scan.floor)
        self.clutter = np.exp(self.slope * scan.clutter) * self.noise()
        self.fresh = self.noise()
        self.power = np.float32(1.0)
        self.power = np.mean(self.spread(self.noise()) ** 2)
        self.before: np.ndarray | None = None
        self.gain = np.float32(0)

    def noise(self) -> np.ndarray:
        """Complex Gaussian [2, depths, angles] of unit mean square magnitude."""
        return self.rng.standard_normal((2, DEPTHS, ANGLES), np.float32) * np.float32(0.7071)

    def spread(self, field: np.ndarray) -> np.ndarray:
        """Magnitude of a complex field behind the point spread."""
        deep, wide = self.scan.beam
        real, imaginary = (cv2.GaussianBlur(part, (0, 0), sigmaX=wide, sigmaY=deep) for part in field)
        return cv2.magnitude(real, imaginary) / np.sqrt(self.power)

    def __call__(self, grey: np.ndarray, warp: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """Grey [H, W] -> picture float32 [H, W] of whole numbers 0..255; `warp`: where the tissue was at first."""
        scan = self.scan
        grid = cv2.remap(grey, *self.at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) + scan.weight
        self.fresh = np.float32(scan.keep) * self.fresh + np.float32((1 - scan.keep**2) ** 0.5) * self.noise()
        tissue = [cv2.remap(w * GRAIN, *self.at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for w in warp]
        moving = np.stack([cv2.remap(part, tissue[0], tissue[1], cv2.INTER_NEAREST, borderMode=cv2.BORDER_WRAP)
                           for part in scan.scatter]) * np.float32(0.7071 * scan.fixed)
        scatter = moving + np.float32((1 - scan.fixed**2) ** 0.5) * self.fresh
        field = np.exp(self.slope * grid) * scatter + self.clutter + self.floor * self.noise()
        seen = np.log(self.spread(field) + np.float32(1e-6)) / self.slope
        if self.before is None:
            self.gain = self.fitting(cv2.remap(seen, *self.back, cv2.INTER_LINEAR))
        picture = cv2.remap(np.clip(seen + self.gain, 0, 1.1), *self.back, cv2.INTER_LINEAR)
        if self.before is not None:
            picture = picture + np.float32(scan.persistence) * (self.before - picture)
        self.before = picture
        picture = picture + np.float32(scan.sharp) * (picture - cv2.GaussianBlur(picture, (0, 0), 0.8))
        picture = np.where(self.sector, picture, 0)
        picture = 255 * np.clip(picture, 0, 1) ** np.float32(scan.gamma)
        stored = np.maximum(np.rint(picture).astype(np.uint8), scan.marks)
        _, packed = cv2.imencode(".jpg", stored, (cv2.IMWRITE_JPEG_QUALITY, scan.jpeg))
        return np.asarray(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE), np.float32)

    def fitting(self, seen: np.ndarray) -> np.float32:
        """What brings 5 % of the picture's pixels above the brightness asked for, as far as a knob turns."""
        share = 100 * (1 - 0.05 * self.sector.size / self.sector.sum())
        wanted = self.scan.bright ** (1 / self.scan.gamma)
        return np.float32(np.clip(wanted - np.percentile(seen[self.sector], share), -MOST, MOST))
