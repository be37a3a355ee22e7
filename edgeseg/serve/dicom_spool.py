"""The node's folder: whatever was received is in it before the sender hears of success, until it has become a result.

    receiving/                       files that are being written; what a crash left is removed at the next start
    incoming/SERIES/INSTANCE.dcm     series that are not complete yet
    ready/SERIES-N/INSTANCE.dcm      complete ones that wait for their segmentation, or are in it
    results/SERIES-N/*.dcm           segmentations and reports; with --send-to until they are delivered
    quarantine/NAME.dcm, NAME.txt    what could not be read, and why; a whole series as NAME/

SERIES and INSTANCE are hashes of UIDs. Files are written in receiving/, given to the disk (fsync) and renamed, folders
are renamed as a whole, so that each thing is in one place or in the one before it, whenever the power fails.
"""

import filecmp
import itertools
import os
import shutil
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

from edgeseg.errors import EdgesegError

FOLDERS = ("receiving", "incoming", "ready", "results", "quarantine")


class Spool:
    """One folder, one process: a second one on the same folder is refused.

    Raises:
        EdgesegError: the folder is another process's.
        OSError: it cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        self._guard = hold(folder / "lock")
        self._lock, self._count = threading.Lock(), itertools.count()
        for path in (folder / "receiving").iterdir():  # nobody was told that these are here
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def close(self) -> None:
        os.close(self._guard)

    def receive(self, parts: Iterable[bytes | memoryview]) -> Path:
        """Write a file of these parts into receiving/, on the disk when this returns."""
        path = self.folder / "receiving" / f"{self._next()}.dcm"
        try:
            with path.open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        return path

    def keep(self, path: Path, series: str, instance: str) -> Literal["new", "copy", "other"]:
        """Put a received file to its series. "copy": the same is there already, the file is gone; "other": another
        object of the same UID is there, the file stays where it is."""
        with self._lock:
            target = self.folder / "incoming" / series / f"{instance}.dcm"
            if target.exists():
                if not filecmp.cmp(path, target, shallow=False):
                    return "other"
                path.unlink()
                return "copy"
            fresh = not target.parent.exists()
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
            sync(target.parent)
            if fresh:
                sync(target.parent.parent)
        return "new"

    def incoming(self) -> dict[str, int]:
        """Series that are not complete -> how many files each has."""
        return {p.name: len(list(p.glob("*.dcm"))) for p in sorted((self.folder / "incoming").iterdir())}

    def take(self, series: str) -> Path | None:
        """The series is complete: its folder, in ready/; what comes later begins a new one. None: it is not there."""
        with self._lock:
            folder = self.folder / "incoming" / series
            if not folder.exists():
                return None
            return self._move(folder, self.folder / "ready" / f"{series}-{self._next()}")

    def ready(self) -> list[Path]:
        return sorted((self.folder / "ready").iterdir())

    def results(self) -> list[Path]:
        return sorted((self.folder / "results").iterdir())

    def begin(self, name: str) -> Path:
        """An empty folder for the results of ready/`name`."""
        folder = self.folder / "receiving" / f"results-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder

    def finish(self, folder: Path, name: str) -> Path | None:
        """The results in `folder` are whole: they appear in results/, and ready/`name` goes. None: there are none."""
        found = None
        if any(folder.iterdir()):
            found = self.folder / "results" / name
            shutil.rmtree(found, ignore_errors=True)  # of an attempt that a crash ended right here
            sync(folder)
            self._move(folder, found)
        else:
            folder.rmdir()
        shutil.rmtree(self.folder / "ready" / name, ignore_errors=True)
        return found

    def set_aside(self, path: Path, why: str) -> Path:
        """Move a file or a series' folder into quarantine/, with a text that says why; returns where it is."""
        name = f"{time.strftime('%Y%m%dT%H%M%S')}-{path.stem}-{self._next()}"
        place = self.folder / "quarantine" / (name if path.is_dir() else f"{name}.dcm")
        (self.folder / "quarantine" / f"{name}.txt").write_text(" ".join(why.split()) + "\n", encoding="utf-8")
        return self._move(path, place)

    def _move(self, path: Path, place: Path) -> Path:
        path.rename(place)
        sync(place.parent)
        sync(path.parent)
        return place

    def _next(self) -> str:
        """A name that no earlier run of this folder has given out."""
        return f"{time.time_ns():x}{next(self._count):x}"


def hold(path: Path) -> int:
    """A lock that ends with the process, whatever ends it."""
    import fcntl

    guard = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(guard)
        raise EdgesegError(f"{path.parent}: another node works in this folder: end it, or choose another --folder"
                           ) from None
    return guard


def sync(folder: Path) -> None:
    """Give the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
