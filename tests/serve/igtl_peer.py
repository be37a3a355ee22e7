"""A server of OpenIGTLink in its own process, and a plain client that sends and reads bytes."""

import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyigtl
from pyigtl.messages import CRC64

COMMAND = ("from edgeseg.cli import main, serve_igtl; main.app.command('alone')(serve_igtl.igtl); main.main()")
"""As `edgeseg serve igtl`."""
IMAGE_HEAD = 72


@dataclass
class Running:
    process: subprocess.Popen
    port: int
    log_file: Path

    def log(self) -> str:
        return self.log_file.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)

    def memory(self, key: str) -> int:
        """KiB; `VmRSS` or `VmPeak`, which is of addresses and so of everything that was ever asked for."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


@contextmanager
def serving(bundle: Path | str, folder: Path, *options: str) -> Iterator[Running]:
    log = folder / f"log {time.monotonic_ns()}"
    with log.open("w") as stderr:
        command = [sys.executable, "-c", COMMAND, "alone", "--bundle", str(bundle), "--port", "0", "--threads", "1"]
        process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("listening "), log.read_text()
        yield Running(process, int(line.rpartition(":")[2]), log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@dataclass(frozen=True)
class Reply:
    type: str
    device: str
    stamp: bytes
    body: bytes

    @property
    def labels(self) -> np.ndarray:
        """[k, j, i] of a label image."""
        assert self.type == "IMAGE", self.text
        size = struct.unpack(">3H", self.body[6:12])
        return np.frombuffer(self.body, np.uint8, offset=IMAGE_HEAD).reshape(size[::-1])

    @property
    def code(self) -> int:
        assert self.type == "STATUS"
        return struct.unpack(">H", self.body[:2])[0]

    @property
    def text(self) -> str:
        assert self.type == "STATUS"
        assert self.body.endswith(b"\0")
        return self.body[30:-1].decode()


class Peer:
    """A client; a reply whose checksum is wrong fails the test."""

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> Reply | None:
        """The next reply; None at the end of the connection."""
        if not (header := self._bytes(58)):
            return None
        version, kind, device, stamp, size, crc = struct.unpack(">H12s20s8sQQ", header)
        body = self._bytes(size)
        assert version == 1
        assert CRC64(body) == crc
        return Reply(kind.rstrip(b"\0").decode("ascii"), device.rstrip(b"\0").decode("ascii"), stamp, body)

    def ask(self, data: bytes) -> Reply | None:
        self.send(data)
        return self.read()

    def rest(self) -> list[Reply]:
        """Every reply until the server ends the connection, once nothing more is sent."""
        with suppress(OSError):  # the server was faster
            self.socket.shutdown(socket.SHUT_WR)
        return list(iter(self.read, None))

    def _bytes(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            try:
                chunk = self.socket.recv(count - len(found))
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                assert not found, "the server ended in the middle of a message"
                return b""
            found += chunk
        return found


def matrix(spacing: tuple[float, float] = (1.40625, 1.40625)) -> np.ndarray:
    """From (i, j, k) to mm: turned about two axes, of `spacing` (row, column), far from the origin."""
    a, b = 0.3, -0.7
    turn = (np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
            @ np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]))
    whole = np.eye(4)
    whole[:3, :3] = turn * (spacing[1], spacing[0], 8.0)
    whole[:3, 3] = -123.4, 56.7, 890.1
    return whole


def image(pixels: np.ndarray, spacing: tuple[float, float] = (1.40625, 1.40625), stamp: float = 12.25,
          device: str = "Image", version: int = 1) -> bytes:
    """An IMAGE message of pixels [k, j, i], [k, j, i, c] or, of one plane, [j, i]; header version 2 has metadata."""
    message = pyigtl.ImageMessage(pixels if pixels.ndim > 2 else pixels[None], matrix(spacing), timestamp=stamp,
                                  device_name=device)
    message.header_version = version
    if version == 2:
        message.metadata = {"Patient": "DOE^JANE", "depth": "12"}
    return message.pack()


def header(kind: bytes = b"IMAGE", size: int = 0, crc: int = 0, version: int = 1, device: bytes = b"Image") -> bytes:
    return struct.pack(">H12s20s8sQQ", version, kind, device, bytes(8), size, crc)


def changed(message: bytes, at: int, new: bytes, crc: bool = True) -> bytes:
    """The message with other bytes at a place of its body, the checksum made right again unless `crc` is False."""
    body = bytearray(message[58:])
    body[at : at + len(new)] = new
    return message[:50] + (struct.pack(">Q", CRC64(bytes(body))) if crc else message[50:58]) + bytes(body)


def in_threads(*jobs) -> None:
    """Run them at the same time; what one raises is raised here."""
    failed: list[BaseException] = []

    def run(job) -> None:
        try:
            job()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
