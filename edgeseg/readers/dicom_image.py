"""A DICOM file as slices: what it says of each of them; their pixels are read by `dicom_pixels`.

A classic file holds one slice; an enhanced one holds many, described by functional groups. Elements that name a person
are not parsed, and no message repeats a value of a file, only the file and the element that is wrong.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import need

SUPPORTED = "edgeseg reads grey-scale MR and CT slices, classic or enhanced, with their place in the patient"
MOMENTS = (("TriggerTime", "NominalCardiacTriggerDelayTime"), ("TemporalPositionIdentifier", "TemporalPositionIndex"),
           ("AcquisitionTime",), ("InstanceNumber",))
"""What orders the images of one place in time, the best first: classic name, enhanced name."""
MACROS = ("PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence", "FrameContentSequence",
          "PixelValueTransformationSequence", "CardiacSynchronizationSequence", "MRImageFrameTypeSequence",
          "CTImageFrameTypeSequence")
"""Functional groups that are read: a frame's own go before those that all frames share."""
TAGS = [
    *(REFERENCE := ("SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")), "StudyInstanceUID", "SeriesInstanceUID",
    "SeriesNumber", "PatientID",
    "Manufacturer", "ImageType", "CardiacNumberOfImages", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel",
    "PhotometricInterpretation", "BitsStored", "PixelRepresentation", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "SpacingBetweenSlices", "SliceThickness", "RescaleSlope", "RescaleIntercept",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "TriggerTime", "TemporalPositionIdentifier", "AcquisitionTime", "InstanceNumber"]

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Grey:
    """How stored numbers become intensities: the lowest `bits` are the value, then slope * value + intercept."""

    bits: int
    signed: bool
    inverted: bool
    slope: float
    intercept: float


@dataclass(frozen=True)
class Instance:
    """What a reference to a file needs: its class and UID, and its frame of reference ("" without)."""

    storage: str
    uid: str
    frame_of_reference: str

    @classmethod
    def of(cls, data: Any) -> "Instance":
        """From a header with the elements REFERENCE."""
        return cls(*(str(value([data], name) or "") for name in REFERENCE))


@dataclass(frozen=True)
class Slice:
    """One image of one plane at one moment.

    Attributes:
        frame: number within the file, from 0. syntax: UID of the transfer syntax of its pixels.
        position: centre of the first pixel; row, column: unit vectors along a row and down a column; all in DICOM's
            patient axes (to the left, to the back, to the head), mm.
        spacing: of rows and columns, mm. gap: from slice to slice as the file states it, mm.
        kind: ImageType from its third value on, what tells magnitude from phase images.
        moments: as in MOMENTS, None where the file has no such value.
    """

    path: Path
    frame: int
    syntax: str
    shape: tuple[int, int]
    position: Vector
    row: Vector
    column: Vector
    spacing: tuple[float, float]
    gap: float
    kind: tuple[str, ...]
    moments: tuple[float | None, ...]
    grey: Grey
    instance: Instance

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.row, self.column)


@dataclass(frozen=True)
class File:
    """A DICOM file that should hold images; `problem` (one line, names the file) when they cannot be used.

    `patient` is a pseudonym: 8 digits of a hash of the patient's id. `phases`: CardiacNumberOfImages, 0 where unknown.
    """

    path: Path
    instance: str = ""
    series: str = ""
    number: int = 0
    patient: str = ""
    vendor: str | None = None
    phases: int = 0
    slices: tuple[Slice, ...] = ()
    problem: str = ""


class Unusable(Exception):
    """What is wrong with a file, without its name."""


