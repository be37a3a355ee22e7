"""From the files of DICOM series to SEG files, without a network: what `edgeseg predict` and the DICOM node share."""

import signal
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.runtime.dicom_seg import Maker, Sources, make_seg, save
from edgeseg.runtime.dicom_series import Moment, Series, segment_moment
from edgeseg.runtime.segmenter import Segmenter

AHEAD = 2
"""Moments that wait for the writing process at most, with their labels."""
UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")


@dataclass(frozen=True)
class Written:
    """The SEG files of a series, one a phase; how many frames were segmented; one line each on what is odd."""

    files: tuple[Path, ...]
    frames: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """One SEG file to be made: of a moment of a series whose header is that of `first`."""

    maker: Maker
    first: Path
    planes: tuple[Any, ...]
    labels: np.ndarray
    moment: int
    moments: int
    path: Path

    def carry_out(self) -> Any:
        """Write it; a data set with its UIDS, all that a report needs of it."""
        from pydicom.dataset import Dataset

        made = make_seg(self.maker, header_of(self.first, self.first.stat().st_mtime_ns), self.planes, self.labels,
                        self.moment, self.moments)
        save(made, self.path)
        reference = Dataset()
        for name in UIDS:
            setattr(reference, name, made[name].value)
        return reference


@lru_cache(maxsize=1)
def header_of(first: Path, _: int) -> Sources:
    """The same one for all phases of a series: what it keeps of their planes is worth keeping."""
    return Sources(first)


class SegWriter:
    """Makes SEG files in a process of its own, beside the segmentation: making them is Python from end to end, so that
    threads would only take turns. Before `start` in this process, which is as good for a few."""

    def __init__(self) -> None:
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """From any thread; once is enough."""
        with self._lock:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=begin)
                self._pool.submit(begin)  # what it imports is there when the first series comes

    def submit(self, order: Order) -> Callable[[], Any]:
        """What to call for the result of `order.carry_out`, or its error."""
        if (pool := self._pool) is None:
            made = order.carry_out()
            return lambda: made
        try:
            coming = pool.submit(order.carry_out)
        except BrokenProcessPool:
            self.close()
            return self.submit(order)

        def result() -> Any:
            try:
                return coming.result()
            except (BrokenProcessPool, CancelledError):  # it is gone, as when the system was short of memory
                self.close()
                return order.carry_out()

        return result

    def close(self) -> None:
        with self._lock:
            pool, self._pool = self._pool, None
        if pool:
            pool.shutdown(cancel_futures=True)


def begin() -> None:
    """In the writing process: an interrupt is its parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(ImportError):
        import highdicom.seg  # noqa: F401


def write_segs(segmenter: Segmenter, maker: Maker, series: Series, out: Path, writer: SegWriter | None = None,
               seen: Callable[[Moment, np.ndarray, Any], None] | None = None) -> Written:
    """OUT/NAME.dcm, of a stack with several phases OUT/NAME_phaseNN.dcm.

    Args:
        seen: called with each moment, its label values uint8 [N, H, W] and the UIDS of its SEG, in their order.

    Raises:
        EdgesegError: files that cannot be read, pixels that cannot be segmented, no highdicom; the files that were
            written before that are removed.
    """
    writer, files = writer or SegWriter(), []
    frames, notes = 0, []
    coming: deque[tuple[Callable[[], Any], Moment, np.ndarray]] = deque()

    def finish_one() -> None:
        made, moment, labels = coming.popleft()
        reference = made()
        if seen:
            seen(moment, labels, reference)

    try:
        for t in range(series.moments):
            moment = series.read(t)
            labels, wrong = segment_moment(segmenter, moment)
            files.append(out / f"{series.moment_name(t)}.dcm")
            order = Order(maker, series.files[0], moment.planes, labels, t, series.moments, files[-1])
            coming.append((writer.submit(order), moment, labels))
            if len(coming) > AHEAD:
                finish_one()
            frames += len(labels)
            notes += [f"{series.moment_name(t)}: {line}" for line in wrong]
            if not moment.spacing_known:
                notes.append(f"{series.name}: says no pixel size: {moment.spacing[0]:g} x {moment.spacing[1]:g} mm "
                             "assumed")
        while coming:
            finish_one()
    except BaseException:
        for made, *_ in coming:
            with suppress(Exception):
                made()
        for file in files:
            file.unlink(missing_ok=True)
        raise
    return Written(tuple(files), frames, tuple(notes))
