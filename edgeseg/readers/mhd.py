"""MetaImage: a text header (.mhd, or the start of a .mha) and raw pixels, maybe compressed. CAMUS first came in it."""

import zlib
from pathlib import Path

import numpy as np

from edgeseg.case import check_spacing
from edgeseg.errors import EdgesegError
from edgeseg.readers.nifti import Volume

TYPES = {"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
         "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}


def read_mhd(path: Path) -> Volume:
    """A 2D or 3D grey image.

    Raises:
        EdgesegError: missing, no MetaImage, colour, a list of files, fewer pixels than the header says, bad spacing.
    """
    entries, rest = read_header(path)
    try:
        shape = tuple(int(n) for n in entries["DimSize"].split())
        kind = np.dtype(TYPES[entries["ElementType"]])
        spacing = tuple(float(s) for s in entries.get("ElementSpacing", "1 " * len(shape)).split())
        if not 2 <= len(shape) <= 3 or min(shape) < 1 or len(spacing) != len(shape):
            raise ValueError
    except (KeyError, ValueError):
        raise EdgesegError(f"{path}: needs DimSize, ElementType and ElementSpacing of a 2D or 3D image: convert it to "
                           "NIfTI") from None
    if entries.get("ElementNumberOfChannels", "1") != "1":
        raise EdgesegError(f"{path}: is a colour image: expected grey")
    check_spacing(spacing, str(path))
    swapped = "true" in (entries.get(k, "").lower() for k in ("ElementByteOrderMSB", "BinaryDataByteOrderMSB"))
    content = pixel_bytes(path, entries, rest)
    if len(content) != np.prod(shape, dtype=np.int64) * kind.itemsize:
        raise EdgesegError(f"{path}: its pixels are not {' x '.join(map(str, shape))} {entries['ElementType']}: the "
                           "file is truncated or damaged, copy it again")
    pixels = np.frombuffer(content, kind.newbyteorder(">" if swapped else "<")).astype(np.float32).reshape(shape[::-1])
    return Volume(pixels.reshape(-1, *pixels.shape[-2:]), (spacing[1], spacing[0]),
                  spacing[2] if len(shape) > 2 else None, {})


def read_header(path: Path) -> tuple[dict[str, str], bytes]:
    """"Key = value" lines up to ElementDataFile, which is the last one, and the bytes after it."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise EdgesegError(f"{path}: no such file") from None
    entries: dict[str, str] = {}
    while "ElementDataFile" not in entries:
        line, end, content = content.partition(b"\n")
        key, equals, value = line.decode("latin-1").partition("=")
        if not equals or (not end and key.strip() != "ElementDataFile"):
            raise EdgesegError(f"{path}: is no MetaImage header (Key = value lines up to ElementDataFile)")
        entries[key.strip()] = value.strip()
    return entries, content


def pixel_bytes(path: Path, entries: dict[str, str], rest: bytes) -> bytes:
    """The pixels as they lie in the data file beside the header, or after it (LOCAL), decompressed."""
    name = entries["ElementDataFile"]
    if name != "LOCAL":
        if not name or Path(name).name != name:  # also LIST, and names that lead out of the folder
            raise EdgesegError(f"{path}: ElementDataFile must name one file beside it")
        try:
            rest = (path.parent / name).read_bytes()
        except FileNotFoundError:
            raise EdgesegError(f"{path}: its pixels ({name}) are missing: copy both files") from None
    if entries.get("CompressedData", "").lower() == "true":
        try:
            return zlib.decompress(rest)
        except zlib.error:
            raise EdgesegError(f"{path}: its compressed pixels are truncated or damaged: copy it again") from None
    skip = entries.get("HeaderSize", "0")
    return rest[int(skip) if skip.isdecimal() else 0 :]
