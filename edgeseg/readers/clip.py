"""A video file decoded: grey frames, the frame rate it states, and what was odd about it.

Frames are counted by decoding: headers of truncated, re-cut and re-encoded files are wrong. Decoding stops at the first
frame that fails or has another size, so that frame k here is frame k of the file.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from edgeseg.errors import EdgesegError

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # quiet: what is wrong with a file is said here, in one line

MAX_FPS = 1000.0
"""Frames per second above which a frame rate cannot be one of an echocardiogram, but is a wrong tag."""
DEFAULT_FPS = 50.0
"""Assumed, and noted, where nothing states a usable rate: that of 79 % of EchoNet-Dynamic's clips."""
SIDE = 112.0
"""mm that a frame without a pixel size is taken to be high and wide: EchoNet-Dynamic's clips, whose pixel size nobody
knows, have 112 x 112 pixels and count as 1 mm, and a larger frame is the same view in more pixels."""
COLOURED = 32
"""Difference of colour channels from which a pixel is coloured: more than the compression of grey makes."""


@dataclass(frozen=True)
class Clip:
    """What a file gave: `frames` [T, H, W], grey 0..255, T >= 2.

    `rate`: frames per second as the file states it, NaN where it does not; it may be nonsense (see `frame_rate`).
    `spacing`: (row, column) in mm where the file knows it. `notes`: one line each on what is odd.
    """

    frames: np.ndarray
    rate: float
    notes: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None
    vendor: str | None = None


def spacing_of(frames: np.ndarray) -> tuple[float, float]:
    """(row, column) mm of frames [T, H, W] whose pixel size nobody knows: of the whole frame, see SIDE."""
    height, width = frames.shape[1:]
    return SIDE / height, SIDE / width


def decode(path: Path) -> Clip:
    """Read an AVI, MP4 or other video file that OpenCV's FFmpeg decodes; colour becomes grey (ITU-R BT.601).

    Of a truncated file the frames before the cut are used, if they are at least two.

    Raises:
        EdgesegError: no video, damaged from the start, or fewer than two frames.
    """
    rate, cut = avi_header(path)
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    video = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise EdgesegError(f"{path}: cannot be decoded (truncated, damaged or no video): copy or export it again")
        stated = video.get(cv2.CAP_PROP_FRAME_COUNT)
        rate = video.get(cv2.CAP_PROP_FPS) if rate is None else rate
        frames: list[np.ndarray] = []
        coloured = False
        while True:
            more, frame = video.read()
            if not more or (frames and frame.shape[:2] != frames[0].shape):
                break
            coloured = coloured or (not frames and is_coloured(frame))
            frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if frame.ndim == 3 else frame)
    except cv2.error:
        raise EdgesegError(f"{path}: cannot be decoded (damaged): copy or export it again") from None
    finally:
        video.release()
        cv2.utils.logging.setLogLevel(level)
    notes = ["colour, turned to grey"] if coloured else []
    if cut:
        frames = frames[:-1]  # FFmpeg fills what is missing of the last one
        notes.append(f"the file is truncated: the {len(frames)} whole frames before the cut are used")
    if len(frames) < 2:
        raise EdgesegError(f"{path}: {len(frames)} frames can be decoded, a clip needs at least 2: copy or export it "
                           "again")
    if len(frames) != stated:
        notes.append(f"the header says {stated:g} frames, {len(frames)} were decoded")
    return Clip(np.stack(frames), float(rate), tuple(notes))


def is_coloured(frame: np.ndarray) -> bool:
    """Whether more than a thousandth of a frame [H, W, 3] is coloured."""
    return frame.ndim == 3 and float((np.ptp(frame, axis=2) > COLOURED).mean()) > 1e-3


def avi_header(path: Path) -> tuple[float | None, bool]:
    """(frame rate of the header, whether the file ends before its stated length); (None, False) for another format.

    FFmpeg replaces a rate of 0 by 25 without a word, therefore the tag is read here.

    Raises:
        EdgesegError: no such file.
    """
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except FileNotFoundError:
        raise EdgesegError(f"{path}: no such file") from None
    if head[:4] != b"RIFF" or head[8:12] != b"AVI ":
        return None, False
    length, at = int.from_bytes(head[4:8], "little"), head.find(b"vids")
    scale, rate = (int.from_bytes(head[at + k : at + k + 4], "little") for k in (20, 24)) if at >= 0 else (0, 0)
    return (rate / scale if scale else float("nan")), length == 0 or 8 + length > path.stat().st_size


def frame_rate(named: dict[str, float]) -> tuple[float, bool, list[str]]:
    """The first usable of the rates that several sources state, whether there was one (else DEFAULT_FPS), and notes.

    `named`: source -> frames per second, NaN for a source that states none; the most trusted first.
    """
    usable = {k: v for k, v in named.items() if 0 < v <= MAX_FPS}
    notes = [f"{k} says {v:g} frames per second, which cannot be" for k, v in named.items()
             if k not in usable and not np.isnan(v)]
    if not usable:
        return DEFAULT_FPS, False, [*notes, f"no usable frame rate: {DEFAULT_FPS:g} frames per second assumed"]
    (best, rate), *others = usable.items()
    notes += [f"{k} says {v:g} frames per second, {best} {rate:g}, which is used" for k, v in others
              if abs(v - rate) > 0.01 * rate]
    return rate, True, notes
