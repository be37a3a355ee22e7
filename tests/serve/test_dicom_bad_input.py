"""What the DICOM node does with objects and clients that are not as they should be: it says so and goes on."""

import io
import socket
import struct

import numpy as np
import pytest
import tiny_bundle

pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")
from dicom_files import ID, PERSON, Plane, oblique, save, slice_file
from dicom_loops import loop_file
from dicom_peer import BEAT, IMAGES, associate, cine, echo, labels_of, node, results_of, store, wait_for
from pydicom import dcmread
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, RLELossless, SecondaryCaptureImageStorage

from edgeseg.readers.dicom_image import Unusable
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve.dicom_check import codestream_size, examine
from edgeseg.serve.dicom_network import MAX_PDU


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter(tiny_bundle.make_bundle(tmp_path_factory.mktemp("bad") / "tiny.edgeseg"), threads=1)


@pytest.fixture(scope="module")
def served(segmenter, tmp_path_factory):
    """One node for all bad objects: each has to leave it as good as new."""
    with node(segmenter, tmp_path_factory.mktemp("spool")) as running:
        yield running


def one():
    return slice_file(IMAGES[0, 0], Plane(), 0, 0, 1, series="1.7")


def packed(data, frames: list[bytes], syntax):
    data.PixelData = encapsulate(frames)
    data["PixelData"].is_undefined_length = True
    data["PixelData"].VR = "OB"
    data.file_meta.TransferSyntaxUID = syntax
    return data


