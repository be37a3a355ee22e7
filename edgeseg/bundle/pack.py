"""A bundle as one zip file, and back."""

from dataclasses import replace
from pathlib import Path

from edgeseg.archive import Archive, write_zip
from edgeseg.bundle.staging import beside, check_target
from edgeseg.container import SUMS, Bundle, extract, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.files import new_file


def pack(source: Path, out: Path, force: bool = False) -> Path:
    """Write the bundle `source` as the zip `out` and return it; equal bundles give equal bytes, wherever they are.

    Args:
        force: replace a packed bundle that is already there.

    Raises:
        EdgesegError: `source` is no whole bundle, or `out` exists. OSError: the disk is full. Then nothing is written.
    """
    bundle = open_bundle(source)
    if out.exists() or out.is_symlink():
        if not is_packed(out):
            raise EdgesegError(f"{out}: exists and is no packed bundle: choose another name (nothing was changed)")
        if not force:
            raise EdgesegError(f"{out}: exists: choose another name, or replace it with --force")
    if out.resolve().is_relative_to(bundle.path.resolve()):
        raise EdgesegError(f"{out}: lies in the bundle itself: choose another folder")
    with new_file(out) as part:
        write_zip({name: bundle.path / name for name in bundle.files}, part)
        open_bundle(part)  # what was written is what a user will read
    return out


def is_packed(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with Archive(path) as archive:
            return SUMS in archive.names
    except EdgesegError:
        return False


def unpack(source: Path, out: Path, force: bool = False) -> Bundle:
    """Unpack the zip `source` into the bundle folder `out` and return it, opened.

    Args:
        force: replace a bundle that is already there, once the new one is complete.

    Raises:
        EdgesegError: `out` exists, or everything that `Archive` and `open_bundle` refuse. Then nothing is written.
    """
    if not source.is_file():
        raise EdgesegError(f"{source}: no zip file: name one that `edgeseg bundle pack` made")
    check_target(out, force)
    with beside(out, force) as part:
        bundle = extract(source, part)
    return replace(bundle, path=out)
