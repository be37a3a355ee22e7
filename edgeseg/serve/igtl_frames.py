"""From an OpenIGTLink image to the frame that a bundle takes."""

import cv2
import numpy as np

from edgeseg.serve.igtl_wire import FAILED, UNKNOWN, Image, Refused


def frame_of(image: Image, channels: int) -> tuple[np.ndarray, tuple[float, float]]:
    """Frame [H, W], or [C, H, W] of `channels` > 1, and its spacing (row, column) in mm.

    A plane may lie along any two axes of the image: pyigtl sends an array [H, W] as one of a single column. Where one
    channel is wanted colour becomes grey (ITU-R BT.601), as it does in clips that edgeseg reads.

    Raises:
        Refused: a volume, or another number of components.
    """
    pixels = image.pixels
    if (flat := next((axis for axis, n in enumerate(pixels.shape[:3]) if n == 1), None)) is None:
        raise Refused(UNKNOWN, f"a volume of {pixels.shape[0]} planes: send one plane an image")
    with np.errstate(all="ignore"):  # a spacing that is no number is refused with the frame
        # an axis of an array [k, j, i] is a column of the matrix, last to first
        rows, columns = (float(np.linalg.norm(image.matrix[:3, 2 - a])) for a in range(3) if a != flat)
        frame = np.take(pixels, 0, axis=flat).astype(pixels.dtype.newbyteorder("="), copy=False)
        if frame.dtype == np.float64:
            frame = frame.astype(np.float32)  # here, so that what float32 does not hold is found
    components = 1 if frame.ndim == 2 else frame.shape[-1]
    if components == channels:
        frame = np.moveaxis(frame, -1, 0) if components > 1 else frame
    elif channels == 1 and components in (3, 4):
        frame = grey(frame)
    else:
        raise Refused(FAILED, f"{components} components a pixel, the bundle takes {channels}")
    return np.ascontiguousarray(frame), (rows, columns)


def grey(colour: np.ndarray) -> np.ndarray:
    """[H, W, 3 or 4] -> [H, W] of the same type, or float32 for types that OpenCV does not convert."""
    if colour.dtype not in (np.uint8, np.uint16, np.float32):
        colour = colour.astype(np.float32)
    return cv2.cvtColor(colour, cv2.COLOR_RGB2GRAY if colour.shape[-1] == 3 else cv2.COLOR_RGBA2GRAY)
