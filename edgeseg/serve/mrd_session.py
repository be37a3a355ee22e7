"""One client of the MRD server, from its first message to the close: originals go back at once, then what was found.

    client   config  header  image 1  image 2  ...                         close
    server                   image 1  mask 1   image 2  mask 2  ...        volumes  close

An original is on its way back before its segmentation begins; a mask that is late, or that an image cannot have, is
replaced by a warning. The order of the images and of their masks is that in which they came.
"""

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from edgeseg.serve.common import Log, Segmenters
from edgeseg.serve.mrd_image import Output, Segmented, failed, segment, why_not
from edgeseg.serve.mrd_series import Series
from edgeseg.serve.mrd_wire import ACQUISITION, CLOSE, WAVEFORM, Broken, Original, Reader, Writer
from edgeseg.serve.mrd_worker import Worker

MAX_SERIES = 8
"""Series that one session has open at once; when another begins the oldest is reported and closed."""

UNUSED = {ACQUISITION: "acquisitions are not reconstructed", WAVEFORM: "waveforms are not used"}
CLOSED = "closed"


@dataclass(frozen=True)
class Settings:
    """What a user chooses for all sessions.

    Attributes:
        output: what is sent for an image beside itself.
        image_deadline: seconds for the mask of one image. series_deadline: seconds that all masks of a series may take
            together (waiting for the client does not count); beyond them originals pass without.
        idle, stall: seconds of silence between two messages and within one after which a client is given up.
        queue_bytes: that wait for a slow client at most.
    """

    output: Output = "masks"
    image_deadline: float = 1.0
    series_deadline: float = 120.0
    idle: float = 600.0
    stall: float = 30.0
    queue_bytes: int = 2**27


class Session:
    """Runs in the thread of its connection.

    Takes one of the Segmenters, and gives it back when its last image is done, which may be after `run` has returned;
    when all are taken the client is told so and sent away.
    """

    def __init__(self, sock: socket.socket, segmenters: Segmenters, settings: Settings, log: Log) -> None:
        self._sock, self._segmenters, self._settings, self._log = sock, segmenters, settings, log
        self._scheme = segmenters.first.scheme
        self._worker: Worker | None = None
        self._reader = Reader(sock, settings.idle, settings.stall)
        self._writer = Writer(sock, settings.queue_bytes, settings.stall)
        self._series: dict[int, Series] = {}
        self._told: set[int] = set()
        self._images = self._masks = 0
        self._stopped = False

    def run(self) -> None:
        """Serve until the client closes, leaves, stalls or breaks the protocol; none of it raises anything."""
        why = CLOSED
        try:
            if (segmenter := self._segmenters.take()) is None:
                raise Broken("all places are taken, come back later")
            self._worker = Worker(segmenter, self._segmenters.give)
            while (message := self._reader.read()) != CLOSE:
                self._take(message)
        except Broken as error:
            why = "the server stops" if self._stopped else str(error)
        except Exception:
            why = "failed"
            raise
        finally:
            if self._worker:
                self._worker.end()
            self._log(f"{why}; {self._images} images, {self._masks} {self._settings.output}")
            with suppress(Broken):  # a client that is gone hears no more
                self._close_all(why)
            self._writer.end()
            if self._writer.failed not in ("", why):
                self._log(f"not all of it was sent: {self._writer.failed}")
            self._reader.linger()
            self._sock.close()

    def stop(self) -> None:
        """End the session soon, from another thread: nothing more is read, what was found is still reported."""
        self._stopped = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RD)

    def _take(self, message: Original | int) -> None:
        if isinstance(message, Original):
            self._image(message)
        elif message in UNUSED and message not in self._told:
            self._told.add(message)
            self._writer.text(f"WRN {UNUSED[message]} here and do not come back: send images")

    def _image(self, image: Original) -> None:
        self._writer.put(image.parts)
        self._images += 1
        series = self._open(image.head.image_series_index)
        series.images += 1
        found = self._segment(image, series)
        if not found.problem:
            self._writer.put(found.message)
            self._masks += 1
            series.add(image, found)
        elif series.note(found.problem):
            self._writer.text(f"WRN series {series.number} image {image.head.image_index}: {found.problem}: comes back "
                              f"alone; more of this kind are only counted")

    def _segment(self, image: Original, series: Series) -> Segmented:
        """Within both deadlines, or why not."""
        assert self._worker is not None
        whole, own = self._settings.series_deadline, self._settings.image_deadline
        if why := why_not(image):
            return failed(why)
        if series.seconds >= whole:
            return failed(f"came after the {whole:g} s that its series may take")
        start, job = time.monotonic(), partial(segment, image=image, output=self._settings.output)
        try:
            return self._worker.do(job, min(own, whole - series.seconds))
        except TimeoutError:
            return failed(f"was not segmented in time ({own:g} s)")
        except Exception as error:  # a scanner is better off with the original alone than without an answer
            return failed(f"failed: {type(error).__name__}")
        finally:
            series.seconds += time.monotonic() - start

    def _open(self, number: int) -> Series:
        """The series of that number; when there are too many, the one that was begun first is reported."""
        if number not in self._series and len(self._series) >= MAX_SERIES:
            self._report(self._series.pop(next(iter(self._series))))
        return self._series.setdefault(number, Series(number, self._scheme))

    def _report(self, series: Series) -> None:
        lines, message = series.report()
        for line in lines:
            self._writer.text(line)
        if message:
            self._writer.put(message)

    def _close_all(self, why: str) -> None:
        for series in self._series.values():
            self._report(series)
        if why != CLOSED:
            self._writer.text(f"ERR {why}")
        self._writer.put([CLOSE.to_bytes(2, "little")])
