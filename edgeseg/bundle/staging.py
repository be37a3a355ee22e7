"""Write a whole folder beside its target, then rename: a failure leaves nothing, and what was there stays."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgeseg.container import MANIFEST, SUMS
from edgeseg.errors import EdgesegError


def check_target(target: Path, force: bool) -> None:
    """Raise EdgesegError unless a bundle may be written at `target`: nothing there, or a bundle and `force`."""
    if not (target.exists() or target.is_symlink()):
        return
    if target.is_symlink() or not ((target / SUMS).is_file() and (target / MANIFEST).is_file()):
        raise EdgesegError(f"{target}: exists and is no bundle: choose another name (nothing was changed)")
    if not force:
        raise EdgesegError(f"{target}: exists: choose another name, or replace it with --force")


@contextmanager
def beside(target: Path, force: bool = False) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends well, and disappears when it does not.

    Raises:
        EdgesegError: `target` exists (see `check_target`). OSError: its parent cannot be written to.
    """
    check_target(target, force)
    created = next((p for p in reversed([target.parent, *target.parent.parents]) if not p.exists()), None)
    target.parent.mkdir(parents=True, exist_ok=True)
    part, old = (target.with_name(f".{target.name}.{kind}-{os.getpid()}") for kind in ("part", "old"))
    try:
        part.mkdir()
        yield part
        check_target(target, force)  # somebody may have been faster
        if target.exists():
            target.rename(old)
        try:
            part.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        if created is not None and created.is_dir() and not any(p.is_file() for p in created.rglob("*")):
            shutil.rmtree(created, ignore_errors=True)
        raise
