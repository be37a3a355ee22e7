"""OpenIGTLink server: IMAGE in, label IMAGE out at the same place and time, for ultrasound consoles and 3D Slicer.

Every image is answered: by a label image whose device name has the suffix `_seg`, or by a STATUS with that name that
says why there is none. A recurrent bundle remembers the frames of a connection, by their time stamps; another device
name or pixel size begins a new clip.
"""

import select
import socket
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgeseg.container import Bundle, open_bundle
from edgeseg.runtime.stream import Stream
from edgeseg.serve import igtl_wire as wire
from edgeseg.serve.common import Log, Stop, listen
from edgeseg.serve.igtl_session import Limits, Session


class Streams:
    """Warm Streams of a bundle, each lent to one client at a time; so many are made as there are clients at once."""

    def __init__(self, bundle: Bundle, backend: str, precision: str, threads: int | None) -> None:
        self._settings = bundle, backend, precision, threads
        self._free: list[Stream] = []
        self._lock = threading.Lock()

    def take(self) -> Stream:
        with self._lock:  # one is made at a time: all cores work on it
            if self._free:
                return self._free.pop()
            stream = Stream(*self._settings)
            stream.warm_up()
            return stream

    def give(self, stream: Stream) -> None:
        stream.reset()
        with self._lock:
            self._free.append(stream)


class Server:
    """Listens as soon as it is made, at `address`; serves in `serve`.

    Args:
        bundle, backend, precision, threads: as of `Stream`, for each client.
        host, port: port 0 is any free one.
        log: takes lines, in any thread.

    Raises:
        EdgesegError: no pyigtl or fastcrc, what `Stream` refuses, an address that cannot be had.
    """

    def __init__(self, bundle: Bundle | Path | str, host: str, port: int, backend: str = "openvino",
                 precision: str = "auto", threads: int | None = None, log: Log = lambda line: None,
                 limits: Limits | None = None) -> None:
        wire.messages(), wire.crc64()  # a package that is missing is said now
        self.limits, self.log = limits or Limits(), log
        self.streams = Streams(bundle if isinstance(bundle, Bundle) else open_bundle(bundle), backend, precision,
                               threads)
        self.streams.give(self.streams.take())  # what cannot work fails here, and the first client does not wait
        self._listener = listen(host, port)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._sessions: dict[threading.Thread, Session] = {}
        self._clients = 0

    def serve(self, stop: Stop) -> None:
        """Accept clients until `stop` is set; then every connection is closed and the port is free."""
        self._listener.setblocking(False)
        sources: list[Any] = [self._listener, stop]
        try:
            while stop not in select.select(sources, [], [])[0]:
                try:
                    connection, (_, port, *_) = self._listener.accept()
                except BlockingIOError:  # gone before it was its turn
                    continue
                except OSError as error:  # no file handle left, say: those who are served are served on
                    self.log(f"cannot accept a client: {error.strerror or error}")
                    stop.wait(1)
                    continue
                self._welcome(connection, port)
        finally:
            self._listener.close()
            for session in self._sessions.values():
                session.end()
            for thread in self._sessions:
                thread.join()

    def _welcome(self, connection: socket.socket, port: int) -> None:
        self._clients += 1
        name = f"client {self._clients}"
        self._sessions = {t: s for t, s in self._sessions.items() if t.is_alive()}
        if len(self._sessions) >= self.limits.clients:
            self.log(f"{name} (port {port}): turned away, {len(self._sessions)} are served")
            with connection, suppress(OSError):  # it may be gone
                connection.settimeout(1)
                connection.sendall(wire.status(wire.BUSY, f"{self.limits.clients} clients are served already"))
            return
        self.log(f"{name} (port {port}): connected")
        session = Session(connection, self.limits, lambda text: self.log(f"{name}: {text}"), self.streams.take,
                          self.streams.give)
        thread = threading.Thread(target=session.run, name=name, daemon=True)
        self._sessions[thread] = session
        thread.start()
