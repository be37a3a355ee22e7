"""From the native grid to the student's fixed grid and exactly back.

Resampling is linear with half-pixel centres over the full image extent (`ONNX Resize`, `torch.interpolate` with
align_corners=False and `cv2.resize` all agree on it): sample i of n_out lies at (i + 0.5) * n_in / n_out - 0.5, clamped
at the borders; no anti-aliasing, as in nnU-Net. A spline could not be put into a graph.

native [H, W] --to_canvas--> canvas [h, w] at the student's spacing --tiles--> windows of the fixed grid
"""

import math

import cv2
import numpy as np

Shape = tuple[int, int]


def canvas_shape(native: Shape, spacing: tuple[float, float], grid_spacing: tuple[float, float]) -> Shape:
    """Size in pixels of a native image of `spacing` mm once resampled to `grid_spacing` mm (at least one pixel)."""
    h, w = (max(1, round(n * s / g)) for n, s, g in zip(native, spacing, grid_spacing, strict=True))
    return h, w


def resize_linear(images: np.ndarray, shape: Shape) -> np.ndarray:
    """float32 [..., H, W] -> float32 [..., h, w], linear, half-pixel centres."""
    if images.shape[-2:] == tuple(shape):
        return np.ascontiguousarray(images, np.float32)
    flat = np.ascontiguousarray(images, np.float32).reshape(-1, *images.shape[-2:])
    out = np.empty((len(flat), *shape), np.float32)
    for source, target in zip(flat, out, strict=True):
        cv2.resize(source, (shape[1], shape[0]), dst=target, interpolation=cv2.INTER_LINEAR)
    return out.reshape(*images.shape[:-2], *shape)


def linear_weights(n_in: int, n_out: int) -> np.ndarray:
    """float64 [n_out, n_in]: `resize_linear` along one axis as a matrix, at most two weights a row, their sum 1."""
    at = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
    left = np.minimum(at.astype(int), max(0, n_in - 2))
    weights = np.zeros((n_out, n_in))
    weights[np.arange(n_out), left] = 1 - (at - left)
    if n_in > 1:
        weights[np.arange(n_out), left + 1] = at - left
    return weights


def nearest_index(n_in: int, n_out: int) -> np.ndarray:
    """int64 [n_out]: the one of n_in pixels that holds each new pixel's centre."""
    return np.minimum(((np.arange(n_out) + 0.5) * n_in / n_out).astype(int), n_in - 1)


def resize_labels(labels: np.ndarray, shape: Shape) -> np.ndarray:
    """uint8 [..., H, W] -> [..., h, w]: the label of the native pixel that holds each new pixel's centre."""
    rows, cols = (nearest_index(m, n) for n, m in zip(shape, labels.shape[-2:], strict=True))
    return labels[..., rows[:, None], cols[None, :]]


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of the evenly spread tiles that cover `length` pixels, neighbours sharing >= `overlap` of a tile.

    One tile centred on the image (start <= 0: the image is padded) when it fits.
    """
    if length <= tile:
        return [-((tile - length) // 2)]
    count = math.ceil((length - tile) / (tile * (1 - overlap))) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def centre_start(shape: Shape, size: Shape) -> Shape:
    """First pixel of the window of `size` around the centre of an image of `shape` (below 0: the image is padded)."""
    y, x = ((n - g) // 2 if n > g else -((g - n) // 2) for n, g in zip(shape, size, strict=True))
    return y, x


def take_window(images: np.ndarray, start: Shape, size: Shape, fill: float = 0) -> np.ndarray:
    """[..., H, W] -> [..., *size] from `start` (may be negative); what lies outside the image is `fill`."""
    out = np.full((*images.shape[:-2], *size), fill, images.dtype)
    (y0, x0), (h, w) = start, images.shape[-2:]
    top, left = max(0, -y0), max(0, -x0)
    bottom, right = min(size[0], h - y0), min(size[1], w - x0)
    if bottom > top and right > left:
        out[..., top:bottom, left:right] = images[..., y0 + top : y0 + bottom, x0 + left : x0 + right]
    return out


def add_window(total: np.ndarray, window: np.ndarray, start: Shape) -> None:
    """Add `window` [..., h, w] onto `total` [..., H, W] at `start`; what falls outside is dropped."""
    (y0, x0), (h, w), (H, W) = start, window.shape[-2:], total.shape[-2:]
    top, left, bottom, right = max(0, -y0), max(0, -x0), min(h, H - y0), min(w, W - x0)
    total[..., y0 + top : y0 + bottom, x0 + left : x0 + right] += window[..., top:bottom, left:right]


def blend_weight(size: Shape) -> np.ndarray:
    """float32 [*size]: a pyramid, highest in the middle, positive everywhere, for averaging overlapping tiles."""
    ramps = [np.minimum(np.arange(n) + 1, np.arange(n)[::-1] + 1) / ((n + 1) // 2) for n in size]
    return np.minimum.outer(*ramps).astype(np.float32)


def outside_window(labels: np.ndarray, spacing: tuple[float, float], extent_mm: tuple[float, float]) -> tuple[int, int]:
    """Foreground pixels of `labels` [..., H, W] that a centred window of `extent_mm` leaves out, and all of them."""
    inside = [np.abs((np.arange(n) + 0.5 - n / 2) * s) <= e / 2
              for n, s, e in zip(labels.shape[-2:], spacing, extent_mm, strict=True)]
    foreground = labels > 0
    total = int(foreground.sum())
    kept = int((foreground & inside[0][:, None] & inside[1][None, :]).sum())
    return total - kept, total
