"""DICOM node: images in by C-STORE, segmentations out by C-STORE. `Node` puts the parts together.

    client -> on_store -> check -> spool (on disk: success is answered) -> arrivals (complete?) -> work -> sender
"""

import logging
import ssl
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from edgeseg.errors import need
from edgeseg.readers.dicom_image import Unusable, short_hash
from edgeseg.runtime.dicom_seg import Kind, Maker
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve import dicom_network as network
from edgeseg.serve.common import Log
from edgeseg.serve.dicom_arrivals import Arrivals
from edgeseg.serve.dicom_check import STORAGES, examine, transfer_syntaxes
from edgeseg.serve.dicom_send import Receiver, Sender
from edgeseg.serve.dicom_spool import Spool
from edgeseg.serve.dicom_work import Work

OUT_OF_RESOURCES, DUPLICATE, CANNOT_UNDERSTAND = 0xA700, 0x0111, 0xC000
"""Statuses of C-STORE (DICOM PS3.7 C and PS3.4 B.2.3)."""
VERIFICATION = "1.2.840.10008.1.1"
"""The class of C-ECHO."""
OF_BEFORE = -1
"""The association of what an earlier run of the node received."""
MANY = 50
"""Objects in one association from which on it is worth a process of its own to write what will be made of them."""
LAST = 5.0
"""Seconds that the series in work and the delivery under way have when the node ends; what is not done by then is done
after the next start."""


@dataclass(frozen=True)
class Settings:
    """`folder`: of the spool. `quiet`: seconds; `expected`: objects of a series, 0 for none (`dicom_arrivals`).

    `allow_titles`: calling AE titles, `allow_addresses`: IP addresses and networks; empty ones allow all.
    """

    folder: Path
    title: str = "EDGESEG"
    host: str = "127.0.0.1"
    port: int = 0
    send_to: Receiver | None = None
    kind: Kind = "BINARY"
    report: bool = False
    quiet: float = 2.0
    expected: int = 0
    allow_titles: tuple[str, ...] = ()
    allow_addresses: tuple[str, ...] = ()
    tls: ssl.SSLContext | None = None
    send_tls: ssl.SSLContext | None = None


