"""How long after a cine series has come its segmentation is at the receiver, and whether the node keeps its memory.

    python benchmarks/serve_dicom.py --bundle cine

The node runs in a process of its own. This one sends a series of 300 images (10 slices at 30 phases, phantom frames as
the scanner of the bundle's first frame graph sends them) in one association, and is the receiver. A series is judged
complete when that association is released: the time runs from then until the last of its SEGs (one a phase) is stored
here and the node is told so. Series follow each other; the node's resident memory after the last is compared to that
after the first 1,000 images. On a machine that does nothing else. Writes serve_dicom.json and serve_dicom.md.
"""

import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Target, cell, markdown_table, provenance, resident_mb, target, timing_parser

from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError, need
from edgeseg.measure import environment
from edgeseg.measure.bench import allowed_threads, scanner_frames
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.statistics import Interval, bootstrap_interval

SECONDS, GROWTH = 3.0, 0.05
"""The limits: from complete to stored, and growth of the memory."""
SLICES, PHASES = 10, 30
FIRST, LAST = 1000, 20_000
"""Images before the first look at the memory and before the last."""
PATIENCE = 300.0
"""Seconds after which a series is given up."""
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"


@dataclass
class Receiver:
    """Counts the objects of each SEG series' source, and wakes who waits for them."""

    port: int = 0
    times: dict[str, list[float]] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def stored(self, event: Any) -> int:
        source = str(event.dataset.ReferencedSeriesSequence[0].SeriesInstanceUID)
        with self.changed:
            self.times.setdefault(source, []).append(time.perf_counter())
            self.changed.notify_all()
        return 0x0000

    def last(self, series: str, count: int) -> float:
        """When the last of `count` objects made of this series was stored."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.times.get(series, ())) >= count, PATIENCE):
                raise EdgesegError(f"{len(self.times.get(series, ()))} of {count} segmentations came")
            return self.times.pop(series)[-1]


@contextmanager
def receiving() -> Iterator[Receiver]:
    pynetdicom = need("pynetdicom", "dicom")
    found, ae = Receiver(), pynetdicom.AE(ae_title="RECEIVER")
    ae.add_supported_context(SEGMENTATION)
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(pynetdicom.evt.EVT_C_STORE, found.stored)])
    found.port = server.server_address[1]
    try:
        yield found
    finally:
        server.shutdown()


@dataclass(frozen=True)
class Node:
    port: int
    process: int


@contextmanager
def started(bundle: Bundle, precision: str, threads: int, folder: Path, port: int) -> Iterator[Node]:
    """The command in a process of its own, until the block ends."""
    code = "import typer; from edgeseg.cli.serve_dicom import dicom; typer.run(dicom)"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "--bundle", str(bundle.path), "--port", "0", "--folder", str(folder / "spool"),
             "--send-to", f"127.0.0.1:{port}", "--precision", precision, "--threads", str(threads)],
            stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout
        try:
            if not (line := process.stdout.readline()).startswith("listening "):
                raise EdgesegError(f"the node did not start: {(folder / 'log').read_text()[-500:]}")
            yield Node(int(line.rpartition(":")[2]), process.pid)
        finally:
            process.terminate()
            process.wait()


def images(frames: list[np.ndarray], spacing: tuple[float, float], slices: int, phases: int) -> list[Any]:
    """A cine series of frames [1, H, W] of whole numbers, as classic MR images without a patient."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

    found = []
    for number in range(slices * phases):
        k, t = divmod(number, phases)
        pixels = np.rint(frames[number % len(frames)][0]).clip(0, 65535).astype("<u2")
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID, data.SOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        data.PatientID, data.Modality, data.SeriesNumber, data.InstanceNumber = "PHANTOM", "MR", 1, number + 1
        data.ImageType, data.TriggerTime = ["ORIGINAL", "PRIMARY", "M"], f"{30 * t}"
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 8 * k], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [f"{s:.8g}" for s in spacing], 8
        data.Rows, data.Columns = pixels.shape
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelData = pixels.tobytes()
        data["PixelData"].VR = "OW"
        found.append(data)
    return found


