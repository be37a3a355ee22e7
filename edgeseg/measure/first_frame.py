"""Time to the first label map: from the start of a process, as a clinic's software that opens the bundle would see."""

import ctypes
import mmap
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgeseg.errors import EdgesegError
from edgeseg.measure.turns import Job, started


@dataclass(frozen=True)
class FirstFrame:
    """Wall seconds from starting a process to its first label map; Python and its libraries are part of it.

    Attributes:
        cold_s: with the bundle's files evicted from the page cache (the libraries stay in it); None where a page of
            them stays, as on a file system in memory, or where the system does not tell.
        warm_s: starts straight after, in order.
        load_s, first_s: of the median warm start, measured inside the process: opening bundle and runtime, and the
            first call. The rest of it is Python and its libraries.
    """

    cold_s: float | None
    warm_s: tuple[float, ...]
    load_s: float
    first_s: float


def first_frame(job: Job, warm_starts: int = 3) -> FirstFrame:
    """Start the job's process once cold and `warm_starts` times warm.

    Raises:
        EdgesegError: the job does not start; fewer than one warm start.
    """
    if warm_starts < 1:
        raise EdgesegError(f"the time to the first frame needs at least 1 warm start, not {warm_starts}")
    evicted = [evict(path) for path in files_of(job)]  # each of them, whatever comes of the others
    cold, *_ = start(job)
    starts = [start(job) for _ in range(warm_starts)]
    _, load, first = sorted(starts)[warm_starts // 2]
    return FirstFrame(cold if all(evicted) else None, tuple(wall for wall, *_ in starts), load, first)


def start(job: Job) -> tuple[float, float, float]:
    """Seconds of one start: in all, of loading, of the first call."""
    begin = time.monotonic()
    with started(job) as worker:
        return time.monotonic() - begin, worker.ready["load_ms"] / 1000, worker.ready["first_ms"] / 1000


def files_of(job: Job) -> list[Path]:
    """The files that a start reads: a bundle's own, or a network's (an IR keeps its weights in a second file)."""
    path = Path(job.path)
    if not job.path:
        return []
    found = path.rglob("*") if path.is_dir() else [path, path.with_suffix(".bin")]
    return sorted({p for p in found if p.is_file()})


def evict(path: Path) -> bool:
    """Ask the system to drop a file from the page cache; whether no page of it is there any more."""
    if not hasattr(os, "posix_fadvise"):
        return False
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some read-only file systems know no fsync
            os.fsync(handle)  # pages that are still to be written stay
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return cached_pages(handle) == 0
    finally:
        os.close(handle)


def cached_pages(handle: int) -> int | None:
    """Pages of an open file that are in the page cache, None where the system does not tell.

    By mincore(2). To those who may not write to a file Linux says that all of it is there: the answer is never too low.
    """
    if not os.fstat(handle).st_size:
        return 0
    try:
        mincore = ctypes.CDLL(None).mincore
        # private and writable, or ctypes gives no address of it; nothing is ever written
        with mmap.mmap(handle, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapped:
            pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
            first = ctypes.c_char.from_buffer(mapped)
            failed = mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(mapped)), pages)
            del first  # as long as it is there, the mapping cannot be closed
    except (OSError, AttributeError):  # a file system that maps nothing, a C library without the call
        return None
    return None if failed else sum(page & 1 for page in pages)