def is_dicom(path: Path) -> bool:
    """Whether the content begins as DICOM does, with its preamble or (older files) without."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or (head[:2] in (b"\x02\0", b"\x08\0") and head[3:4] == b"\0" and len(head) == 132)


def read_file(path: Path) -> File | None:
    """The description of a file that `is_dicom`; None for DICOM that is no image (a report, a directory, a mask)."""
    pydicom = need("pydicom", "dicom")
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warnings quote values
        try:
            data = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=TAGS)
            return describe(path, data) if is_image(data) else None
        except OSError:
            raise
        except Exception:  # whatever damaged bytes make the parser stumble over
            return File(path, problem=f"{path}: is truncated or damaged: copy it again")


def is_image(data: Any) -> bool:
    """By its class, or for private classes (and none) by whether it has rows."""
    from pydicom.uid import UID

    uid = UID(str(value([data], "SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID", "")))
    return "Image Storage" in uid.name if uid.name != str(uid) else "Rows" in data


def describe(path: Path, data: Any) -> File:
    """Header -> File, with its problem if it has one."""
    instance, study, series, vendor = (str(value([data], k) or "").strip() for k in (
        "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Manufacturer"))
    own = data.get_item("PatientID").value if "PatientID" in data else None  # the bytes: no character set is needed
    person = own if isinstance(own, bytes) and own.strip(b" \0") else study.encode()
    whole = {k: int(optional([data], k) or 0) for k in ("SeriesNumber", "CardiacNumberOfImages")}
    about = File(path, instance, series or str(path.parent), whole["SeriesNumber"], short_hash(person, 8),
                 vendor or None, whole["CardiacNumberOfImages"])
    try:
        return replace(about, slices=tuple(slices_of(path, data)))
    except Unusable as error:
        return replace(about, problem=f"{path}: {error}")


def short_hash(content: bytes, digits: int) -> str:
    return hashlib.sha256(content).hexdigest()[:digits]


def slices_of(path: Path, data: Any) -> Iterator[Slice]:
    """The slices of one file in its order; Unusable says what is missing or not supported."""
    from pydicom.uid import ImplicitVRLittleEndian

    colours = str(value([data], "PhotometricInterpretation") or "").strip()
    if (optional([data], "SamplesPerPixel") or 1) != 1 or colours not in ("MONOCHROME1", "MONOCHROME2", ""):
        raise Unusable(f"is a colour image: {SUPPORTED}")
    shape = tuple(int(numbers([data], k, 1)[0]) for k in ("Rows", "Columns"))
    count = int(numbers([data], "NumberOfFrames", 1, (1.0,))[0])
    if count < 1 or 0 in shape:
        raise Unusable("has zero frames or pixels: leave it out")
    frames = value([data], "PerFrameFunctionalGroupsSequence")
    if frames is None and count > 1:
        raise Unusable(f"holds {count} frames without functional groups, so their places are not known: {SUPPORTED}")
    if frames is not None and len(frames) != count:
        raise Unusable(f"holds {count} frames but describes {len(frames)}: it is damaged")
    shared = macros((value([data], "SharedFunctionalGroupsSequence") or [None])[0])
    syntax = str(data.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian))
    for k in range(count):
        own = [*macros(frames[k]), *shared, data] if frames is not None else [data]
        yield one_slice(path, k, syntax, (shape[0], shape[1]), own)


def macros(item: Any) -> list[Any]:
    """The functional groups of an item that are read, each a data set."""
    found = [value([item], name) for name in MACROS] if item is not None else []
    return [group[0] for group in found if group]


def one_slice(path: Path, k: int, syntax: str, shape: tuple[int, int], own: list[Any]) -> Slice:
    """Frame `k` of a file; `own` are the data sets that describe it, the most specific first."""
    spacing = numbers(own, "PixelSpacing", 2)
    if min(spacing) <= 0:
        raise Unusable("has a PixelSpacing that is not positive: repair it")
    axes = np.reshape(numbers(own, "ImageOrientationPatient", 6), (2, 3))
    if not np.allclose(axes @ axes.T, np.eye(2), atol=1e-2):
        raise Unusable("has an ImageOrientationPatient that is not two perpendicular unit vectors: repair it")
    row, column = (tuple(a / np.linalg.norm(a)) for a in axes)
    gap = optional(own, "SpacingBetweenSlices") or optional(own, "SliceThickness") or 1.0
    moments = [next((t for n in names if (t := optional(own, n)) is not None), None) for names in MOMENTS]
    if len(own) > 1:  # the number of an enhanced file goes before the number of the frame in it
        moments[-1] = (moments[-1] or 0.0) * 1e6 + k
    kind = value(own, "FrameType") or value(own, "ImageType") or ()
    bits = int(numbers(own, "BitsStored", 1)[0])
    if not 1 <= bits <= 32:
        raise Unusable("has no usable BitsStored: it is damaged")
    signed = int(numbers(own, "PixelRepresentation", 1, (0.0,))[0]) == 1
    grey = Grey(bits, signed, str(value(own, "PhotometricInterpretation")).strip() == "MONOCHROME1",
                numbers(own, "RescaleSlope", 1, (1.0,))[0], numbers(own, "RescaleIntercept", 1, (0.0,))[0])
    return Slice(path, k, syntax, shape, numbers(own, "ImagePositionPatient", 3), row, column, spacing,
                 gap if gap > 0 else 1.0, tuple(map(str, kind))[2:] if not isinstance(kind, str) else (),
                 tuple(moments), grey, Instance.of(own[-1]))


def value(own: Sequence[Any], keyword: str) -> Any:
    """The element of the first of these data sets in which it is not empty, None without; Unusable when damaged."""
    for data in own:
        try:
            found = data[keyword].value if keyword in data else None
        except Exception:  # pydicom converts on access, and fails in as many ways as there are damaged elements
            raise Unusable(f"has a damaged {keyword}: repair it") from None
        if found is not None and found != "":
            return found
    return None


def numbers(own: Sequence[Any], keyword: str, count: int, default: tuple[float, ...] | None = None) -> Any:
    """`count` finite numbers; `default` where there is no such element; else Unusable."""
    found = value(own, keyword)
    if found is None:
        if default is None:
            raise Unusable(f"has no {keyword}: {SUPPORTED}")
        return default
    try:
        result = tuple(float(v) for v in (found if count > 1 else [found]))
    except (TypeError, ValueError):
        result = ()
    if len(result) != count or not np.isfinite(result).all():
        raise Unusable(f"has a damaged {keyword}: repair it")
    return result


def optional(own: Sequence[Any], keyword: str) -> float | None:
    """One number, None without; a time (HHMMSS.F, or HH:MM:SS.F in old files) counts as one."""
    try:
        number = float(str(value(own, keyword)).replace(":", ""))
    except (ValueError, Unusable):
        return None
    return number if np.isfinite(number) else None
