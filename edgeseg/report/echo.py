"""Echo in pictures: a clip with the contours of student and teacher (MP4), and area curves with their events (PNG)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.files import new_file
from edgeseg.measure.phases import Phases
from edgeseg.report.figures import new_figure, save

GREEN, RED = (0, 255, 0), (0, 0, 255)  # student, teacher; BGR, as OpenCV takes colours
SCALE = 4
"""Pixels of the video for one of the clip: 112 becomes 448, and both sides are even, as the codec wants them."""


def write_overlay_video(path: Path, frames: np.ndarray, student: np.ndarray, teacher: np.ndarray | None,
                        frame_time: float) -> Path:
    """Write a clip as MP4 with contours: the teacher's in red, the student's in green over it.

    Args:
        frames: [T, H, W], grey 0..255. student, teacher: bool [T, H, W]; a frame with an empty mask has no contour.
        frame_time: seconds between frames.

    Raises:
        EdgesegError: masks of another shape; a frame rate that no video has; or this OpenCV cannot encode MP4. What was
            at `path` stays.
    """
    for name, mask in (("student", student), ("teacher", teacher)):
        if mask is not None and mask.shape != frames.shape:
            raise EdgesegError(f"{path}: masks of the {name} {mask.shape} do not fit the clip {frames.shape}")
    if not (np.isfinite(frame_time) and frame_time > 0):
        raise EdgesegError(f"{path}: {frame_time} s between frames is no frame rate")
    height, width = frames.shape[1:]
    with new_file(path) as part:
        video = cv2.VideoWriter(str(part), cv2.VideoWriter.fourcc(*"mp4v"), 1 / frame_time,
                                (width * SCALE, height * SCALE))
        if not video.isOpened():
            raise EdgesegError(f"{path}: cannot be written as MP4: name a file that ends in .mp4, in a folder that can "
                               "be written to")
        for t, frame in enumerate(frames):
            video.write(contoured(frame, student[t], None if teacher is None else teacher[t]))
        video.release()
    return path


def contoured(frame: np.ndarray, student: np.ndarray, teacher: np.ndarray | None = None) -> np.ndarray:
    """One picture, BGR uint8 [SCALE * H, SCALE * W, 3]; NaN pixels are black."""
    grey = np.clip(np.nan_to_num(frame), 0, 255).astype(np.uint8)
    picture = cv2.cvtColor(cv2.resize(grey, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_LINEAR),
                           cv2.COLOR_GRAY2BGR)
    for mask, colour in ((teacher, RED), (student, GREEN)):
        if mask is None:
            continue
        large = cv2.resize(mask.astype(np.uint8), None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(large, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 1)
    return picture


@dataclass(frozen=True)
class Curve:
    """One line of the plot: areas [T] in `unit`s (NaN leaves a gap), and its events."""

    name: str
    areas: np.ndarray
    phases: Phases
    colour: str | None = None


def area_curves(path: Path, curves: Sequence[Curve], frame_time: float, truth: Phases | None = None,
                unit: str = "pixels", title: str = "") -> Path:
    """Area over time as PNG, ED marked by triangles up and ES by triangles down; `truth`: lines, dashed for ED."""
    figure, axes = new_figure(10, 4)
    for curve in curves:
        seconds = frame_time * np.arange(len(curve.areas))
        line, = axes.plot(seconds, curve.areas, label=curve.name, color=curve.colour, linewidth=1.2)
        mark(axes, curve, seconds, line.get_color())
    for events, style, name in (((truth.ed, "--", "true ED"), (truth.es, ":", "true ES")) if truth else ()):
        for index, event in enumerate(events):
            axes.axvline(event * frame_time, color="grey", linestyle=style, linewidth=0.8,
                         label=name if index == 0 else None)
    axes.set(xlabel="s", ylabel=f"area of the left ventricle, {unit}", title=title)
    axes.grid(alpha=0.3)
    if curves or truth:
        axes.legend(fontsize=8, loc="upper right")
    return save(figure, path)


def mark(axes: Any, curve: Curve, seconds: np.ndarray, colour: Any) -> None:
    for name, events, marker in (("ED", curve.phases.ed, "^"), ("ES", curve.phases.es, "v")):
        if events:
            at = list(events)
            axes.plot(seconds[at], np.asarray(curve.areas, float)[at], marker, color=colour, markersize=8,
                      label=f"{curve.name} {name}")
