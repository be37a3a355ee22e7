"""From signal to scanner image: point spread, coil sensitivity, banding, flow ghosts, Rician noise, integer values."""

from dataclasses import dataclass

import cv2
import numpy as np

from edgeseg.phantoms.texture import smooth_noise


@dataclass(frozen=True)
class Scan:
    """One patient's acquisition; signals as shares of left ventricular blood, lengths in mm unless said otherwise."""

    gain: float  # stored value of left ventricular blood
    blur: float  # deviation of the point spread, pixels
    noise: float
    coil: tuple[float, float, float]  # x, y of the surface coil and the distance over which it falls to half
    shading: float  # deviation of the smooth part of the bias field
    band: tuple[float, float, float]  # depth (0: none), mm between bands, direction
    ghost: float
    phase_axis: int  # 0: ghosts along rows, 1: along columns
    gamma: float  # spread of gain between slices
    tone: float = 1.0  # exponent of the stored value


def sample_scan(rng: np.random.Generator, chest: float) -> Scan:
    """A scan whose coil lies at about -x `chest` mm (oblique layout) from the heart."""
    return Scan(
        gain=float(np.clip(190 * np.exp(rng.normal(0, 0.5)), 85, 800)), blur=float(rng.uniform(0.45, 0.85)),
        noise=float(np.clip(0.022 * np.exp(rng.normal(0, 0.5)), 0.008, 0.07)),
        coil=(-chest * float(rng.uniform(1.0, 1.5)), float(rng.normal(0, 40)), float(rng.uniform(110, 260))),
        shading=float(rng.uniform(0.03, 0.12)),
        band=(float(rng.uniform(0.5, 0.9)) * float(rng.random() < 0.35), float(rng.uniform(190, 280)),
              float(rng.uniform(0, np.pi))),
        ghost=float(rng.uniform(0, 0.025)), phase_axis=int(rng.integers(0, 2)), gamma=float(rng.uniform(0.01, 0.06)))


def sensitivity(scan: Scan, x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W], about 1 at the heart (x = y = 0, mm): near the coil brighter; dark bands far from the heart."""
    cx, cy, half = scan.coil
    ratio = (half**2 + cx**2 + cy**2) / (half**2 + (x - cx) ** 2 + (y - cy) ** 2)
    field = np.exp(scan.shading * smooth_noise(rng, (x.shape[0], x.shape[1]), 0.5 * max(x.shape))) * ratio
    depth, apart, turn = scan.band
    if depth:
        along = (np.cos(turn) * x + np.sin(turn) * y) / apart + 0.02 * smooth_noise(rng, (x.shape[0], x.shape[1]), 40)
        field *= 1 - depth * np.exp(-((np.mod(along, 1) - 0.5) ** 2) / 0.0025)
    return field.astype(np.float32)


def acquire(signal: np.ndarray, field: np.ndarray, blood: np.ndarray, scan: Scan, rng: np.random.Generator,
            slice_gain: float) -> np.ndarray:
    """Signed signal [H, W] -> stored values, float32 whole numbers >= 0 [H, W].

    `blood` [H, W] is what pulsates (a ghost of it is thrown along the phase axis). Noise is Rician: the magnitude of
    the signal plus Gaussian noise in both channels.
    """
    seen = cv2.GaussianBlur(signal, (0, 0), scan.blur) * field
    if scan.ghost:
        step, blood = signal.shape[scan.phase_axis] // 3, cv2.GaussianBlur(blood, (0, 0), 3)
        for n in (-1, 1):
            seen += scan.ghost * float(rng.normal(0, 1)) * np.roll(blood, n * step, axis=scan.phase_axis)
    noise = rng.standard_normal((2, *signal.shape), np.float32) * np.float32(scan.noise)
    magnitude = np.hypot(seen + noise[0], noise[1])
    if scan.tone != 1:
        magnitude = magnitude ** np.float32(scan.tone)
    return np.rint(magnitude * np.float32(scan.gain * slice_gain))