class Node:
    """Listens as soon as it is made, at `address`; works from `start` on, until `close`.

    Raises:
        EdgesegError: no pynetdicom or highdicom, an address or a folder that cannot be had.
    """

    def __init__(self, segmenter: Segmenter, settings: Settings, log: Log = lambda line: None) -> None:
        need("highdicom", "dicom")
        quieten()
        self.settings, self.log = settings, log
        self.spool = Spool(settings.folder)
        self.arrivals = Arrivals(settings.quiet, settings.expected)
        self.work = Work(segmenter, self.spool, Maker.of(segmenter, settings.kind), settings.report, log)
        self.sender = (Sender(settings.send_to, settings.title, log, settings.send_tls) if settings.send_to else None)
        self.budget = network.Budget()
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._counts: dict[int, list[int]] = {}
        self._lock = threading.Lock()
        self._count, self._ended = 0, False
        try:
            self.server = network.make_server(self._entity(), settings.host, settings.port, self._handlers(),
                                              network.Addresses(settings.allow_addresses), settings.tls, log)
        except BaseException:
            self.spool.close()
            raise
        self.address: tuple[str, int] = self.server.server_address[:2]
        self._threads = [threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True),
                         threading.Thread(target=self._work, daemon=True)]

    def start(self) -> None:
        """Serve, and go on with what an earlier run left."""
        for series, count in self.spool.incoming().items():
            self.arrivals.stored(series, OF_BEFORE, count=count)
        if self.sender:
            self.sender.start()
            for folder in self.spool.results():
                self.sender.add(folder)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Free the port, end what is under way; what is not done stays in the folder for the next start."""
        self._ended = True
        self.server.shutdown()
        for association in self.server.active_associations:
            association.abort()
        self.arrivals.wake()
        self._threads[1].join(LAST)
        self.work.writer.close()
        if self.sender:
            for folder in self.sender.close(LAST):
                self.log(f"results {folder.name}: not delivered, they stay in results/{folder.name}")
        self.spool.close()

    def _work(self) -> None:
        left = self.spool.ready()
        while not self._ended:
            folder = left.pop(0) if left else None
            if folder is None:
                series = self.arrivals.next(0.5)
                folder = self.spool.take(series) if series else None
            if folder is None:
                continue
            try:
                results = self.work.do(folder)
                if results and self.sender:
                    self.sender.add(results)
            except Exception as error:  # a full disk: the series stays in ready/ for the next start
                self.log(f"series {folder.name}: failed ({type(error).__name__}); it stays in ready/{folder.name}")

    def _entity(self) -> Any:
        pynetdicom = need("pynetdicom", "dicom")
        from pydicom import uid

        ae = pynetdicom.AE(ae_title=self.settings.title)
        ae.add_supported_context(VERIFICATION)
        for name in STORAGES:
            ae.add_supported_context(getattr(uid, name), transfer_syntaxes())
        ae.require_calling_aet = list(self.settings.allow_titles)
        ae.maximum_associations, ae.maximum_pdu_size = network.MAX_ASSOCIATIONS, network.MAX_PDU
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = network.TIMEOUT
        return ae

    def _handlers(self) -> list[Any]:
        from pynetdicom import evt

        return [(evt.EVT_CONN_OPEN, self._on_open), (evt.EVT_C_STORE, self._on_store), (evt.EVT_C_ECHO, self._on_echo),
                (evt.EVT_ACCEPTED, self._on_accepted), (evt.EVT_REJECTED, self._on_rejected),
                (evt.EVT_RELEASED, self._on_released), (evt.EVT_CONN_CLOSE, self._on_closed)]

    def _number(self, event: Any) -> int:
        """Associations are named by number: what they call themselves came from outside."""
        with self._lock:
            if event.assoc not in self._numbers:
                self._count += 1
                self._numbers[event.assoc] = self._count
                self._counts[self._count] = [0, 0]
            return self._numbers[event.assoc]

    def _on_open(self, event: Any) -> None:
        self._number(event)
        network.limit_reading(event.assoc, self.budget)

    def _on_accepted(self, event: Any) -> None:
        number = self._number(event)
        self.log(f"association {number}: accepted from {event.assoc.requestor.address}")
        for context in event.assoc.requestor.requested_contexts:
            if refused := self._refused(context):
                self.log(f"association {number}: refused {refused}")

    def _refused(self, context: Any) -> str:
        """The names of what a requested context has that is not received here; "" when something of it is."""
        mine = {c.abstract_syntax: c.transfer_syntax for c in self.server.contexts}
        name = known(context.abstract_syntax, "class")
        if context.abstract_syntax not in mine:
            return name
        if set(context.transfer_syntax) & set(mine[context.abstract_syntax]):
            return ""
        return f"{name} in {', '.join(known(s, 'transfer syntax') for s in context.transfer_syntax)}"

    def _on_rejected(self, event: Any) -> None:
        self.log(f"association {self._number(event)}: rejected, from {event.assoc.requestor.address}")

    def _on_released(self, event: Any) -> None:
        self.arrivals.ended(self._number(event), released=True)

    def _on_closed(self, event: Any) -> None:
        number = self._number(event)
        self.budget.free(event.assoc)
        if event.assoc.requestor.primitive is None:
            # gone without a request, as port scans and health checks do: pynetdicom would hold its thread until the
            # time for one has run out
            event.assoc.dul.to_user_queue.put(None)
        self.arrivals.ended(number, released=False)
        with self._lock:
            kept, aside = self._counts.pop(number, (0, 0))
        if kept or aside:
            self.log(f"association {number}: ended, {kept} objects received"
                     + (f", {aside} in quarantine" if aside else ""))

    def _on_echo(self, event: Any) -> int:
        self.budget.free(event.assoc)
        return 0x0000

    def _on_store(self, event: Any) -> Any:
        """The handler of C-STORE: success means that the object is on disk."""
        number = self._number(event)
        try:
            return self._store(event, number)
        except (OSError, MemoryError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            self.log(f"association {number}: an object could not be stored: {why}")
            return OUT_OF_RESOURCES
        finally:
            self.budget.free(event.assoc)

    def _store(self, event: Any, number: int) -> Any:
        from pynetdicom.dsutils import encode_file_meta

        announced = str(event.request.AffectedSOPInstanceUID)
        if event.request.DataSet is None:
            return CANNOT_UNDERSTAND
        path = self.spool.receive((b"\0" * 128 + b"DICM", encode_file_meta(event.file_meta),
                                   event.request.DataSet.getbuffer()))
        try:
            found = examine(path, announced)
        except Unusable as error:
            return self._set_aside(path, number, announced, str(error), CANNOT_UNDERSTAND)
        except (OSError, MemoryError):
            path.unlink(missing_ok=True)
            raise
        except Exception as error:
            return self._set_aside(path, number, announced, f"cannot be read ({type(error).__name__})",
                                   CANNOT_UNDERSTAND)
        how = self.spool.keep(path, found.series, found.instance)
        if how == "other":
            return self._set_aside(path, number, announced, "another object with its SOPInstanceUID is already there",
                                   DUPLICATE)
        if how == "new":
            self.arrivals.stored(found.series, number, found.expected)
        self._counted(number, 0)
        return 0x0000

    def _counted(self, number: int, kind: int) -> None:
        with self._lock:
            if number in self._counts:  # not when its connection has ended in the meantime
                self._counts[number][kind] += 1
                if self._counts[number][0] == MANY:
                    self.work.writer.start()

    def _set_aside(self, path: Path, number: int, announced: str, why: str, status: int) -> Any:
        from pydicom.dataset import Dataset

        self.spool.set_aside(path, why)
        self._counted(number, 1)
        self.log(f"association {number}: object {short_hash(announced.encode(), 8)} in quarantine: {why}")
        answer = Dataset()
        answer.Status, answer.ErrorComment = status, why[:64]
        return answer


def known(uid: Any, kind: str) -> str:
    """The name of a UID of the standard; of another one nothing, it is whatever the client chose to send."""
    return str(uid.name) if uid.name != str(uid) else f"an unknown {kind}"


def quieten() -> None:
    """The libraries' own warnings and log lines quote what is in the objects: they are switched off."""
    warnings.simplefilter("ignore")
    for name in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
