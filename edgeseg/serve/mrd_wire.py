"""MRD v1 messages on a socket: read with every size checked before a byte is stored for it, written through a queue.

A message is a uint16 number and a body. Of an image the four parts (header, length of the attributes, attributes,
pixels) are kept as the bytes that came, so that they can go back unchanged; what the server has no use for (config,
header XML, text, acquisitions, waveforms) is read past and never stored. The `ismrmrd` package's own deserialiser
believes every size that a message states, so only its structures are used for reading, and its serialiser for writing.

A body whose length is not known, as of an unknown message, leaves no way to find the next message: the session ends.
"""

import ctypes
import math
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from edgeseg.errors import need

CONFIG_FILE, CONFIG_TEXT, HEADER, CLOSE, TEXT, ACQUISITION, IMAGE, WAVEFORM = 1, 2, 3, 4, 5, 1008, 1022, 1026
NAMES = {CONFIG_FILE: "config file", CONFIG_TEXT: "config", HEADER: "header", CLOSE: "close", TEXT: "text",
         ACQUISITION: "acquisition", IMAGE: "image", WAVEFORM: "waveform"}
CONFIG_FILE_BYTES = 1024
DTYPES = {number: np.dtype(name) for number, name in
          enumerate(("<u2", "<i2", "<u4", "<i4", "<f4", "<f8", "<c8", "<c16"), 1)}
"""Pixel types by `data_type`, as the MRD specification has them. ismrmrd 1.15.0 takes type 4 for int64 on Linux and so
writes 8 bytes for each of its pixels where the specification and every other implementation have 4."""
MAX_TEXT = 2**24
"""Bytes of a text or of an image's attributes; the XML header of a clinical protocol has about 1e6."""
MAX_DATA = 2**25
"""Bytes of pixels or samples in one message: 4096 x 4096 of 16 bit, or a 320 x 320 x 160 volume."""
PIECE = 2**18
"""Bytes written, or read past, at a time."""
LINGER = 2.0
"""Seconds for a client to read what was sent last and to hang up; closing earlier could destroy it on the way."""


def package() -> ModuleType:
    """ismrmrd, imported on first use; EdgesegError that names the extra when it is not installed."""
    return need("ismrmrd", "mrd")


Message = tuple[bytes | bytearray | memoryview, ...]
"""The parts of a message, to be written one behind the other."""


class Broken(Exception):
    """Why a client cannot be served any longer, in one line."""


@dataclass(frozen=True)
class Original:
    """An image as it came: its header (ismrmrd.ImageHeader) and all its bytes, message number included."""

    head: Any
    parts: tuple[bytes | bytearray, ...]

    @property
    def attributes(self) -> bytes:
        return bytes(self.parts[3])

    @property
    def is_complex(self) -> bool:
        return DTYPES[self.head.data_type].kind == "c"

    def pixels(self) -> np.ndarray:
        """[channels, z, y, x] of the type on the wire; shares memory with `parts`."""
        x, y, z = self.head.matrix_size
        return np.frombuffer(self.parts[4], DTYPES[self.head.data_type]).reshape(self.head.channels, z, y, x)


