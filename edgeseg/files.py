"""A file is written beside its place and then renamed: it is whole, or what was there stays."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to, of the same ending and nobody else's; renamed to `path` if the block ends well.

    Folders above `path` are made. After a failure the new file is gone and what was at `path` is untouched.

    Raises:
        OSError: the disk is full or the folder cannot be written to; it names `path`, not the temporary file.
    """
    part = path.with_name(f".{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename in (None, str(part), part):  # of a disk that fills up the system names no file
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):
            part.unlink()


def write_bytes(path: Path, content: bytes) -> Path:
    with new_file(path) as part:
        part.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """UTF-8, line ends as they are in `text`."""
    return write_bytes(path, text.encode())
