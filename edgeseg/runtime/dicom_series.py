"""DICOM series as what becomes segmentations: stacks of slices at one or several phases, and ultrasound loops.

Frames are segmented one by one, with `Segmenter.segment` and so with their own intensity statistics, in the pixel type
of a frame graph wherever one holds them: the mask of a frame is then that of every other front end (what it costs
beside the statistics of a whole volume is in the bundle's manifest, `measured.streaming`). A recurrent bundle segments
a loop as the clip that it is.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError, need
from edgeseg.readers import dicom
from edgeseg.readers.clip import spacing_of
from edgeseg.readers.dicom_clip import decode_dicom
from edgeseg.readers.dicom_image import Instance, Vector, optional, short_hash, value
from edgeseg.runtime.segmenter import Segmenter

LOOP_TAGS = ["SOPInstanceUID", "SeriesNumber", "NumberOfFrames", "PerFrameFunctionalGroupsSequence"]


@dataclass(frozen=True)
class Plane:
    """One image of the source: a file, the frame in it (from 0), mm of rows and columns, and where it lies: centre of
    the first pixel, unit vectors along a row and down a column (DICOM axes, mm), mm of thickness; no position: a loop,
    which lies nowhere. `instance`: where it was read already."""

    path: Path
    frame: int
    spacing: tuple[float, float]
    position: Vector | None = None
    row: Vector = (1.0, 0.0, 0.0)
    column: Vector = (0.0, 1.0, 0.0)
    thickness: float | None = None
    instance: Instance | None = None


@dataclass(frozen=True, eq=False)
class Moment:
    """What becomes one segmentation: raw frames [N, H, W] in mm (row, column) and the plane of each.

    `gap`: mm from slice to slice of a stack. `frame_time`: seconds between the frames of a loop. None where unknown.
    `spacing_known`: False when the pixel size is assumed.
    """

    frames: np.ndarray
    spacing: tuple[float, float]
    planes: tuple[Plane, ...]
    gap: float | None = None
    frame_time: float | None = None
    spacing_known: bool = True


@dataclass(frozen=True, eq=False)
class Series:
    """A stack (one moment a phase) or a loop (one moment, its frames in time).

    Attributes:
        name: of numbers and hashes, never of what a file says of a person.
        read: moment (from 0) -> Moment; EdgesegError when its files cannot be read.
        slots: slices of a stack's grid, 0 for a loop.
    """

    name: str
    files: tuple[Path, ...]
    moments: int
    read: Callable[[int], Moment]
    slots: int = 0

    @property
    def is_loop(self) -> bool:
        return self.slots == 0

    def moment_name(self, t: int) -> str:
        digits = max(2, len(str(self.moments)))
        return f"{self.name}_phase{t + 1:0{digits}d}" if self.moments > 1 else self.name


def find_series(paths: Sequence[Path], loops_too: bool = True) -> tuple[list[Series], list[str]]:
    """Every stack and loop in files and folders, and notes: one line each on what was left out or is odd.

    Args:
        loops_too: False when it is known that there are none, which saves reading every header twice.

    Raises:
        EdgesegError: nothing that is a DICOM image; pydicom is not installed.
    """
    files, others = dicom.find_files(paths)
    names = {file: loop_name(file) if loops_too else "" for file in files}
    loops = {name: file for file, name in reversed(names.items()) if name}  # of copies the first
    rest = [file for file, name in names.items() if not name]
    stacks, notes = dicom.find_stacks(rest or paths) if rest or not loops else ([], [])
    if others and rest:
        notes.insert(0, f"left out: files that are not DICOM ({others})")
    return [*map(of_stack, stacks), *(Series(name, (file,), 1, partial(read_loop, file))
                                      for name, file in sorted(loops.items()))], notes


def loop_name(path: Path) -> str:
    """seriesNNN_ and a hash of the instance's UID of a file that holds frames without a place; "" of any other."""
    pydicom = need("pydicom", "dicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        try:
            data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=LOOP_TAGS)
            if (optional([data], "NumberOfFrames") or 1) <= 1 or "PerFrameFunctionalGroupsSequence" in data:
                return ""
            instance = str(value([data], "SOPInstanceUID") or path.name)
            return f"series{int(optional([data], 'SeriesNumber') or 0):03d}_{short_hash(instance.encode(), 6)}"
        except OSError:
            raise
        except Exception:  # whatever damaged bytes make the parser stumble over: find_stacks says what is wrong
            return ""


def of_stack(stack: dicom.Stack) -> Series:
    return Series(stack.name, stack.files, max(1, len(stack.phases)), partial(read_stack, stack), max(1, stack.slots))


def read_stack(stack: dicom.Stack, t: int) -> Moment:
    case = stack.read(t)
    planes = tuple(Plane(s.path, s.frame, s.spacing, s.position, s.row, s.column, s.gap, s.instance)
                   for _, s in stack.phases[t])
    return Moment(case.frames[:, 0], case.spacing, planes, gap=case.slice_spacing)


def read_loop(path: Path, _: int = 0) -> Moment:
    clip = decode_dicom(path)
    spacing = clip.spacing or spacing_of(clip.frames)
    planes = tuple(Plane(path, k, spacing) for k in range(len(clip.frames)))
    time = 1 / clip.rate if np.isfinite(clip.rate) and clip.rate > 0 else None
    return Moment(clip.frames, spacing, planes, frame_time=time, spacing_known=clip.spacing is not None)


def segment_moment(segmenter: Segmenter, moment: Moment) -> tuple[np.ndarray, list[str]]:
    """Label values uint8 [N, H, W], and notes: what was wrong with frames that are left without labels.

    Raises:
        EdgesegError: no frame could be segmented.
    """
    frames = in_graph_type(segmenter, moment.frames)
    if segmenter.bundle.manifest.stream and moment.planes[0].position is None:
        found = [segmenter.segment_volume(frames, moment.spacing)]
        labels = found[0].labels
    else:
        found = [segmenter.segment(frame, moment.spacing) for frame in frames]
        labels = np.stack([f.labels for f in found])
    wrong = [f.status for f in found if not f.ok]
    if len(wrong) == len(found):
        raise EdgesegError(f"{moment.planes[0].path}: {wrong[0]}")
    notes = [f"{len(wrong)} of {len(found)} frames are left without labels: {wrong[0]}"] if wrong else []
    return labels, notes


def in_graph_type(segmenter: Segmenter, frames: np.ndarray) -> np.ndarray:
    """The same numbers in the pixel type of a frame graph of the bundle, if one holds them exactly."""
    for kind in dict.fromkeys(p.dtype for p in segmenter.bundle.manifest.frames if p.dtype != "float32"):
        limits = np.iinfo(kind)
        if limits.min <= frames.min() and frames.max() <= limits.max:
            whole = frames.astype(kind)
            if np.array_equal(whole, frames):
                return whole
    return frames