def jpeg(rows: int, columns: int) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.zeros((rows, columns), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def resized(content: bytes, rows: int, columns: int) -> bytes:
    """A JPEG whose header says another size."""
    at = content.index(b"\xff\xc0")
    return content[: at + 5] + struct.pack(">HH", rows, columns) + content[at + 9 :]


def change(**elements):
    def make():
        data = one()
        for name, value in elements.items():
            setattr(data, name, value)
        return data

    return make


def without(name: str):
    def make():
        data = one()
        delattr(data, name)
        return data

    return make


def of_8_bits():
    data = one()
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    return data


BAD = {
    "no pixels": (without("PixelData"), "has no PixelData"),
    "no rows": (without("Rows"), "has no usable Rows"),
    "more rows than pixels": (change(Rows=31), "has fewer pixels than"),
    "gigabytes": (change(Rows=65535, Columns=65535), "has no usable Rows"),
    "a million frames": (change(NumberOfFrames=1_000_000), "has no usable Rows, Columns or NumberOfFrames"),
    "more frames than pixels": (lambda: loop_file(np.zeros((2, 8, 8), np.uint8), NumberOfFrames=500), "has fewer"),
    "odd bits": (change(BitsAllocated=12), "has no usable SamplesPerPixel or BitsAllocated"),
    "no place": (without("ImagePositionPatient"), "has no ImagePositionPatient"),
    "no pixel size": (without("PixelSpacing"), "has no PixelSpacing"),
    "no series": (without("SeriesInstanceUID"), "has no SOPInstanceUID, StudyInstanceUID or Series"),
    "colour": (change(SamplesPerPixel=3, PhotometricInterpretation="RGB", Rows=10), "is a colour image"),
    "damaged RLE": (lambda: packed(one(), [b"nonsense" * 9], RLELossless), "its pixels are truncated or damaged"),
    "a JPEG of another size": (lambda: packed(of_8_bits(), [jpeg(16, 16)], JPEGBaseline8Bit), "of another size"),
    "a JPEG of gigabytes": (lambda: packed(of_8_bits(), [resized(jpeg(30, 28), 65500, 65500)], JPEGBaseline8Bit),
                            "of another size"),
    "two JPEG frames of ten": (lambda: packed(loop_file(np.zeros((2, 30, 28), np.uint8), NumberOfFrames=10),
                                              [jpeg(30, 28)] * 2, JPEGBaseline8Bit), "fewer frames than"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_set_aside_with_its_reason_and_refused(served, name):
    make, why = BAD[name]
    data = make()
    before = set((served.spool.folder / "quarantine").glob("*.dcm"))
    assert store(served.address, [data]) == [0xC000]
    (aside,) = set((served.spool.folder / "quarantine").glob("*.dcm")) - before
    reason = aside.with_suffix(".txt").read_text()
    assert why in reason
    assert reason.strip() in served.lines[-1] + served.lines[-2]
    assert data.get("SOPInstanceUID", "none").encode() in aside.read_bytes()
    for word in (PERSON, ID, data.get("SOPInstanceUID", "none"), "1.7"):
        assert word not in " ".join(served.lines) + reason + aside.name
    assert not served.spool.incoming()
    assert echo(served.address)


def test_an_object_under_another_uid_than_announced_is_none_that_can_be_kept(tmp_path):
    path = save(one(), tmp_path / "a.dcm")
    assert examine(path, str(one_uid(path))).complete is False
    with pytest.raises(Unusable, match="another SOPInstanceUID than was announced"):
        examine(path, "1.2.3.4.6")


def one_uid(path):
    return dcmread(path).SOPInstanceUID


def test_a_class_and_a_transfer_syntax_that_are_not_received_are_refused_by_name(served):
    data = one()
    data.SOPClassUID = SecondaryCaptureImageStorage
    film = one()
    film.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    association = associate(served.address, [data, film])
    assert [c.abstract_syntax for c in association.accepted_contexts] == ["1.2.840.10008.1.1"]
    association.release()
    for refused in ("Secondary Capture Image Storage", "MR Image Storage in MPEG2 Main Profile / Main Level"):
        wait_for(lambda what=refused: any(f"refused {what}" in line for line in served.lines))


def test_a_series_of_several_stacks_gives_segs_for_each(segmenter, tmp_path):
    data = [*cine(), *cine(plane=oblique())]
    for d in data[6:]:
        d.StudyInstanceUID = data[0].StudyInstanceUID
    with node(segmenter, tmp_path) as running:
        assert set(store(running.address, data)) == {0}
        wait_for(lambda: len(list(tmp_path.glob("results/*/*.dcm"))) == 4)
    np.testing.assert_array_equal(labels_of(results_of(tmp_path), data).reshape(4, *BEAT.shape[1:]), [*BEAT, *BEAT])


def test_a_series_that_cannot_be_segmented_is_kept_with_the_reason(segmenter, tmp_path):
    data = cine(images=np.full_like(IMAGES, 5))
    with node(segmenter, tmp_path) as running:
        assert set(store(running.address, data)) == {0}
        wait_for(lambda: any("quarantined" in line for line in running.lines))
        assert set(store(running.address, cine("1.9"))) == {0}
        wait_for(lambda: len(list(tmp_path.glob("results/*/*.dcm"))) == 2)
        said = " ".join(running.lines)
    (folder,) = (p for p in (tmp_path / "quarantine").iterdir() if p.is_dir())
    assert len(list(folder.glob("*.dcm"))) == 6
    assert "the image is constant" in folder.with_name(f"{folder.name}.txt").read_text()
    assert PERSON not in said
    assert str(tmp_path) not in said


def raw(address) -> socket.socket:
    return socket.create_connection(address, timeout=20)


def test_clients_that_stall_or_speak_something_else_stop_nobody(served):
    silent, half, other = raw(served.address), raw(served.address), raw(served.address)
    half.sendall(b"\x01\x00\x00\x00\x10\x00 only the beginning")
    other.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        assert echo(served.address)
        assert set(store(served.address, cine("1.11"))) == {0}
        assert other.recv(4096)[:1] == b"\x07"  # A-ABORT
    finally:
        for client in (silent, half, other):
            client.close()


@pytest.mark.parametrize("length", [0xFFFFFFFF, 2**31, 2 * MAX_PDU + 1])
def test_a_message_that_says_it_is_gigabytes_ends_its_connection_at_once(served, length):
    with raw(served.address) as client:
        client.sendall(struct.pack(">BBL", 1, 0, length))
        assert client.recv(100) == b""
    assert echo(served.address)


def test_a_client_that_leaves_in_the_middle_of_an_image_leaves_nothing(served):
    data = cine("1.12")[0]
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = "1.12.5"
    before = served.spool.incoming()
    association = associate(served.address, [data])
    context = next(c for c in association.accepted_contexts if c.abstract_syntax == data.SOPClassUID)
    command = struct.pack("<HHL", 0, 0x0000, 4) + struct.pack("<L", 10)
    body = bytes([context.context_id, 3]) + command
    pdv = struct.pack(">L", len(body)) + body
    association.dul.socket.socket.sendall(struct.pack(">BBL", 4, 0, len(pdv)) + pdv[:-3])
    association.dul.socket.socket.close()
    association.kill()
    assert echo(served.address)
    assert served.spool.incoming() == before
    assert [p for p in (served.spool.folder / "receiving").iterdir() if p.is_file()] == []


def test_the_size_of_a_codestream_is_read_from_its_header():
    assert codestream_size(jpeg(30, 28)) == (30, 28)
    assert codestream_size(resized(jpeg(30, 28), 65500, 1)) == (65500, 1)
    size = struct.pack(">LLLL", 40, 33, 12, 3)
    assert codestream_size(b"\xff\x4f\xff\x51" + b"\0" * 4 + size) == (30, 28)
    for other in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0\xff\xff", b"\x01\0\0\0 rle"):
        assert codestream_size(other) is None
