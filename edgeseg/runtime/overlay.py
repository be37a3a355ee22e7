"""Overlay: frames in grey with their labels in colour, as a PNG to look at."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from edgeseg.files import write_bytes

# Distinct for colour-blind eyes too (Okabe and Ito), RGB; repeated beyond seven structures.
COLOURS = ((86, 180, 233), (240, 228, 66), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (0, 114, 178))
OPACITY = 0.45


def write_overlay(path: Path, frames: np.ndarray, values: Sequence[int], labels: np.ndarray) -> None:
    """Write frames [N, H, W] side by side with labels uint8 [N, H, W] drawn over them; `values` background first."""
    done, encoded = cv2.imencode(".png", overlay(frames, values, labels)[..., ::-1])  # OpenCV takes BGR
    assert done
    write_bytes(path, encoded.tobytes())


def overlay(frames: np.ndarray, values: Sequence[int], labels: np.ndarray) -> np.ndarray:
    """RGB uint8 [rows * H, columns * W, 3]: the frames in reading order, grey between their 1st and 99th percentile."""
    low, high = np.percentile(frames, (1, 99))
    grey = np.clip((frames - low) / max(high - low, 1e-8), 0, 1) * 255
    picture = np.repeat(grey[..., None], 3, axis=-1)
    for k, value in enumerate(values[1:]):
        inside = labels == value
        picture[inside] = (1 - OPACITY) * picture[inside] + OPACITY * np.array(COLOURS[k % len(COLOURS)])
    columns = math.ceil(math.sqrt(len(frames)))
    rows = math.ceil(len(frames) / columns)
    sheet = np.zeros((rows * columns, *picture.shape[1:]), np.uint8)
    sheet[: len(frames)] = np.rint(picture).astype(np.uint8)
    height, width = frames.shape[1:]
    return sheet.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
