"""What an MRD image becomes: frames for the Segmenter, and from its labels a mask or an overlay for the console.

Each frame is segmented as it arrives, with `Segmenter.segment` and so with its own intensity statistics: a console has
no volume before the scan has ended, and masks that waited for it would hold the scan up. What that costs in Dice is in
the bundle's manifest (`measured.streaming`).
"""

import functools
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgeseg.labels import LabelScheme
from edgeseg.runtime.overlay import COLOURS, overlay
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve.mrd_wire import IMAGE, Original, package

Output = Literal["masks", "overlays"]
Spacing = tuple[float, float]

MAGNITUDE, RGB = 1, 6
SERIES_STEP = 1000
"""Masks of series 3 are series 1003, the read-out of series 3 is series 2003: one number can be told from the other."""
MAX_MATRIX, MAX_FIELD_MM = 2048, 1000.0
"""No MR image of a person is larger; a header that says so would cost the memory of resampling it."""
MAX_META = 2**20
"""Bytes of attributes that are parsed; longer ones only go back with their image."""
LUT = "MicroDeltaHotMetal.pal"
"""A colour table that Siemens consoles have; others ignore the name."""


@dataclass(frozen=True)
class Segmented:
    """Labels uint8 [Z, Y, X] of an image with `spacing` (row, column) in mm, and the message with its mask or overlay;
    or in `problem` why there is none."""

    labels: np.ndarray
    spacing: Spacing
    message: tuple[bytes, ...] = ()
    problem: str = ""


def failed(problem: str) -> Segmented:
    """No labels, and why."""
    return Segmented(np.zeros((0, 0, 0), np.uint8), (0.0, 0.0), problem=problem)


def why_not(image: Original) -> str:
    """Why an image is passed back without being segmented; "" when it is."""
    head = image.head
    if not image.parts[4]:
        return "no pixels"
    if head.image_type not in (0, MAGNITUDE) and not image.is_complex:
        return "not a magnitude image"
    x, y, _ = head.matrix_size
    if max(x, y) > MAX_MATRIX or not all(0 < f <= MAX_FIELD_MM for f in head.field_of_view[:2]):
        return f"{x} x {y} pixels on {head.field_of_view[0]:.4g} x {head.field_of_view[1]:.4g} mm"
    return ""


def spacing_of(head: Any) -> Spacing:
    """(row, column) in mm: x runs along a row, so that columns are `field_of_view[0] / matrix_size[0]` apart."""
    return head.field_of_view[1] / head.matrix_size[1], head.field_of_view[0] / head.matrix_size[0]


def frames_of(image: Original) -> np.ndarray:
    """[Z, C, Y, X] in the type that came; of complex pixels the magnitude."""
    pixels = image.pixels().swapaxes(0, 1)
    return np.abs(pixels) if pixels.dtype.kind == "c" else pixels


def segment(segmenter: Segmenter, image: Original, output: Output) -> Segmented:
    """Every frame of an image, and what goes to the console for it."""
    frames, spacing = frames_of(image), spacing_of(image.head)
    labels = np.zeros((len(frames), *frames.shape[-2:]), np.uint8)
    for z, frame in enumerate(frames):
        found = segmenter.segment(frame[0] if len(frame) == 1 else frame, spacing)
        if not found.ok:
            return failed(found.status)
        labels[z] = found.labels
    make = mask_message if output == "masks" else overlay_message
    return Segmented(labels, spacing, make(image, labels, segmenter.scheme))


def mask_message(image: Original, labels: np.ndarray, scheme: LabelScheme, step: int = SERIES_STEP,
                 extra: dict[str, Any] | None = None) -> tuple[bytes, ...]:
    """Label values as uint16, geometry and position those of the image, in a series of their own.

    Args:
        extra: meta attributes beside, or instead of, those of every mask.
    """
    head, attributes = image.head, image.attributes
    if extra:
        made = as_xml(mask_meta(attributes, head.read_dir, head.phase_dir, scheme) | extra)
    else:
        made = mask_attributes(attributes, tuple(head.read_dir), tuple(head.phase_dir), scheme)
    return message_of(image, labels[None].astype(np.uint16), MAGNITUDE, step, made)


@functools.lru_cache(maxsize=16)
def mask_attributes(attributes: bytes, read_dir: tuple[float, ...], phase_dir: tuple[float, ...],
                    scheme: LabelScheme) -> bytes:
    """`mask_meta` as XML: the images of a series often differ in nothing that goes into it, and it takes as long as all
    else that is made for a mask."""
    return as_xml(mask_meta(attributes, read_dir, phase_dir, scheme))


