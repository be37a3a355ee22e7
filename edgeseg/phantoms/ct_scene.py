"""A canvas of Hounsfield units that keeps the label of what is painted on it."""

from dataclasses import dataclass

import cv2
import numpy as np

from edgeseg.phantoms.texture import Canvas, coverage, ellipse, smooth_noise

Value = np.ndarray | float


@dataclass(frozen=True)
class Texture:
    """Small structure of one slice, float32 [H, W]: two smooth fields of unit deviation (grains of 4 and 14 mm), and
    cover (0..1) of vessels in the lung, in the fat within the abdomen and in the liver."""

    fine: np.ndarray
    rough: np.ndarray
    lung: np.ndarray
    mesentery: np.ndarray
    liver: np.ndarray


def draw_texture(rng: np.random.Generator, shape: tuple[int, int], pixel: float) -> Texture:
    return Texture(smooth_noise(rng, shape, 4 / pixel), smooth_noise(rng, shape, 14 / pixel),
                   vessels(rng, shape, pixel, 25, 1.2), vessels(rng, shape, pixel, float(rng.uniform(3, 12)), 1.7),
                   vessels(rng, shape, pixel, 4, 1.8))


def vessels(rng: np.random.Generator, shape: tuple[int, int], pixel: float, count: float,
            radius: float) -> np.ndarray:
    """Cover of vessels cut across, dots and short branches of about `radius` mm, `count` a square decimetre."""
    image = np.zeros(shape, np.uint8)
    n = int(rng.poisson(count * shape[0] * shape[1] * pixel**2 / 1e4))
    start, turn = rng.uniform(0, 1, (n, 2)) * (shape[1], shape[0]), rng.uniform(0, 2 * np.pi, n)
    length = rng.exponential(1.5 * radius, n) / pixel
    end = start + length[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    wide = np.maximum(1, np.rint(2 * radius * rng.uniform(0.4, 1.3, n) / pixel)).astype(int)
    places = np.rint(16 * np.concatenate([start, end], axis=1)).astype(int).tolist()  # in sixteenths of a pixel
    for (x0, y0, x1, y1), value, w in zip(places, rng.uniform(90, 255, n).tolist(), wide.tolist(), strict=True):
        cv2.line(image, (x0, y0), (x1, y1), value, w, cv2.LINE_AA, shift=4)
    return image.astype(np.float32) / 255


class Scene(Canvas):
    """HU float32 [H, W] (air at first) and labels uint8 [H, W] of one level of the body, painted from back to front."""

    def __init__(self, x: np.ndarray, y: np.ndarray, pixel: float, texture: Texture) -> None:
        super().__init__(x, y, pixel)
        self.image += np.float32(-1000)
        self.labels, self.texture = np.zeros(x.shape, np.uint8), texture

    def put(self, distance: np.ndarray, value: Value, label: int = 0) -> None:
        """Paint what lies inside (`distance` in mm < 0): its HU, and its label over whatever was there."""
        self.paint(coverage(distance, self.pixel), value)
        self.labels[distance < 0] = label

    def near(self, centre: tuple[float, float], reach: float) -> tuple[slice, slice]:
        """The box of pixels that may lie within `reach` mm of `centre` (maybe empty)."""
        box = []
        for (low, high), at in ((self.rows, centre[1]), (self.cols, centre[0])):
            found = np.flatnonzero((low < at + reach) & (high > at - reach))
            box.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0))
        return box[0], box[1]

    def spot(self, centre: tuple[float, float], semi: tuple[float, float], value: Value, angle: float = 0.0,
             label: int = 0, within: np.ndarray | None = None) -> None:
        """An ellipse (mm), where `within` (distance, mm) is negative; `value` is a number or an image [H, W]."""
        if min(semi) <= 0.3:
            return
        box = self.near(centre, max(semi) + 2)
        distance = ellipse(self.x[box], self.y[box], centre, semi, angle)
        if within is not None:
            distance = np.maximum(distance, within[box])
        cover = coverage(distance, self.pixel)
        painted = value[box] if isinstance(value, np.ndarray) else np.float32(value)
        self.image[box] += cover * (painted - self.image[box])
        self.labels[box][distance < 0] = label