class Reader:
    """Messages from a socket.

    Args:
        idle: seconds that a client may be silent between two messages.
        stall: seconds that it may be silent within one.
    """

    def __init__(self, sock: socket.socket, idle: float, stall: float) -> None:
        self._sock, self._idle, self._stall = sock, idle, stall
        self._scratch = bytearray(PIECE)

    def read(self) -> Original | int:
        """The next message: an image, or the number of one whose body was read past.

        Raises:
            Broken: the client left or stalled, an unknown number, a size that is out of bounds.
        """
        self._sock.settimeout(self._idle)
        number = struct.unpack("<H", self._exactly(2, "message"))[0]
        if number not in NAMES:
            raise Broken(f"unknown message {number}: its length is not known, so nothing after it can be read")
        name = NAMES[number]
        if number == IMAGE:
            return self._image()
        if number == CONFIG_FILE:
            self._past(CONFIG_FILE_BYTES, name)
        elif number in (CONFIG_TEXT, HEADER, TEXT):
            self._past(bounded(struct.unpack("<I", self._exactly(4, name))[0], MAX_TEXT, name), name)
        elif number == ACQUISITION:
            head = self._struct(package().AcquisitionHeader, name)
            samples = head.number_of_samples * (4 * head.trajectory_dimensions + 8 * head.active_channels)
            self._past(bounded(samples, MAX_DATA, name), name)
        elif number == WAVEFORM:
            head = self._struct(package().WaveformHeader, name)
            self._past(bounded(4 * head.channels * head.number_of_samples, MAX_DATA, name), name)
        return number

    def _image(self) -> Original:
        head_bytes = self._exactly(ctypes.sizeof(package().ImageHeader), "image")
        head = package().ImageHeader.from_buffer_copy(head_bytes)
        length = self._exactly(8, "image")
        if head.data_type not in DTYPES:
            raise Broken(f"an image of unknown data type {head.data_type}: its length is not known")
        pixels = math.prod((*head.matrix_size, head.channels)) * DTYPES[head.data_type].itemsize
        bounded(pixels, MAX_DATA, "image")
        attributes = self._exactly(bounded(struct.unpack("<Q", length)[0], MAX_TEXT, "image's attributes"), "image")
        return Original(head, (struct.pack("<H", IMAGE), head_bytes, length, attributes,
                               self._exactly(pixels, "image")))

    def _struct(self, kind: Any, name: str) -> Any:
        return kind.from_buffer_copy(self._exactly(ctypes.sizeof(kind), name))

    def _exactly(self, count: int, name: str) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        while count:
            count -= self._receive(view[-count:], name)
        return data

    def _past(self, count: int, name: str) -> None:
        while count:
            count -= self._receive(memoryview(self._scratch)[: min(count, PIECE)], name)

    def _receive(self, view: memoryview, name: str) -> int:
        """Fill some of `view`; from the first byte of a message on, silence counts as a stall."""
        try:
            count = self._sock.recv_into(view)
        except TimeoutError:
            raise Broken(f"nothing came for {self._sock.gettimeout():g} s ({name})") from None
        except OSError as error:
            raise Broken(f"the client is gone ({error.strerror or type(error).__name__})") from None
        if not count:
            raise Broken("the client left without a close" if name == "message" and len(view) == 2
                         else f"the client left inside a message ({name})")
        self._sock.settimeout(self._stall)
        return count

    def linger(self) -> None:
        """Wait until the client has hung up, LINGER seconds at most; what it still sends is dropped."""
        end = time.monotonic() + LINGER
        with suppress(OSError):
            while (left := end - time.monotonic()) > 0:
                self._sock.settimeout(left)
                if not self._sock.recv_into(self._scratch):
                    return


def bounded(size: int, limit: int, name: str) -> int:
    """`size` unless it is above `limit`, which no client of good faith needs."""
    if size > limit:
        raise Broken(f"a message says that it has {size:,} bytes ({name}), more than the {limit:,} that are read")
    return size


class Writer:
    """Messages to a socket: what it takes at once is written at once, the rest by a thread of its own, so that a client
    may send everything before it reads.

    Args:
        limit: bytes that wait at most; `put` blocks beyond them (a single larger message goes alone).
        stall: seconds without progress after which the client counts as gone.
    """

    def __init__(self, sock: socket.socket, limit: int, stall: float) -> None:
        self._sock, self._limit = sock.dup(), limit  # a socket object has one time limit: not that of the reader
        self._sock.settimeout(stall)
        self._at_once = sock.dup()
        self._at_once.settimeout(0)
        self._waiting: deque[Message] = deque()
        self._bytes, self._ended, self.failed = 0, False, ""
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def put(self, parts: Iterable[bytes | bytearray | memoryview]) -> None:
        """Queue one message.

        Raises:
            Broken: nothing can be written any more.
        """
        message = tuple(parts)
        size = sum(map(len, message))
        with self._changed:
            self._changed.wait_for(lambda: self.failed or not self._bytes or self._bytes + size <= self._limit)
            if not (self.failed or self._bytes):  # the thread has nothing to write, so that this keeps the order
                message = self._now(message)
            if self.failed:
                raise Broken(self.failed)
            if message:
                self._waiting.append(message)
                self._bytes += sum(map(len, message))
                self._changed.notify_all()

    def _now(self, message: Message) -> Message:
        """Write what the socket takes without waiting; what is left."""
        try:
            count = self._at_once.sendmsg(message)
        except BlockingIOError:
            return message
        except OSError as error:
            self._lost(error)
            return ()
        left = [memoryview(part) for part in message]
        while left and count >= len(left[0]):
            count -= len(left.pop(0))
        return (left[0][count:], *left[1:]) if left else ()

    def text(self, line: str) -> None:
        data = line.encode()
        self.put((struct.pack("<HI", TEXT, len(data)), data))

    def end(self) -> None:
        """Write what waits, say that no more will come, and stop."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._sock.close()
        self._at_once.close()

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._ended)
                    if not self._waiting:
                        return
                    message = self._waiting.popleft()
                for part in message:
                    for start in range(0, len(part), PIECE):  # the time limit is for one call: progress counts
                        self._sock.sendall(memoryview(part)[start : start + PIECE])
                with self._changed:
                    self._bytes -= sum(map(len, message))
                    self._changed.notify_all()
        except TimeoutError:
            self._fail(f"the client read nothing for {self._sock.gettimeout():g} s")
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        self._fail(f"the client is gone ({error.strerror or type(error).__name__})")

    def _fail(self, why: str) -> None:
        with self._changed:
            self.failed = why
            self._waiting.clear()
            self._changed.notify_all()
