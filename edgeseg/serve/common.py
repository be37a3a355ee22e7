"""What the servers share: where they listen, when they stop, what they log, and a Segmenter for each connection."""

import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.runtime.segmenter import Segmenter

LOOPBACK = ("127.0.0.1", "::1", "localhost")
BACKLOG = 16
"""Connections that the system holds until they are accepted."""

Log = Callable[[str], None]


def logger(server: str) -> Log:
    """A function that writes one line to stderr, for example `2026-01-31T12:00:00 mrd client 3: closed`.

    A line names clients and objects by number: nothing that came from a patient belongs in it. From any thread; a
    stderr that is gone stops nobody.
    """
    lock = threading.Lock()

    def log(line: str) -> None:
        with lock, suppress(OSError, ValueError):
            print(time.strftime("%Y-%m-%dT%H:%M:%S"), server, " ".join(line.split()), file=sys.stderr, flush=True)

    return log


class Stop:
    """Something to wait for: `set` from a signal handler or any thread, for good. Can stand in a `select`."""

    def __init__(self) -> None:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)

    def set(self, *_: Any) -> None:
        with suppress(BlockingIOError):  # an Event's lock could be held by the very thread that a signal interrupts
            self._write.send(b".")

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it was set; waits for that at most `seconds`."""
        return bool(select.select([self._read], [], [], seconds)[0])

    def fileno(self) -> int:
        return self._read.fileno()

    def close(self) -> None:
        self._read.close()
        self._write.close()


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """A Stop that SIGTERM and SIGINT set as long as the block runs. Of the main thread only."""
    stop = Stop()
    before = {number: signal.signal(number, stop.set) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop.close()


def warn_if_open(host: str, log: Log) -> None:
    """Say what it means to listen on anything but this machine's loopback."""
    if host not in LOOPBACK:
        log(f"warning: listening on {host}: whoever reaches that address may send images; there is no password")


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 is any free one (`getsockname` says which).

    Raises:
        EdgesegError: the address is not this machine's, or the port is taken.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise EdgesegError(f"--host {host} --port {port}: {why}: choose another") from None


class Segmenters:
    """At most `most` Segmenters of one bundle, each in one connection's hands at a time.

    The first is loaded and warm before any client comes, so that a bundle or a precision that does not work is an
    error at the start; others are loaded when a client needs one, and kept.

    Raises:
        EdgesegError: as `Segmenter`.
    """

    def __init__(self, bundle: Bundle | Path | str, backend: str = "openvino", precision: str = "auto",
                 threads: int | None = None, most: int = 1) -> None:
        self.first = Segmenter(bundle, backend, precision, threads)
        self.first.warm_up()
        self.most = most
        self._free, self._taken, self._lock = [self.first], 0, threading.Lock()

    def take(self) -> Segmenter | None:
        """A warm Segmenter, to be given back; None when all are taken."""
        with self._lock:
            if self._taken >= self.most:
                return None
            self._taken += 1
            if self._free:
                return self._free.pop()
        try:
            segmenter = Segmenter(self.first.bundle, self.first.backend, self.first.precision, self.first.threads)
            segmenter.warm_up()
        except BaseException:
            with self._lock:
                self._taken -= 1
            raise
        return segmenter

    def give(self, segmenter: Segmenter) -> None:
        with self._lock:
            self._taken -= 1
            self._free.append(segmenter)
