"""The pixels of DICOM slices, as intensities."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.readers.dicom_image import Grey, Slice


def read_pixels(slices: Sequence[Slice]) -> np.ndarray:
    """Intensities float32 [N, H, W] of slices of one shape.

    Raises:
        EdgesegError: a file that is truncated or damaged, or compressed in a way that nothing here can undo.
    """
    frames: list[np.ndarray] = []
    for path, group in itertools.groupby(slices, lambda s: s.path):
        frames += read_frames(path, list(group))
    return np.stack(frames)


def read_frames(path: Path, slices: list[Slice]) -> list[np.ndarray]:
    """The frames of one file, in the order of `slices`."""
    from pydicom import dcmread
    from pydicom.pixels import iter_pixels
    from pydicom.uid import UID

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        syntax = UID(slices[0].syntax)
        check_decoder(path, syntax)
        try:
            # pydicom inflates only what it reads as a whole
            source = dcmread(path, force=True) if syntax.is_deflated else path
            stored = list(iter_pixels(source, indices=[s.frame for s in slices], raw=True, transfer_syntax_uid=syntax))
            if [a.shape for a in stored] != [s.shape for s in slices]:
                raise ValueError
        except (FileNotFoundError, PermissionError):
            raise
        except MemoryError:
            raise EdgesegError(f"{path}: does not fit into memory: if it is not that large, it is damaged") from None
        except Exception:  # damaged bytes make decoders fail in every way
            raise EdgesegError(f"{path}: its pixels are truncated or damaged: copy it again") from None
    return [intensities(a, s.grey) for a, s in zip(stored, slices, strict=True)]


def check_decoder(path: Path, syntax: Any) -> None:
    """EdgesegError unless pydicom can undo this transfer syntax here."""
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise EdgesegError(f"{path}: its transfer syntax is not known: convert it") from None
    if not decoder.is_available:
        raise EdgesegError(f"{path}: is compressed ({syntax.name}): convert it, or pip install what pydicom decodes it "
                           f"with, one of: {'; '.join(decoder.missing_dependencies)}")


def intensities(stored: np.ndarray, grey: Grey) -> np.ndarray:
    """Stored numbers -> float32; bits above BitsStored, where old files keep overlays, are no part of a number."""
    if stored.dtype.kind in "iu":
        whole = stored.astype(np.int64) & (2**grey.bits - 1)
        low = -(2 ** (grey.bits - 1)) if grey.signed else 0
        whole -= (whole >= 2 ** (grey.bits - 1)) * 2**grey.bits if grey.signed else 0
        stored = 2 * low + 2**grey.bits - 1 - whole if grey.inverted else whole  # highest + lowest - value
    return (stored * grey.slope + grey.intercept).astype(np.float32)
