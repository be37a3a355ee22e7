"""What talks to the DICOM node in its tests: clients, receivers, and the node itself in this process or its own."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tiny_bundle
from dicom_files import Plane, slice_file
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom import AE, evt

from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve.dicom_node import Node, Settings
from edgeseg.serve.dicom_send import Receiver

BEAT = np.stack([np.stack([tiny_bundle.label_image(t + k, (30, 28)) for k in range(3)]) for t in range(2)])
"""Labels of two phases of three slices."""
IMAGES = tiny_bundle.LEVELS[BEAT].astype(int)
COMMAND = ("import typer; from edgeseg.cli.serve_dicom import dicom; app = typer.Typer(); app.command()(dicom); "
           "app(standalone_mode=False)")


def cine(series: str = "1.2.3.4", images: np.ndarray = IMAGES, plane: Plane | None = None) -> list[Dataset]:
    """A classic cine series, not on disk."""
    return [slice_file(pixels, plane or Plane(), k, t, len(volume), series=series, phases=len(images))
            for t, volume in enumerate(images) for k, pixels in enumerate(volume)]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(condition, seconds: float = 60.0):
    """The first true value of `condition`; an error when there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("nothing happened in time")


def associate(address, data: list[Dataset], title: str = "TESTER", tls=None):
    ae = AE(ae_title=title)
    ae.add_requested_context("1.2.840.10008.1.1")
    for storage, syntax in sorted({(d.SOPClassUID, d.file_meta.TransferSyntaxUID) for d in data}):
        ae.add_requested_context(storage, [syntax])
    return ae.associate(*address, tls_args=tls)


def store(address, data: list[Dataset], **about) -> list[int]:
    """The status of each object; released at the end. An empty list: no association."""
    association = associate(address, data, **about)
    if not association.is_established:
        return []
    statuses = [association.send_c_store(d).get("Status", -1) for d in data]
    association.release()
    return statuses


def echo(address, **about) -> bool:
    association = associate(address, [], **about)
    if not association.is_established:
        return False
    status = association.send_c_echo().get("Status")
    association.release()
    return status == 0


@contextmanager
def node(segmenter: Segmenter, folder: Path, **settings) -> Iterator[Node]:
    """A node in this process; `lines` of it are what it logged. A quiet period that no busy machine can reach, so that
    a series is complete when its association is released."""
    lines: list[str] = []
    running = Node(segmenter, Settings(folder, **{"quiet": 60.0, **settings}), lines.append)
    running.lines = lines
    running.start()
    try:
        yield running
    finally:
        running.close()


@contextmanager
def process(bundle: Path, folder: Path, *options) -> Iterator[tuple[subprocess.Popen, tuple[str, int]]]:
    """The command in a process of its own, and where it listens; killed at the end if it has not ended."""
    done = subprocess.Popen([sys.executable, "-c", COMMAND, "--bundle", str(bundle), "--folder", str(folder), "--port",
                             "0", "--threads", "1", *map(str, options)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    try:
        line = done.stdout.readline()
        assert line.startswith("listening "), line + done.stderr.read()
        host, port = line.split()[1].rsplit(":", 1)
        yield done, (host, int(port))
    finally:
        done.kill()
        done.communicate()


@contextmanager
def receiver(statuses: Iterator[int] | None = None, **about) -> Iterator[tuple[Receiver, list[Dataset]]]:
    """A storage SCP in this process, and what it got; `statuses`: its answers, 0 when there are no more."""
    got: list[Dataset] = []

    def on_store(event):
        status = next(statuses, 0) if statuses else 0
        if status == 0:
            event.dataset.file_meta = event.file_meta
            got.append(event.dataset)
        return status

    ae = AE(ae_title="RECEIVER")
    for storage in ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7", "1.2.840.10008.5.1.4.1.1.88.33"):
        ae.add_supported_context(storage)
    server = ae.start_server(("127.0.0.1", about.pop("port", 0)), block=False,
                             evt_handlers=[(evt.EVT_C_STORE, on_store)], **about)
    try:
        yield Receiver(*server.server_address[:2]), got
    finally:
        server.shutdown()


class Orthanc:
    """Orthanc on free loopback ports with its storage in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.port, self.http = free_port(), free_port()
        (folder / "storage").mkdir(parents=True)
        (folder / "orthanc.json").write_text(json.dumps({
            "Name": "test", "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
            "DicomPort": self.port, "DicomAet": "ORTHANC", "HttpPort": self.http, "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False, "Plugins": [], "DicomAlwaysAllowStore": True}))
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen([shutil.which("Orthanc") or "/usr/sbin/Orthanc", str(folder / "orthanc.json")],
                                        stdout=self.log, stderr=self.log)

    def get(self, path: str):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            content = answer.read()
        return json.loads(content) if answer.headers.get_content_type() == "application/json" else content

    def is_up(self) -> bool:
        try:
            return bool(self.get("/system"))
        except (urllib.error.URLError, OSError):
            return False

    def __enter__(self) -> "Orthanc":
        try:
            wait_for(self.is_up)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self.process.terminate()
        self.process.wait()
        self.log.close()


def labels_of(segs: list[Dataset], data: list[Dataset]) -> np.ndarray:
    """The label maps [len(data), H, W] that BINARY SEGs say of these images."""
    index = {d.SOPInstanceUID: i for i, d in enumerate(data)}
    found = np.zeros((len(data), data[0].Rows, data[0].Columns), np.uint8)
    for seg in segs:
        pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
        for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, pixels, strict=True):
            source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
            found[index[source]] += frame * group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
    return found


def results_of(folder: Path) -> list[Dataset]:
    return [dcmread(path) for path in sorted(folder.glob("results/*/*.dcm"))]
