"""The DICOM network side of the node: what it listens to, from whom, how much of it, and with TLS.

pynetdicom speaks the protocol. Added here: an allow-list of addresses (refused before a byte is read), the TLS
handshake in the connection's own thread (a client that stalls in it stops nobody), and a limit for what all clients
together may have under way in memory.
"""

import ipaddress
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edgeseg.errors import EdgesegError, need

MAX_ASSOCIATIONS = 8
MAX_CONNECTIONS = 32
"""With those that have not asked for an association yet."""
MAX_PDU = 2**17
"""Bytes; senders are told so. Larger ones than twice that are not read."""
MAX_UNDER_WAY = 2**30
"""Bytes of objects that are being received, of all clients together."""
TIMEOUT = 30.0
"""Seconds that a client may keep silent before it is dropped: to ask for an association, and between two messages."""


def server_context(certificate: Path, key: Path | None, authority: Path | None) -> ssl.SSLContext:
    """TLS for what comes in; with an authority only clients whose certificate it signed are let in.

    Raises:
        EdgesegError: a file that is not there or is no certificate or key.
    """
    return with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key, authority)


def client_context(certificate: Path | None, key: Path | None, authority: Path | None) -> ssl.SSLContext:
    """TLS for what goes out; the receiver's certificate is checked against the authority (or the system's)."""
    context = ssl.create_default_context() if authority is None else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return with_files(context, certificate, key, authority)


def with_files(context: ssl.SSLContext, certificate: Path | None, key: Path | None,
               authority: Path | None) -> ssl.SSLContext:
    try:
        if certificate:
            context.load_cert_chain(certificate, key, password=lambda: "")  # never asks at a terminal
        if authority:
            context.load_verify_locations(authority)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        what = error.strerror or type(error).__name__
        raise EdgesegError(f"--tls-cert, --tls-key, --tls-ca: cannot be read ({what}): name PEM files that belong "
                           "together, the key without a password") from None
    return context


class Addresses:
    """An allow-list of addresses and networks (10.1.2.3, 10.1.0.0/16, ::1); an empty one allows all.

    Raises:
        EdgesegError: something else in the list.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self.networks = []
        for text in allowed:
            try:
                self.networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError:
                raise EdgesegError(f"--allow-address {text}: write an IP address or a network, as 10.1.0.0/16"
                                   ) from None

    def __contains__(self, host: str) -> bool:
        address = ipaddress.ip_address(host.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or address
        return not self.networks or any(mapped in network for network in self.networks)


class Budget:
    """Bytes that the objects on their way may take in memory, all clients together."""

    def __init__(self, limit: int = MAX_UNDER_WAY) -> None:
        self.limit, self._lock = limit, threading.Lock()
        self._held: dict[Any, int] = {}

    def take(self, client: Any, count: int) -> bool:
        """Whether `client` may hold so many bytes more."""
        with self._lock:
            if sum(self._held.values()) + count > self.limit:
                return False
            self._held[client] = self._held.get(client, 0) + count
            return True

    def free(self, client: Any) -> None:
        with self._lock:
            self._held.pop(client, None)


def limit_reading(association: Any, budget: Budget) -> None:
    """Refuse messages that are larger than MAX_PDU allows, and objects beyond the budget: the connection ends."""
    transport = association.dul.socket
    receive = transport.recv

    def recv(count: int) -> bytes:
        if count > 2 * MAX_PDU or not budget.take(association, count):
            return b""  # as if the peer had gone
        return receive(count)

    transport.recv = recv


def make_server(ae: Any, host: str, port: int, handlers: list[Any], allowed: Addresses, tls: ssl.SSLContext | None,
                say: Callable[[str], None]) -> Any:
    """A listening server (its `serve_forever` and `shutdown` are those of socketserver).

    Raises:
        EdgesegError: the address is not this machine's, or the port is taken.
    """
    need("pynetdicom", "dicom")
    from pynetdicom.transport import ThreadedAssociationServer

    class Server(ThreadedAssociationServer):
        daemon_threads = True
        allow_reuse_port = False
        request_queue_size = 64

        def get_request(self) -> tuple[Any, Any]:
            return self.socket.accept()  # type: ignore[union-attr]  # without the handshake, see finish_request

        def verify_request(self, request: Any, client_address: Any) -> bool:
            if client_address[0] not in allowed:
                say(f"connection from {client_address[0]} refused: its address is not allowed")
                return False
            if len(self.active_associations) >= MAX_CONNECTIONS:
                say(f"connection from {client_address[0]} refused: {MAX_CONNECTIONS} are open")
                return False
            return True

        def finish_request(self, request: Any, client_address: Any) -> None:
            if tls:
                request.settimeout(TIMEOUT)
                try:
                    request = tls.wrap_socket(request, server_side=True)
                except (OSError, ssl.SSLError) as error:
                    say(f"connection from {client_address[0]} refused: no TLS ({type(error).__name__})")
                    self.shutdown_request(request)
                    return
            super().finish_request(request, client_address)

        def shutdown(self) -> None:
            socketserver.BaseServer.shutdown(self)  # pynetdicom's expects to be in a list of its AE
            self.server_close()

        def handle_error(self, request: Any, client_address: Any) -> None:
            say(f"connection from {client_address[0]} failed")

    try:
        return ae.make_server((host, port), evt_handlers=handlers, server_class=Server)
    except (OSError, socket.gaierror) as error:
        raise EdgesegError(f"--host {host} --port {port}: {error.strerror or error}: choose another") from None
