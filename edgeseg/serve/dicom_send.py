"""Results on their way to a receiver: each folder in one association, again and again until it was taken.

What was delivered is removed; what was not stays on disk, is named in the log, and is tried again after pauses that
double up to LONGEST seconds, also after a restart.
"""

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgeseg.errors import EdgesegError, need

FIRST, LONGEST = 1.0, 60.0
"""Seconds before the second attempt, and at most between two."""
NOT_TAKEN = "it does not take this class of objects"
TIMEOUT = 30.0
"""Seconds: to connect, and for each answer."""


@dataclass(frozen=True)
class Receiver:
    """Where results go; `title`: its AE title."""

    host: str
    port: int
    title: str = "ANY-SCP"

    @classmethod
    def parse(cls, text: str) -> "Receiver":
        """HOST:PORT or TITLE@HOST:PORT; an IPv6 address in brackets.

        Raises:
            EdgesegError: anything else.
        """
        title, _, place = text.rpartition("@")
        host, _, port = place.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not host or not port.isdigit() or not 0 < int(port) < 65536 or len(title) > 16:
            raise EdgesegError(f"--send-to {text}: write HOST:PORT or AE_TITLE@HOST:PORT")
        return cls(host, int(port), title or "ANY-SCP")


def send(files: list[Path], receiver: Receiver, title: str, tls: ssl.SSLContext | None = None) -> str:
    """Store files at the receiver, those that it took are removed. Returns why others are left, "" when none is."""
    pynetdicom = need("pynetdicom", "dicom")
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian

    pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True  # files go out as they are, instead of being parsed first
    ae = pynetdicom.AE(ae_title=title)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = TIMEOUT
    classes = {str(dcmread(f, specific_tags=["SOPClassUID"], stop_before_pixels=True).SOPClassUID) for f in files}
    for uid in sorted(classes):
        ae.add_requested_context(uid, ExplicitVRLittleEndian)  # what they are written in
    association = ae.associate(receiver.host, receiver.port, ae_title=receiver.title,
                               tls_args=(tls, receiver.host) if tls else None)
    if not association.is_established:
        if association.rejected_contexts:
            return NOT_TAKEN
        return "it rejected the association" if association.is_rejected else "it cannot be reached"
    why = ""
    try:
        for file in files:
            try:
                status = association.send_c_store(file).get("Status")
            except (ValueError, RuntimeError):
                status = None
                why = NOT_TAKEN if association.is_established else ""
            if status is not None and (status == 0 or 0xB000 <= status <= 0xBFFF):  # success, or with a warning
                file.unlink()
            else:
                why = why or (f"status 0x{status:04X}" if status is not None else "it gave no answer")
    finally:
        if association.is_established:
            association.release()
    return why


class Sender:
    """A thread that delivers folders of results.

    Args:
        title: of this node. say: takes log lines.
    """

    def __init__(self, receiver: Receiver, title: str, say: Callable[[str], None],
                 tls: ssl.SSLContext | None = None) -> None:
        self.receiver, self.title, self._say, self._tls = receiver, title, say, tls
        self._due: dict[Path, tuple[float, int]] = {}
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="dicom-sender", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def add(self, folder: Path) -> None:
        """Results of one series, whole."""
        with self._changed:
            self._due[folder] = (0.0, 0)
            self._changed.notify_all()

    def close(self, seconds: float) -> list[Path]:
        """End, in at most so many seconds; returns what is not delivered and stays."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            return sorted(self._due)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ended and not (ready := [f for f, (at, _) in self._due.items()
                                                         if at <= time.monotonic()]):
                    soonest = min((at for at, _ in self._due.values()), default=None)
                    self._changed.wait(None if soonest is None else max(0.01, soonest - time.monotonic()))
                if self._ended:
                    return
                folder = ready[0]
            self._deliver(folder)

    def _deliver(self, folder: Path) -> None:
        files: list[Path] = []
        try:
            files = sorted(folder.glob("*.dcm"))
            why = send(files, self.receiver, self.title, self._tls) if files else ""
            if not why:
                folder.rmdir()
        except Exception as error:  # a full disk, a file that somebody removed, ...: the thread goes on
            why = type(error).__name__
        with self._changed:
            tries = self._due.pop(folder)[1] + 1
            if why:
                pause = min(LONGEST, FIRST * 2 ** (tries - 1))
                self._due[folder] = (time.monotonic() + pause, tries)
        place = f"{self.receiver.host}:{self.receiver.port}"
        self._say(f"results {folder.name}: {len(files)} objects delivered to {place}" if not why else
                  f"results {folder.name}: NOT delivered to {place}, attempt {tries}: {why}; they stay in "
                  f"results/{folder.name}, next attempt in {pause:g} s")
