"""An MRD client on the `ismrmrd` package's own serialisation, the server in a process of its own, and test images."""

import os
import re
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from pathlib import Path

import ismrmrd
import numpy as np
from ismrmrd.serialization import ConfigText, ProtocolDeserializer, ProtocolSerializer

CODE = """
import sys
from edgeseg.cli import main, serve_mrd
main.app.command("serve-mrd")(serve_mrd.mrd)
sys.argv = ["edgeseg", "serve-mrd", *sys.argv[1:]]
main.main()
"""
SECONDS = 120
"""After which a test gives up; nothing here waits that long on purpose."""
HEADER = ismrmrd.xsd.ismrmrdHeader(
    subjectInformation=ismrmrd.xsd.subjectInformationType(patientName="Ventricle^Vera", patientID="ID-4711"),
    experimentalConditions=ismrmrd.xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63_000_000))


class Server:
    """`edgeseg serve mrd` in its own process; what it logs goes to a file."""

    def __init__(self, folder: Path, *options: str, bundle: Path | str) -> None:
        self.log_file = folder / "server.log"
        with self.log_file.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, "--bundle", str(bundle), "--threads", "1", "--port", "0", *options],
                stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        said = self.process.stdout.readline()
        found = re.fullmatch(r"listening 127\.0\.0\.1:(\d+)\n", said)
        assert found, said + self.log
        self.port = int(found[1])

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def memory(self) -> int:
        """Most bytes of memory that the process ever had."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])

    def stop(self) -> int:
        self.process.terminate()
        try:
            return self.process.wait(SECONDS)
        finally:
            self.process.kill()
            self.process.stdout.close()


@contextmanager
def serving(folder: Path, *options: str, bundle: Path | str):
    server = Server(folder, *options, bundle=bundle)
    try:
        yield server
    finally:
        server.stop()


class Client:
    """One connection. Close with `with`."""

    def __init__(self, to: int | socket.socket) -> None:
        self.socket = to if isinstance(to, socket.socket) else socket.create_connection(("127.0.0.1", to))
        self.socket.settimeout(SECONDS)
        self._in, self._out = self.socket.makefile("rb"), self.socket.makefile("wb")
        self.messages = ProtocolDeserializer(self._in).deserialize()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        for end in (self._in, self._out, self.socket):
            with suppress(OSError):  # what was buffered for a server that hung up
                end.close()

    def send(self, *items, close: bool = False) -> None:
        writer = ProtocolSerializer(self._out)
        for item in items:
            if isinstance(item, bytes):
                self._out.write(item)
            else:
                writer.serialize(item)
        if close:
            writer.close()
        self._out.flush()

    def receive(self, count: int) -> list:
        return [next(self.messages) for _ in range(count)]

    def rest(self) -> list:
        """All messages up to the server's close."""
        return list(self.messages)


def talk(to: int | socket.socket, *items) -> list:
    """A whole session: everything that came back before the close. Sends beside reading, as consoles do."""
    with Client(to) as client:
        sender = threading.Thread(target=client.send, args=(ConfigText("{}"), HEADER, *items), kwargs={"close": True})
        sender.start()
        found = client.rest()
        sender.join()
        return found


def image(pixels: np.ndarray, spacing=(1.40625, 1.40625), *, series=1, meta=None, **head) -> ismrmrd.Image:
    """Pixels [y, x], [z, y, x] or [c, z, y, x] of `spacing` (row, column) mm, slices 8 mm apart by their number."""
    rows, columns = pixels.shape[-2:]
    place = 8.0 * head.get("slice", 0)
    fields = {"image_type": ismrmrd.IMTYPE_MAGNITUDE, "image_series_index": series, "read_dir": (1, 0, 0),
              "phase_dir": (0, 1, 0), "slice_dir": (0, 0, 1), "position": (3.0, -4.0, place), "measurement_uid": 77,
              "field_of_view": (columns * spacing[1], rows * spacing[0], 6.0), **head}
    made = ismrmrd.Image.from_array(pixels, **fields)
    made.meta = ismrmrd.Meta({"ImageRowDir": ["1", "0", "0"], "Note": "äöü"} if meta is None else meta)
    return made


def spacing_of(sent: ismrmrd.Image) -> tuple[float, float]:
    x, y, _ = sent.matrix_size
    return sent.field_of_view[1] / y, sent.field_of_view[0] / x


def images(found: list) -> list[ismrmrd.Image]:
    return [item for item in found if isinstance(item, ismrmrd.Image)]


def texts(found: list) -> list[str]:
    return [item for item in found if isinstance(item, str)]
