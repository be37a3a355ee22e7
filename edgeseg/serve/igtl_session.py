"""One OpenIGTLink client: its images in, label images out, each in the order in which it came.

One thread reads and segments; it also sends what the connection takes at once, another one the rest. Who sends faster
than images are segmented is slowed down by TCP. Who reads slower than label images are made loses the oldest that are
not sent yet, and is told by a STATUS of code 8 (overflow) in front of the next one.
"""

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from edgeseg.geometry import canvas_shape
from edgeseg.runtime.frame_graph import SPACING_TOLERANCE
from edgeseg.runtime.stream import Stream
from edgeseg.serve import igtl_wire as wire
from edgeseg.serve.common import Log
from edgeseg.serve.igtl_frames import frame_of
from edgeseg.serve.igtl_wire import Header, Lost, Refused

SEGMENTED = ("gap:", "time:", "stall:")
"""How the status of a frame begins that a `Stream` has segmented nevertheless."""
MAX_CANVAS, MAX_WINDOWS = 2**22, 9
"""Pixels of a resampled frame, and windows of one where each has a network of its own (a recurrent bundle): a matrix
with a wrong pixel size is not to cost seconds or gigabytes."""
LINES = 20
"""Lines in the log about one client before its farewell."""
SEND_BUFFER = 2**18
"""Bytes of replies that the system holds for a client: some label images, so that a slow client's are not old."""
TICK = 1.0
"""Seconds between two looks at the clock."""


@dataclass(frozen=True)
class Limits:
    """clients: at once. body: bytes of one message. replies: that wait for a client. stall: seconds for the whole of a
    message once it has begun, and without progress for a reply."""

    clients: int = 8
    body: int = 2**25
    replies: int = 8
    stall: float = 20.0


class Outbox:
    """Replies that are not sent yet, in order; a full one loses its oldest.

    Args:
        now: sends what can be sent of a reply without waiting, and returns how many bytes that were. It is asked when
            no other reply is on its way: waking a thread for each costs a tenth of a frame's time.
    """

    def __init__(self, size: int, now: Callable[[bytes], int] = lambda reply: 0) -> None:
        self.size, self.dropped, self.closed = size, 0, False
        self._now = now
        self._replies: deque[bytes | memoryview] = deque()
        self._untold = 0
        self._busy = self._begun = False
        """Whether a reply was taken and the next call of `take` is still to come; whether the oldest is the rest of one
        of which something is sent already."""
        self._changed = threading.Condition()

    def put(self, reply: bytes) -> None:
        with self._changed:
            if not (self._replies or self._busy):
                count = self._now(reply)
                if count == len(reply):
                    return
                self._begun = count > 0
                self._replies.append(memoryview(reply)[count:])
            else:
                if len(self._replies) >= self.size + self._begun:
                    del self._replies[int(self._begun)]
                    self.dropped += 1
                    self._untold += 1
                self._replies.append(reply)
            self._changed.notify()

    def take(self) -> tuple[bytes | memoryview, int] | None:
        """The oldest reply, and how many were lost before it since the last call; None once it is closed and empty."""
        with self._changed:
            self._busy = False
            self._changed.wait_for(lambda: self._replies or self.closed)
            if not self._replies:
                return None
            self._busy = True
            if self._begun:  # nothing may come between the parts of a reply
                self._begun = False
                return self._replies.popleft(), 0
            untold, self._untold = self._untold, 0
            return self._replies.popleft(), untold

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify()


