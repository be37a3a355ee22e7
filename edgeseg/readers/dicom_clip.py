"""A multi-frame DICOM file as a clip: what ultrasound machines write. Unlike MR and CT it has no place in the patient,
may be in colour, and knows its pixel size by region of the screen."""

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeseg.errors import EdgesegError, need
from edgeseg.readers.clip import Clip
from edgeseg.readers.dicom_image import Grey, Unusable, optional, short_hash, value
from edgeseg.readers.dicom_pixels import check_decoder, intensities

CENTIMETRE, TWO_DIMENSIONAL = 3, 1
"""PhysicalUnitsXDirection and RegionSpatialFormat of a B-mode region (DICOM PS3.3 C.8.5.5)."""


def open_header(path: Path) -> Any:
    """The data set without its pixels; EdgesegError when it is damaged or pydicom is not installed."""
    pydicom = need("pydicom", "dicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        try:
            return pydicom.dcmread(path, stop_before_pixels=True, force=True)
        except OSError:
            raise
        except Exception:  # whatever damaged bytes make the parser stumble over
            raise EdgesegError(f"{path}: is truncated or damaged: copy it again") from None


def is_clip(path: Path) -> bool:
    """Whether a DICOM file says that it holds more than one frame; False also for one that cannot be read."""
    try:
        return (optional([open_header(path)], "NumberOfFrames") or 1) > 1
    except EdgesegError:
        return False


def pseudonym(path: Path) -> str:
    """8 digits of a hash of the patient's id, or of the study's where there is none."""
    data = open_header(path)
    own = str(value([data], "PatientID") or "").strip() or str(value([data], "StudyInstanceUID") or path.name)
    return short_hash(own.encode(), 8)


def decode_dicom(path: Path) -> Clip:
    """Grey frames 0..255 of a multi-frame file; colour becomes grey (ITU-R BT.601), deeper grey is scaled.

    Raises:
        EdgesegError: not two frames, damaged, or compressed in a way that nothing here can undo.
    """
    data = open_header(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frames, notes = decode_frames(path, data)
            spacing = pixel_size(data)
            vendor = str(value([data], "Manufacturer") or "").strip() or None
            rate = stated_rate(data)
        except Unusable as error:
            raise EdgesegError(f"{path}: {error}") from None
    if len(frames) < 2:
        raise EdgesegError(f"{path}: {len(frames)} frames can be decoded, a clip needs at least 2: export it again")
    stated = optional([data], "NumberOfFrames") or 1
    if len(frames) != stated:
        notes.append(f"the header says {stated:g} frames, {len(frames)} were decoded")
    return Clip(np.stack(frames), rate, tuple(notes), spacing, vendor)


def decode_frames(path: Path, data: Any) -> tuple[list[np.ndarray], list[str]]:
    """Grey frames [H, W], those before the first that is damaged, and notes."""
    from pydicom.pixels import apply_color_lut, iter_pixels

    syntax = data.file_meta.get("TransferSyntaxUID") if "file_meta" in dir(data) else None
    if syntax is None:
        raise Unusable("does not say how its pixels are stored (TransferSyntaxUID): export it again")
    check_decoder(path, syntax)
    colours = str(value([data], "PhotometricInterpretation") or "").strip()
    bits = int(optional([data], "BitsStored") or 8)
    grey = Grey(bits, optional([data], "PixelRepresentation") == 1, colours == "MONOCHROME1", 1.0, 0.0)
    frames: list[np.ndarray] = []
    try:
        for stored in iter_pixels(path, raw=colours.startswith("MONOCHROME")):
            if colours == "PALETTE COLOR":
                table = value([data], "RedPaletteColorLookupTableDescriptor")
                stored = apply_color_lut(stored, data) >> (int(table[2]) - 8 if table is not None else 0)
            if stored.ndim == 3:
                frames.append(cv2.cvtColor(stored.astype(np.uint8), cv2.COLOR_RGB2GRAY))
            else:
                frames.append(intensities(stored, grey) * np.float32(255 / (2**bits - 1)))
    except OSError:
        raise
    except MemoryError:
        raise EdgesegError(f"{path}: does not fit into memory: if it is not that large, it is damaged") from None
    except Exception:  # damaged bytes make decoders fail in every way
        if len(frames) < 2:
            raise Unusable("its pixels are truncated or damaged: copy it again") from None
        return frames, [f"the file is truncated or damaged: the {len(frames)} frames before that are used"]
    return frames, [] if colours.startswith("MONOCHROME") else ["colour, turned to grey"]


def stated_rate(data: Any) -> float:
    """Frames per second: of FrameTime or FrameTimeVector (ms), CineRate or RecommendedDisplayFrameRate; NaN without.

    The stated value is not judged here: a FrameTime of 0 is a rate of infinity.
    """
    time = optional([data], "FrameTime")
    vector = value([data], "FrameTimeVector")
    if time is None and vector is not None and np.size(vector) > 1:
        time = float(np.median(np.asarray(vector, float)[1:]))  # the first entry is 0
    if time is not None:
        return 1000 / time if time else float("inf")
    rate = optional([data], "CineRate") or optional([data], "RecommendedDisplayFrameRate")
    return float("nan") if rate is None else rate


def pixel_size(data: Any) -> tuple[float, float] | None:
    """(row, column) mm of the first B-mode region, else of PixelSpacing, else None."""
    for region in value([data], "SequenceOfUltrasoundRegions") or ():
        units = [optional([region], f"PhysicalUnits{axis}Direction") for axis in "XY"]
        size = [10 * abs(optional([region], f"PhysicalDelta{axis}") or 0) for axis in "YX"]
        if optional([region], "RegionSpatialFormat") == TWO_DIMENSIONAL and units == [CENTIMETRE] * 2 and min(size) > 0:
            return size[0], size[1]
    spacing = value([data], "PixelSpacing")
    if spacing is not None and np.size(spacing) == 2 and min(map(float, spacing)) > 0:
        return float(spacing[0]), float(spacing[1])
    return None
