"""From a body to a CT image: point spread, noise with its texture, streaks, whole numbers of Hounsfield units."""

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Scan:
    """One acquisition. blur: deviation of the point spread, pixels. noise: HU in the body's middle. grain: deviation of
    its grains along columns and rows, pixels. bound: share that a slice has in common with the one below. hardening:
    HU that are missing between dense bones. streaks: HU."""

    blur: float
    noise: float
    grain: tuple[float, float]
    bound: float
    hardening: float
    streaks: float


def sample_scan(rng: np.random.Generator) -> Scan:
    """From a high dose and a soft kernel to a low dose and a sharp one."""
    return Scan(
        blur=float(rng.uniform(0.3, 0.85)), noise=float(np.clip(13 * np.exp(rng.normal(0, 0.45)), 4, 40)),
        grain=(float(rng.uniform(0.3, 0.9)), float(rng.uniform(0.3, 0.9))), bound=float(rng.uniform(0, 0.7)),
        hardening=float(rng.uniform(0, 9)), streaks=float(np.clip(rng.normal(0, 4), 0, 12)))


class Scanner:
    """Acquires the slices of a volume in turn; noise of one goes over into the next."""

    def __init__(self, scan: Scan, shape: tuple[int, int], pixel: float) -> None:
        self.scan, self.shape, self.pixel = scan, shape, pixel
        self.last: np.ndarray | None = None

    def __call__(self, image: np.ndarray, at: tuple[np.ndarray, np.ndarray], rng: np.random.Generator,
                 spine: tuple[float, float]) -> np.ndarray:
        """HU [H, W] of a perfect image, positions (x, y, mm) of its pixels, and of the spine -> HU as stored."""
        scan, (x, y) = self.scan, at
        seen: np.ndarray = cv2.GaussianBlur(image, (0, 0), scan.blur)
        near = np.exp(-(((y - np.float32(spine[1])) / 18) ** 2) - (x / 110) ** 2)
        seen -= np.float32(scan.hardening) * near
        for _ in range(6):  # rays that met a rib or the table edge on
            turn, offset = rng.uniform(0, np.pi), rng.uniform(-120, 120)
            away = np.float32(np.cos(turn)) * x + np.float32(np.sin(turn)) * y - np.float32(offset)
            seen += np.float32(rng.normal(0, scan.streaks)) * np.exp(-((away / np.float32(rng.uniform(2, 6))) ** 2))
        strength = 0.65 + 0.5 * np.exp(-(x * x + y * y) / np.float32(110**2))  # rays through the middle are weakest
        noisy = seen + np.float32(scan.noise) * strength * self.noise(rng)
        return np.clip(np.rint(noisy), -1024, 3071)

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """float32 [H, W] of unit deviation without slow waves, as filtered back projection leaves it."""
        white = rng.standard_normal(self.shape, np.float32)
        grain: np.ndarray = cv2.GaussianBlur(white, (0, 0), self.scan.grain[0], sigmaY=self.scan.grain[1])
        grain -= np.float32(0.7) * cv2.GaussianBlur(grain, (0, 0), 3)
        grain /= grain.std()
        bound = np.float32(self.scan.bound)
        self.last = grain if self.last is None else bound * self.last + np.sqrt(1 - bound * bound) * grain
        return self.last
