"""The MRD server: `edgeseg serve mrd`, the ISMRMRD stream that Siemens FIRE and OpenRecon and Gadgetron speak.

A thread for each connection, each with a Segmenter of its own; a client above the limit is told so and sent away. What
one client does, or fails to do, stays in its session (`mrd_session`). Memory of a session is bounded: the bytes that
wait for it (`Settings.queue_bytes`), one image that comes in (`mrd_wire.MAX_DATA`), one that is segmented, and one mask
of each series that is open (`mrd_session.MAX_SERIES`).
"""

import select
import socket
import threading
import time
from functools import partial

from edgeseg.serve.common import Log, Segmenters, Stop
from edgeseg.serve.mrd_session import Session, Settings

SENT_AWAY = 16
"""Clients that are being told, at one time, that there is no place; any more are hung up on."""
LAST_SECONDS = 5.0
"""For all sessions together to send what they have when the server stops."""


class MrdServer:
    """Serves one bundle on a listening socket."""

    def __init__(self, listener: socket.socket, segmenters: Segmenters, settings: Settings, log: Log) -> None:
        self._listener, self._segmenters, self._settings, self._log = listener, segmenters, settings, log
        self._live: dict[int, tuple[threading.Thread, Session | None]] = {}
        self._lock = threading.Lock()

    def run(self, stop: Stop) -> None:
        """Accept clients until `stop`, then end their sessions and free the port."""
        number = 0
        self._listener.settimeout(1)  # a client that is gone again between select and accept must not hold us
        with self._listener:
            while True:
                select.select([self._listener.fileno(), stop.fileno()], [], [])
                if stop.wait(0):
                    break
                try:
                    sock, _ = self._listener.accept()
                except OSError as error:  # gone before it was accepted, or no file descriptor left
                    self._log(f"a client could not be accepted: {error.strerror or type(error).__name__}")
                    stop.wait(0.1)
                    continue
                number += 1
                self._start(number, sock)
        self._end()

    def _start(self, number: int, sock: socket.socket) -> None:
        with self._lock:
            if len(self._live) >= self._segmenters.most + SENT_AWAY:
                sock.close()
                return self._log(f"client {number}: hung up on, too many wait")
            thread = threading.Thread(target=self._serve, args=(number, sock), daemon=True)
            self._live[number] = thread, None
        try:
            thread.start()
        except RuntimeError:  # the system has no thread left
            sock.close()
            with self._lock:
                del self._live[number]
            self._log(f"client {number}: hung up on, no thread left")

    def _serve(self, number: int, sock: socket.socket) -> None:
        log = partial(self._say, number)
        try:
            with sock:
                log("connected")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                session = Session(sock, self._segmenters, self._settings, log)
                with self._lock:
                    self._live[number] = threading.current_thread(), session
                session.run()
        except Exception as error:  # whatever it is, the other clients are served on
            trace = error.__traceback__
            while trace and trace.tb_next:
                trace = trace.tb_next
            where = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}" if trace else "?"
            log(f"failed: {type(error).__name__} in {where}")  # its text might hold what the client sent
        finally:
            with self._lock:
                del self._live[number]

    def _say(self, number: int, line: str) -> None:
        self._log(f"client {number}: {line}")

    def _end(self) -> None:
        with self._lock:
            live = list(self._live.values())
        end = time.monotonic() + LAST_SECONDS
        for _, session in live:
            if session:
                session.stop()
        for thread, _ in live:
            thread.join(max(0.0, end - time.monotonic()))