class Session:
    """A connected client from its first byte to its last. `run` returns when it is gone and never raises.

    Args:
        connection: its socket, closed at the end.
        say: takes lines for the log, which hold nothing of what a client sent but numbers.
        take, give: borrow a Stream for the first image, and give it back.
    """

    def __init__(self, connection: socket.socket, limits: Limits, say: Log,
                 take: Callable[[], Stream], give: Callable[[Stream], None]) -> None:
        self.connection, self.limits, self._say, self._take, self._give = connection, limits, say, take, give
        self._at_once = connection.dup()
        self._at_once.settimeout(0)
        self.outbox = Outbox(limits.replies, self._send_now)
        self.images = self.labelled = self.refused = self.lines = 0
        self._stream: Stream | None = None
        self._device = b""
        self._deadline = 0.0
        connection.settimeout(min(TICK, limits.stall / 4))
        with suppress(OSError):  # a client that has gone already has no options
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # a peer without power says nothing

    def say(self, text: str) -> None:
        self.lines += 1
        if self.lines <= LINES:
            self._say(text + (" (the last line before it leaves)" if self.lines == LINES else ""))

    def end(self) -> None:
        """From another thread: let `run` return soon."""
        with suppress(OSError):  # it is gone already
            self.connection.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        sender = threading.Thread(target=self._send_all, daemon=True)
        sender.start()
        why = "left"
        try:
            while self._message():
                pass
        except Lost as error:
            why = str(error)
            self.outbox.put(wire.status(error.code, why))
        except OSError as error:
            why = f"connection lost: {error.strerror or error}"
        except Exception as error:  # whatever a client made fail, the others are served on
            why = f"failed: {type(error).__name__}"  # its text might hold what the client sent
            self.outbox.put(wire.status(wire.FAILED, why))
        finally:
            self.outbox.close()
            if self._stream:  # before the client can know that it has ended: the next one may have it
                self._give(self._stream)
            sender.join(self.limits.stall)  # who has sent its last image may still wait for the answer
            self._farewell()
            self.end()
            self.connection.close()
            self._at_once.close()
            sender.join()
        self._say(f"{why}; {self.images} images: {self.labelled} segmented, {self.refused} refused; "
                  f"{self.outbox.dropped} replies dropped")

    def _farewell(self) -> None:
        """Read on for a moment: a connection closed with bytes unread takes its last reply with it."""
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            until = time.monotonic() + TICK
            while time.monotonic() < until and self.connection.recv(65536):
                pass

    def _message(self) -> bool:
        """Read and answer one message; False at the end of the connection."""
        if (raw := self._receive(wire.HEADER.size, first=True)) is None:
            return False
        header = wire.parse_header(bytes(raw))
        if header.size > self.limits.body:
            raise Lost(wire.RESOURCE, f"a body of {header.size} bytes: at most {self.limits.body} are taken")
        if header.type != "IMAGE":
            self._skip(header.size)
            self._other(header.type)
            return True
        body = self._receive(header.size)
        assert body is not None
        self.images += 1
        try:
            self._image(header, body)
        except Refused as error:
            self.refused += 1
            self.say(f"image {self.images} refused: {error}")
            self.outbox.put(wire.status(error.code, str(error), header.reply_device, header.stamp))
        return True

    def _image(self, header: Header, body: memoryview) -> None:
        image = wire.unpack_image(header, body)
        stream = self._stream = self._stream or self._take()
        frame, spacing = frame_of(image, len(stream.preprocessing.channels))
        if not np.allclose(spacing, stream.spacing, rtol=SPACING_TOLERANCE, atol=0) or header.device != self._device:
            stream.reset()  # another probe or depth: a new clip
        stream.spacing, self._device = spacing, header.device
        if problem := too_large(stream, frame):
            raise Refused(wire.FAILED, problem)
        found = stream.push(frame, header.seconds)
        if not found.ok:
            if not found.status.startswith(SEGMENTED):
                raise Refused(wire.FAILED, found.status)
            self.say(f"image {self.images}: {found.status}")
            self.outbox.put(wire.status(wire.OK, found.status, header.reply_device, header.stamp))
        self.labelled += 1
        self.outbox.put(wire.label_image(header, image.head, found.labels))

    def _other(self, kind: str) -> None:
        """A message that is no image. Poses, texts and the like, of which a console sends many, go unanswered."""
        if kind == "GET_CAPABIL":
            self.outbox.put(wire.capability())
        elif kind == "GET_STATUS":
            self.outbox.put(wire.status(wire.OK, f"{self.labelled} of {self.images} images segmented"))
        elif kind.startswith(("GET_", "STT_", "STP_")):
            self.say("a query that is not supported")
            self.outbox.put(wire.status(wire.UNKNOWN, "not supported: send IMAGE, label images come back"))

    def _receive(self, count: int, first: bool = False) -> memoryview | None:
        """`count` bytes. They may take `limits.stall` seconds together with the rest of their message.

        With `first` they begin a message: then waiting is no stall, and the end of the connection is None.
        """
        buffer, got = np.empty(count, np.uint8).data, 0  # its pages come with the bytes
        while got < count:
            waiting = first and not got
            try:
                n = self.connection.recv_into(buffer[got:])
            except TimeoutError:
                n = -1
            if n == 0 and waiting:
                return None
            if n == 0:
                raise Lost(wire.TIMEOUT, "it ended in the middle of a message")
            if waiting:
                self._deadline = time.monotonic() + self.limits.stall
            elif time.monotonic() > self._deadline:
                raise Lost(wire.TIMEOUT, f"a message took more than {self.limits.stall:g} s")
            got += max(0, n)
        return buffer

    def _skip(self, count: int) -> None:
        while count > 0:
            self._receive(min(count, 65536))
            count -= 65536

    def _send_all(self) -> None:
        """The sending thread."""
        try:
            while taken := self.outbox.take():
                reply, dropped = taken
                if dropped:
                    self.say(f"reads too slowly: {dropped} replies dropped")
                    self._send(wire.status(wire.OVERFLOW, f"{dropped} replies were dropped: they are made faster than "
                                                          "this connection takes them"))
                self._send(reply)
        except OSError as error:
            if not self.outbox.closed:
                self.say(f"takes no replies: {error.strerror or error}")
            self.end()  # so that the reading thread ends as well

    def _send_now(self, message: bytes) -> int:
        try:
            return self._at_once.send(message)
        except OSError:  # it would have to wait, or the sending thread will find out what is wrong
            return 0

    def _send(self, message: bytes | memoryview) -> None:
        left, deadline = memoryview(message), time.monotonic() + self.limits.stall
        while left:
            try:
                left = left[self.connection.send(left) :]
                deadline = time.monotonic() + self.limits.stall
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise


def too_large(stream: Stream, frame: np.ndarray) -> str:
    """Why a frame of the stream's spacing would cost too much; "" where it does not, or where `push` will refuse it."""
    if not all(np.isfinite(s) and s > 0 for s in stream.spacing):
        return ""
    shape = canvas_shape((frame.shape[-2], frame.shape[-1]), stream.spacing, stream.preprocessing.spacing)
    if shape[0] * shape[1] > MAX_CANVAS or (stream.recurrent and len(stream.preprocessing.starts(shape)) > MAX_WINDOWS):
        return f"pixels of {stream.spacing[0]:g} x {stream.spacing[1]:g} mm make an image of {shape[0]} x {shape[1]}"
    return ""
