"""What a received DICOM object is, and whether it can be read: asked before its sender hears of success.

Sizes are compared with what is there before anything is decoded, so that a header cannot ask for memory that no pixels
stand behind. Nothing here repeats a value of a file.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeseg.errors import EdgesegError, need
from edgeseg.readers.dicom_image import Unusable, optional, read_file, short_hash, value
from edgeseg.readers.dicom_pixels import check_decoder, read_pixels

STORAGES = ("MRImageStorage", "EnhancedMRImageStorage", "CTImageStorage", "EnhancedCTImageStorage",
            "UltrasoundMultiFrameImageStorage")
"""Keywords of the classes that are received."""
SYNTAXES = ("ExplicitVRLittleEndian", "ImplicitVRLittleEndian", "ExplicitVRBigEndian", "JPEGBaseline8Bit",
            "JPEGExtended12Bit", "JPEGLossless", "JPEGLosslessSV1", "JPEGLSLossless", "JPEGLSNearLossless",
            "JPEG2000Lossless", "JPEG2000", "HTJ2KLossless", "HTJ2K", "RLELossless")
"""Keywords of the transfer syntaxes that are received, as far as pydicom has a decoder here. Not deflated ones: what
they inflate to has no limit."""
MAX_FRAME = 2**24
"""Pixels of a frame, 4096 x 4096."""
MAX_FRAMES = 10_000
IDENTITY = ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"]
TAGS = [*IDENTITY, "PatientID", "SamplesPerPixel", "Rows", "Columns", "NumberOfFrames", "BitsAllocated",
        "PerFrameFunctionalGroupsSequence", "NumberOfSeriesRelatedInstances", "PixelData"]


@dataclass(frozen=True)
class Received:
    """An object that can be read.

    `series`, `instance`: hashes of its UIDs; the series' is that of the patient's id and the study too, so that objects
    of two patients are never one series. `complete`: it is a whole series by itself (a loop). `expected`: how many
    objects its series has, 0 where the object does not say.
    """

    series: str
    instance: str
    complete: bool
    expected: int


def transfer_syntaxes() -> list[Any]:
    """UIDs of what can be decoded here."""
    from pydicom import uid
    from pydicom.pixels import get_decoder

    found = []
    for name in SYNTAXES:
        syntax = getattr(uid, name)
        if get_decoder(syntax).is_available:
            found.append(syntax)
    return found


def examine(path: Path, announced: str) -> Received:
    """What is in a file whose sender announced the instance UID `announced`.

    Raises:
        Unusable: why it cannot be segmented, in a line without a value of the file.
    """
    pydicom = need("pydicom", "dicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        try:
            data = pydicom.dcmread(path, specific_tags=TAGS)
            instance, study, series = (str(value([data], name) or "") for name in IDENTITY)
            person = data.get_item("PatientID").value if "PatientID" in data else b""
            syntax = data.file_meta.TransferSyntaxUID
        except (OSError, MemoryError):
            raise
        except Exception:  # whatever damaged bytes make the parser stumble over
            raise Unusable("is truncated or damaged") from None
        if not (instance and study and series):
            raise Unusable("has no SOPInstanceUID, StudyInstanceUID or SeriesInstanceUID")
        if instance != announced:
            raise Unusable("has another SOPInstanceUID than was announced")
        loop = frames_of(data) > 1 and "PerFrameFunctionalGroupsSequence" not in data
        check_sizes(data, syntax)
        try:
            check_decoder(path, syntax)
            check_pixels(path, loop)
        except EdgesegError as error:
            raise Unusable(str(error).replace(f"{path}: ", "")) from None
    key = short_hash(repr((person, study, series, instance if loop else "")).encode(), 16)
    return Received(key, short_hash(instance.encode(), 24), loop,
                    1 if loop else max(0, int(optional([data], "NumberOfSeriesRelatedInstances") or 0)))


def frames_of(data: Any) -> int:
    return int(optional([data], "NumberOfFrames") or 1)


def check_sizes(data: Any, syntax: Any) -> None:
    """Unusable unless as many pixels are there as the header says."""
    rows, columns, bits = (int(optional([data], name) or 0) for name in ("Rows", "Columns", "BitsAllocated"))
    samples, frames = int(optional([data], "SamplesPerPixel") or 1), frames_of(data)
    if "PixelData" not in data or not data["PixelData"].value:
        raise Unusable("has no PixelData")
    if rows < 1 or columns < 1 or rows * columns > MAX_FRAME or not 1 <= frames <= MAX_FRAMES:
        raise Unusable("has no usable Rows, Columns or NumberOfFrames")
    if samples not in (1, 3) or bits not in (8, 16, 32):
        raise Unusable("has no usable SamplesPerPixel or BitsAllocated")
    pixels = data["PixelData"].value
    if not syntax.is_encapsulated:
        if len(pixels) < rows * columns * samples * frames * bits // 8:
            raise Unusable("has fewer pixels than Rows, Columns and NumberOfFrames say")
        return
    count = 0
    for frame in encoded_frames(pixels, frames):
        count += 1
        if codestream_size(frame) not in (None, (rows, columns)):
            raise Unusable("has compressed frames of another size than Rows and Columns say")
    if count != frames:
        raise Unusable("has fewer frames than NumberOfFrames says")


def encoded_frames(pixels: bytes, frames: int) -> Iterator[bytes]:
    from pydicom.encaps import generate_frames

    try:
        yield from generate_frames(pixels, number_of_frames=frames)
    except Exception:  # whatever is wrong with the items
        raise Unusable("has damaged compressed pixels") from None


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """(rows, columns) in the header of a JPEG, JPEG-LS or JPEG 2000 codestream; None of anything else (RLE)."""
    if data[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC and SIZ, then two lengths of 2 bytes, sizes and offsets of 4
        width, height, left, top = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
        return height - top, width - left
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # start of frame
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def check_pixels(path: Path, loop: bool) -> None:
    """EdgesegError unless the images of a stack have all that places them, and the first image can be decoded."""
    if loop:
        from pydicom.pixels import iter_pixels

        try:
            next(iter(iter_pixels(path, indices=[0])))
        except Exception:  # damaged bytes make decoders fail in every way
            raise EdgesegError("its pixels are truncated or damaged") from None
        return
    file = read_file(path)
    if file is None:
        raise EdgesegError("is no image")
    if file.problem:
        raise EdgesegError(file.problem)
    read_pixels(file.slices[:1])