def send(node: Node, series: list[Any]) -> tuple[str, float, float]:
    """Store the images as a new series; its UID, the seconds that took, and when the association was released."""
    pynetdicom = need("pynetdicom", "dicom")
    from pydicom.uid import generate_uid

    study, uid = generate_uid(), generate_uid()
    ae = pynetdicom.AE(ae_title="SCANNER")
    ae.add_requested_context(series[0].SOPClassUID, series[0].file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", node.port)
    if not association.is_established:
        raise EdgesegError("the node did not accept the association")
    start = time.perf_counter()
    for data in series:
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, uid, study
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        if association.send_c_store(data).get("Status") != 0:
            raise EdgesegError("the node did not take an image")
    released = time.perf_counter()
    association.release()
    return str(uid), released - start, released


def run(node: Node, receiver: Receiver, series: list[Any], phases: int, marks: tuple[int, int]
        ) -> tuple[list[float], list[float], list[float]]:
    """Seconds from complete to stored and of sending, a series each; memory in MB after so many images."""
    waited, sending, memory, sent = [], [], [], 0
    for mark in marks:
        while sent < mark:
            uid, seconds, released = send(node, series)
            waited.append(receiver.last(uid, phases) - released)
            sending.append(seconds)
            sent += len(series)
        memory.append(resident_mb(node.process))
    return waited, sending, memory


def page(document: dict[str, Any], waited: Interval, sending: Interval, goals: list[Target]) -> str:
    seen = ", ".join(f"{mb:.1f} MB after {count:,}" for count, mb in document["memory_mb"].items())
    share = document["load"]["others"]
    seconds = document["seconds"]
    return "\n".join([
        "# DICOM node", "",
        *(["**A quick run with tiny settings: these numbers mean nothing.**", ""] if document["quick"] else []),
        f"Commit {document['commit']}{' with uncommitted changes' if document['changed_files'] else ''}, "
        f"`{document['command']}`; bundle `{document['bundle']}`, {document['precision']}, series of "
        f"{document['slices']} slices x {document['phases']} phases, {document['protocol']}.", "",
        f"{document['machine']['cpu']}, {document['threads']} threads; others used of these CPUs: "
        f"{'unknown' if share is None else f'{100 * share:.0f} %'}"
        + (", **busy while timing**" if document["load"]["busy"] else "") + ". Client, node and receiver share them.",
        "", markdown_table(["what", "value", "95 %", "limit", "verdict"], [t.line() for t in goals]),
        markdown_table(["of a series", "s, median", "least - most", "series"],
                       [["complete to stored", cell(waited, 2), f"{min(seconds):.2f} - {max(seconds):.2f}",
                         str(len(seconds))],
                        ["to receive it before that", cell(sending, 2), "-", str(len(seconds))]]),
        f"Resident memory of the node: {seen} images.", ""])


def main() -> int:
    parser = timing_parser(__doc__)
    parser.add_argument("--images", type=int, default=LAST, help="before the last look at the memory")
    given = parser.parse_args()
    check_out(given.out)
    threads, bundle = allowed_threads(given.threads), open_bundle(given.bundle)
    slices, phases, marks = (2, 2, (4, 8)) if given.quick else (SLICES, PHASES, (FIRST, given.images))
    frames, spacings, protocol = scanner_frames(bundle)
    series = images(frames, spacings[0], slices, phases)
    with (tempfile.TemporaryDirectory(prefix="edgeseg-dicom-") as folder, environment.Watch() as watch,
          receiving() as receiver, started(bundle, given.precision, threads, Path(folder), receiver.port) as node):
        seconds, sending, seen = run(node, receiver, series, phases, marks)
    waited = bootstrap_interval(seconds, np.median)
    goals = [target(f"{len(series)} images, from complete to stored, s", waited, "<=", SECONDS),
             Target(f"growth of memory from {marks[0]:,} to {marks[1]:,} images",
                    seen[1] / seen[0] - 1 if seen[0] else math.nan, "<=", GROWTH)]
    document = {"schema": "edgeseg.serve-dicom/1", **provenance(), "quick": given.quick, "bundle": bundle.path.name,
                "precision": given.precision, "threads": threads, "slices": slices, "phases": phases,
                "protocol": protocol, "load": {"others": watch.others, "busy": environment.is_busy(watch.others)},
                "machine": environment.describe(), "targets": [t.document() for t in goals], "seconds": seconds,
                "sending_seconds": sending, "memory_mb": dict(zip(marks, seen, strict=True))}
    write_json(given.out / "serve_dicom.json", document)
    write_text(given.out / "serve_dicom.md", page(document, waited, bootstrap_interval(sending, np.median), goals))
    for t in goals:
        print("   ".join(t.line()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgesegError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