def mask_meta(attributes: bytes, read_dir: Iterable[float], phase_dir: Iterable[float],
              scheme: LabelScheme) -> dict[str, Any]:
    """Meta attributes of a mask of an image that has these."""
    return meta_of(attributes, read_dir, phase_dir) | {
        "DataRole": ["Segmentation", "Quantitative"],  # Quantitative: the chain must not scale these values
        "ImageProcessingHistory": ["EDGESEG", "MASK"], "SequenceDescriptionAdditional": "edgeseg_mask",
        "SeriesDescriptionAdditional": "edgeseg_mask", "LUTFileName": LUT, "RescaleSlope": 1, "RescaleIntercept": 0,
        "WindowCenter": math.ceil(max(scheme.values) / 2), "WindowWidth": max(scheme.values) + 1,
        "ImageComments": "labels " + " ".join(f"{v}={n}" for n, v in structures(scheme)),
    } | names_of(scheme)


def overlay_message(image: Original, labels: np.ndarray, scheme: LabelScheme) -> tuple[bytes, ...]:
    """The image in grey with its labels in colour, as MRD has colour: three uint16 channels of 0..255."""
    frames = frames_of(image)[:, 0]
    rgb = np.stack([overlay(f[None], scheme.values, found[None]) for f, found in zip(frames, labels, strict=True)])
    meta = meta_of(image.attributes, image.head.read_dir, image.head.phase_dir) | {
        "DataRole": "Image", "ImageProcessingHistory": ["EDGESEG", "OVERLAY"], "InternalSend": 1,
        "SequenceDescriptionAdditional": "edgeseg_overlay", "SeriesDescriptionAdditional": "edgeseg_overlay"}
    for key in ("WindowCenter", "WindowWidth", "LUTFileName", "RescaleSlope", "RescaleIntercept"):
        meta.pop(key, None)  # colours have no window
    return message_of(image, rgb.transpose(3, 0, 1, 2).astype(np.uint16), RGB, SERIES_STEP,
                      as_xml(meta | names_of(scheme)))


def message_of(image: Original, pixels: np.ndarray, kind: int, step: int, attributes: bytes) -> tuple[bytes, ...]:
    """The message of uint16 pixels [C, Z, Y, X] with the header of `image`, in the series `step` after its own."""
    head = package().ImageHeader.from_buffer_copy(image.head)
    head.image_type, head.image_series_index = kind, (head.image_series_index + step) % 2**16
    head.data_type, head.channels, head.attribute_string_len = package().DATATYPE_USHORT, len(pixels), len(attributes)
    return (struct.pack("<H", IMAGE), bytes(head), struct.pack("<Q", len(attributes)), attributes,
            pixels.astype("<u2", copy=False).tobytes())


def as_xml(meta: dict[str, Any]) -> bytes:
    return package().Meta(meta).serialize().encode()


def meta_of(attributes: bytes, read_dir: Iterable[float], phase_dir: Iterable[float]) -> dict[str, Any]:
    """Attributes of an image, which its console may need to place a derived one, with what every such one has.

    Attributes that are no MRD meta XML go back with their image and are otherwise left alone.
    """
    text = attributes.rstrip(b"\0")
    meta: dict[str, Any] = {}
    if len(text) <= MAX_META and b"<!DOCTYPE" not in text:  # its entities could expand to anything
        try:
            meta = {k: v for k, v in package().Meta.deserialize(text.decode()).items() if k and v is not None}
        except Exception:  # whatever a parser of hostile XML raises, the pixels are still good
            meta = {}
    meta.setdefault("ImageRowDir", [f"{v:.9g}" for v in read_dir])
    meta.setdefault("ImageColumnDir", [f"{v:.9g}" for v in phase_dir])
    return meta | {"Keep_image_geometry": 1}


def structures(scheme: LabelScheme) -> Sequence[tuple[str, int]]:
    """(name, value) of every label but the background."""
    return list(zip(scheme.names, scheme.values, strict=True))[1:]


def names_of(scheme: LabelScheme) -> dict[str, list[str]]:
    """What every label value means, and its colour as red, green, blue in 0..255."""
    found = structures(scheme)
    return {"SegmentNames": [n for n, _ in found], "SegmentValues": [str(v) for _, v in found],
            "SegmentColours": [" ".join(map(str, COLOURS[k % len(COLOURS)])) for k in range(len(found))]}
