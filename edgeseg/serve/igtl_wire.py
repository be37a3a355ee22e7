"""OpenIGTLink as bytes: headers and bodies of messages, checked before anything of them is allocated or believed.

Formats: openigtlink.org, header versions 1 and 2 (protocol 1 to 3); big endian, pixels excepted. pyigtl
unpacks images whose sizes were found right. Replies are of header version 1, which everybody reads; the
time stamp and the place of an image go back as the bytes that came, so that nothing is rounded.
"""

import functools
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeseg.errors import need

HEADER = struct.Struct(">H12s20s8sQQ")
"""Version, type, device name, time stamp (seconds and their fraction, 32 bits each), body size, CRC64 of the body."""
EXTENDED = struct.Struct(">HHII")
"""At the start of a body of header version 2: its own size, sizes of the metadata at the end, message id."""
IMAGE = struct.Struct(">HBBBB3H12f6H")
"""Version, components, pixel type, byte order, coordinates, size (i, j, k), axes and centre in mm, part sent."""
STATUS = struct.Struct(">Hq20s")
"""Code, sub-code, name of the error; then the message as text."""

OK, FAILED, BUSY, TIMEOUT, OVERFLOW, CHECKSUM, RESOURCE, UNKNOWN, VERSION = 1, 2, 6, 7, 8, 9, 11, 12, 17
"""Codes of a STATUS message, as the protocol has them."""
NAMES = {OK: "ok", FAILED: "not segmented", BUSY: "busy", TIMEOUT: "timeout", OVERFLOW: "overflow",
         CHECKSUM: "checksum", RESOURCE: "too large", UNKNOWN: "not supported", VERSION: "unknown version"}
UINT8, LITTLE = 3, 2
"""Pixel type and byte order of label images."""
SUFFIX = b"_seg"
"""What the device name of an image gets in its label image; names end after 20 bytes."""
SERVED = ("IMAGE", "GET_CAPABIL", "GET_STATUS")


class Refused(Exception):
    """One message is not answered with a label image; the connection goes on. `code` is that of the STATUS reply."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Lost(Refused):
    """What comes next cannot be told apart from rubbish: the connection ends."""


@dataclass(frozen=True)
class Header:
    """Of a message that came. `stamp`: the eight bytes of the time stamp; `size`: bytes of the body."""

    version: int
    type: str
    device: bytes
    stamp: bytes
    size: int
    crc: int

    @property
    def seconds(self) -> float | None:
        """The time stamp in seconds; None: the sender gave none."""
        whole, fraction = struct.unpack(">II", self.stamp)
        return whole + fraction / 2**32 if whole or fraction else None

    @property
    def reply_device(self) -> bytes:
        """Name for the answer; what is not ASCII, which the protocol asks for, becomes "?"."""
        name = bytes(b if 32 <= b < 127 else ord("?") for b in self.device)
        return name[: 20 - len(SUFFIX)] + SUFFIX


@functools.cache
def messages() -> Any:
    """pyigtl's module of that name.

    Raises:
        EdgesegError: it is not installed.
    """
    return need("pyigtl", "igtl").messages


@functools.cache
def crc64() -> Callable[[bytes | memoryview], int]:
    """CRC-64/ECMA-182, which OpenIGTLink has: 3 us for a frame of 128 KiB, where pyigtl's crcmod takes 300.

    Raises:
        EdgesegError: fastcrc is not installed.
    """
    return need("fastcrc", "igtl").crc64.ecma_182


def parse_header(raw: bytes) -> Header:
    """The 58 bytes of a header.

    Raises:
        Lost: not a header of a version that is known.
    """
    version, kind, device, stamp, size, crc = HEADER.unpack(raw)
    if version not in (1, 2):
        raise Lost(VERSION, f"header version {version} is not known, or this is not OpenIGTLink")
    return Header(version, kind.partition(b"\0")[0].decode("ascii", "replace").strip(),
                  device.partition(b"\0")[0], stamp, size, crc)


@dataclass(frozen=True)
class Image:
    """`pixels` [k, j, i] or, with several components, [k, j, i, c]; `matrix` 4 x 4 from (i, j, k) to mm; `head`: the
    bytes before the pixels."""

    pixels: np.ndarray
    matrix: np.ndarray
    head: bytes


def unpack_image(header: Header, body: memoryview) -> Image:
    """The image in the body of an IMAGE message; its pixels are those bytes, not a copy.

    Raises:
        Refused: checksum, sizes or types are wrong or not supported.
    """
    if crc64()(body) != header.crc:
        raise Refused(CHECKSUM, "the checksum of the body is wrong")
    content = without_metadata(header, body)
    if len(content) < IMAGE.size:
        raise Refused(FAILED, f"an image of {len(content)} bytes, its description alone takes {IMAGE.size}")
    _, components, kind, order, _, *numbers = IMAGE.unpack_from(content)
    size, start, part = numbers[:3], numbers[15:18], numbers[18:]
    if 0 in size or not components:
        raise Refused(FAILED, f"an image without pixels: {' x '.join(map(str, size))}, {components} components")
    if kind not in messages().ImageMessage.scalar_types or order not in (1, 2):
        raise Refused(UNKNOWN, f"pixels of type {kind} and byte order {order} are not supported")
    if any(start) or part != size:
        raise Refused(UNKNOWN, "parts of images are not supported: send whole ones")
    expected = math.prod(size) * components * np.dtype(messages().ImageMessage.scalar_types[kind]).itemsize
    if len(content) - IMAGE.size != expected:
        raise Refused(FAILED, f"{len(content) - IMAGE.size} bytes of pixels, its size says {expected}")
    image = messages().ImageMessage()
    with np.errstate(all="ignore"):  # a matrix may hold anything
        image.unpack({"header_version": 1, "message_type": "IMAGE", "device_name": "", "timestamp": 0.0}, content)
    return Image(image.image, image.ijk_to_world_matrix, bytes(content[: IMAGE.size]))


def without_metadata(header: Header, body: memoryview) -> memoryview:
    """The content of a body, without what header version 2 puts before and behind it."""
    if header.version == 1:
        return body
    if len(body) < EXTENDED.size:
        raise Refused(FAILED, f"a body of {len(body)} bytes has no extended header")
    begin, keys, values, _ = EXTENDED.unpack_from(body)
    end = len(body) - keys - values
    if not EXTENDED.size <= begin <= end:
        raise Refused(FAILED, f"extended header and metadata do not fit into a body of {len(body)} bytes")
    return body[begin:end]


def label_image(header: Header, head: bytes, labels: np.ndarray) -> bytes:
    """The answer to an image: label values uint8 in its pixel order, at the same place and time."""
    return pack(b"IMAGE", header.reply_device, header.stamp,
                head[:2] + bytes((1, UINT8, LITTLE)) + head[5:] + labels.tobytes())


def status(code: int, text: str, device: bytes = b"edgeseg", stamp: bytes = bytes(8)) -> bytes:
    """A STATUS message."""
    return pack(b"STATUS", device, stamp, STATUS.pack(code, 0, NAMES[code].encode()) + text.encode() + b"\0")


def capability() -> bytes:
    """A CAPABILITY message: the types that are served."""
    return pack(b"CAPABILITY", b"edgeseg", bytes(8), b"".join(struct.pack("12s", name.encode()) for name in SERVED))


def pack(kind: bytes, device: bytes, stamp: bytes, body: bytes) -> bytes:
    return HEADER.pack(1, kind, device, stamp, len(body), crc64()(body)) + body
