"""The MRD server in its own process, over real sockets, with the `ismrmrd` package on the other side."""

import socket
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("ismrmrd", reason="the extra `mrd` is not installed")

import ismrmrd
from mrd_client import CODE, HEADER, Client, Server, image, images, serving, spacing_of, talk, texts

from edgeseg import Segmenter
from edgeseg.measure.ejection import stack_ef
from edgeseg.measure.volumes import volume_ml
from edgeseg.phantoms.cine import cine_case
from edgeseg.runtime.frame_graph import bring

LV = 3


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter("cine", precision="fp32", threads=1)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("mrd"), "--precision", "fp32", "--image-deadline", "60", bundle="cine") as s:
        yield s


@pytest.fixture(scope="module")
def stacks(segmenter):
    """uint16 [phase, slice, y, x] as the scanner of the bundle's frame graph would send them: ED, then ES."""
    protocol = segmenter.bundle.manifest.frames[0]
    cases = [cine_case(0, 0, phase) for phase in ("ED", "ES")]
    return np.stack([[bring(f, c.spacing, protocol)[0] for f in c.frames[2:7]] for c in cases])


@pytest.fixture(scope="module")
def frame(stacks):
    return stacks[0, 2]


def cine(stacks):
    """A cine series slice by slice, as breath holds bring it."""
    return [image(stacks[phase, k], slice=k, phase=phase, image_index=1 + 2 * k + phase)
            for k in range(stacks.shape[1]) for phase in range(2)]


def test_originals_come_back_unchanged_and_masks_are_those_of_the_segmenter(server, segmenter, stacks):
    sent = cine(stacks)
    found = images(talk(server.port, *sent))
    assert len(found) == 2 * len(sent) + 1
    for k, original in enumerate(sent):
        back, mask = found[2 * k : 2 * k + 2]
        assert back.to_bytes() == original.to_bytes()
        expected = segmenter.segment(original.data[0, 0], spacing_of(original))
        assert expected.labels.any()
        assert mask.data.dtype == np.uint16
        assert np.array_equal(mask.data[0, 0], expected.labels)
        for field in ("matrix_size", "field_of_view", "position", "read_dir", "phase_dir", "slice_dir", "slice",
                      "phase", "image_index", "measurement_uid"):
            assert np.array_equal(getattr(mask, field), getattr(original, field)), field
        assert mask.image_series_index not in (back.image_series_index, found[-1].image_series_index)
        assert mask.meta["SegmentNames"] == ["RV", "MYO", "LV"]
        assert mask.meta["SegmentValues"] == ["1", "2", "3"]
        assert "Segmentation" in mask.meta["DataRole"]
        assert mask.meta["Keep_image_geometry"] == "1"
        assert mask.meta["Note"] == "äöü"


def test_volumes_and_ef_of_all_slices_and_phases_come_as_text_and_as_meta(server, segmenter, stacks):
    sent = cine(stacks)
    found = talk(server.port, *sent[::-1])  # in whatever order
    spacing = spacing_of(sent[0])
    ed, es = (np.stack([segmenter.segment(f, spacing).labels for f in stack]) == LV for stack in stacks)
    ef = stack_ef(ed, es, (8.0, *spacing))
    assert 5 < ef < 95
    report = texts(found)
    assert len(report) == 1
    assert f"LV EDV {volume_ml(ed, (8.0, *spacing)):.1f} ml" in report[0]
    assert f"LV EF {ef:.1f} %" in report[0]
    assert "ED phase 0, ES phase 1" in report[0]
    assert "5 slices 8.0 mm apart" in report[0]
    meta = images(found)[-1].meta
    assert float(meta["LV_EF_percent"]) == pytest.approx(ef, abs=0.006)
    assert float(meta["LV_ESV_ml"]) == pytest.approx(volume_ml(es, (8.0, *spacing)), abs=0.006)
    assert meta["ImageComments"] in report[0]


@pytest.mark.parametrize("kind", ["int16", "uint32", "float32", "float64", "complex64", "complex128"])
def test_every_pixel_type_is_segmented_as_the_segmenter_does(server, segmenter, frame, kind):
    pixels = frame.astype(kind) * np.exp(0.7j) if kind.startswith("complex") else frame.astype(kind)
    pixels = pixels.astype(kind)
    sent = image(pixels, image_type=ismrmrd.IMTYPE_COMPLEX if kind.startswith("complex") else 0)
    back, mask, _ = images(talk(server.port, sent))
    assert np.array_equal(back.data, sent.data)
    magnitude = np.abs(pixels) if kind.startswith("complex") else pixels
    assert np.array_equal(mask.data[0, 0], segmenter.segment(magnitude, spacing_of(sent)).labels)


def test_int32_has_four_bytes_as_the_specification_says(server, segmenter, frame):
    sent = image(frame.astype(np.float32))  # as long; ismrmrd itself would write eight bytes for each int32
    message = bytearray(sent.to_bytes())
    message[2:4] = struct.pack("<H", ismrmrd.DATATYPE_INT)
    message[-4 * frame.size :] = frame.astype("<i4").tobytes()
    with Client(server.port) as client:
        client.send(struct.pack("<H", 1022) + bytes(message), close=True)
        raw = b"".join(iter(lambda: client.socket.recv(2**16), b""))
    assert raw[2 : 2 + len(message)] == message
    mask = ismrmrd.Image.from_bytes(raw[4 + len(message) :])
    assert np.array_equal(mask.data[0, 0], segmenter.segment(frame.astype(np.int32), spacing_of(sent)).labels)


def test_every_partition_of_a_volume_is_segmented(server, segmenter, stacks):
    sent = image(stacks[0][:3])
    back, mask, _ = images(talk(server.port, sent))
    assert back == sent
    for z in range(3):
        assert np.array_equal(mask.data[0, z], segmenter.segment(stacks[0, z], spacing_of(sent)).labels)


ODD = {
    "no pixels": lambda f: image(f[:0]),
    "not a magnitude": lambda f: image(f, image_type=ismrmrd.IMTYPE_PHASE),
    "0 x 0 mm": lambda f: image(f, field_of_view=(0, 0, 0)),
    "nan": lambda f: image(f, field_of_view=(float("nan"), 300, 8)),
    "NaN": lambda f: image(np.where(f > f.mean(), np.nan, f).astype(np.float32)),
    "constant": lambda f: image(np.full_like(f, 7)),
    "channel": lambda f: image(np.stack([f, f])[:, None]),
    "4096 x 16": lambda f: image(np.zeros((16, 4096), np.uint16)),
}


@pytest.mark.parametrize("why", ODD)
def test_what_cannot_be_segmented_comes_back_with_a_note(server, frame, why):
    sent = ODD[why](frame)
    found = talk(server.port, sent, image(frame))
    back, good, _, _ = images(found)
    assert back.to_bytes() == sent.to_bytes()
    assert np.array_equal(good.data[0, 0], frame)
    noted = [t for t in texts(found) if why in t]
    assert len(noted) == 2  # at once, and in the count at the end
    assert all(t.startswith("WRN series 1") for t in noted)
    assert "1 of 2 images have no mask" in noted[1]


@pytest.mark.parametrize("attributes", [b"no XML", b"<ismrmrdMeta>", b"\xff\xfe\0", b"<ismrmrdMeta></ismrmrdMeta>\0\0",
                                        b'<!DOCTYPE x [<!ENTITY a "aaaa">]><ismrmrdMeta><meta><name>&a;</name>'
                                        b"<value>1</value></meta></ismrmrdMeta>"])
def test_attributes_of_any_kind_go_back_byte_for_byte(server, frame, attributes):
    plain = image(frame, meta={}).to_bytes()
    message = plain[:198] + struct.pack("<Q", len(attributes)) + attributes + plain[206:]
    with Client(server.port) as client:
        client.send(struct.pack("<H", 1022) + message, close=True)
        raw = b"".join(iter(lambda: client.socket.recv(2**16), b""))
    assert raw[2 : 2 + len(message)] == message
    mask = ismrmrd.Image.from_bytes(raw[4 + len(message) :])
    assert mask.data.any()
    assert "aaaa" not in mask.attribute_string


def test_four_clients_at_once_lose_nothing_and_keep_their_order(server, stacks):
    frames = stacks.reshape(-1, *stacks.shape[2:])
    found: dict[int, list] = {}

    def client(number):
        sent = [image(frames[(k + number) % len(frames)], image_index=k, measurement_uid=number) for k in range(12)]
        found[number] = images(talk(server.port, *sent))

    threads = [threading.Thread(target=client, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        mine = found[number][:-1]
        assert [(i.image_index, i.image_series_index) for i in mine] == [(k, s) for k in range(12) for s in (1, 1001)]
        assert {i.measurement_uid for i in mine} == {number}
        for k, original in enumerate(mine[::2]):
            assert np.array_equal(original.data[0, 0], frames[(k + number) % len(frames)])


def test_a_client_that_reads_only_after_it_has_sent_everything_gets_everything(server, frame):
    with Client(server.port) as client:
        client.send(*[image(frame, image_index=k) for k in range(40)], close=True)  # more than the system's buffers
        assert len(images(client.rest())) == 81


def test_acquisitions_and_waveforms_are_read_past_with_one_warning_each(server, frame):
    acquisition = ismrmrd.Acquisition.from_array(np.ones((2, 64), np.complex64), np.ones((64, 2), np.float32))
    waveform = ismrmrd.Waveform.from_array(np.ones((3, 50), np.uint32))
    found = talk(server.port, acquisition, waveform, "some text", acquisition, waveform, image(frame))
    assert len([t for t in texts(found) if t.startswith("WRN")]) == 2
    assert len(images(found)) == 3


def wrong(what: str) -> bytes:
    """The beginning of a message that asks for gigabytes."""
    if what == "image":
        head = ismrmrd.ImageHeader(version=1, data_type=8, matrix_size=(65535, 65535, 65535), channels=65535)
        return struct.pack("<H", 1022) + bytes(head) + struct.pack("<Q", 0)
    if what == "attributes":
        return struct.pack("<H", 1022) + bytes(ismrmrd.ImageHeader(data_type=1)) + struct.pack("<Q", 2**60)
    if what == "acquisition":
        head = ismrmrd.AcquisitionHeader(number_of_samples=65535, active_channels=65535, trajectory_dimensions=65535)
        return struct.pack("<H", 1008) + bytes(head)
    if what == "waveform":
        return struct.pack("<H", 1026) + bytes(ismrmrd.WaveformHeader(channels=65535, number_of_samples=65535))
    return struct.pack("<HI", {"config": 2, "header": 3, "text": 5}[what], 2**32 - 1)


@pytest.mark.parametrize("what", ["image", "attributes", "acquisition", "waveform", "config", "header", "text"])
def test_sizes_of_gigabytes_are_refused_before_anything_is_allocated(server, frame, what):
    talk(server.port, image(frame))
    before = server.memory()
    with Client(server.port) as client:
        client.send(image(frame), wrong(what))
        found = client.rest()
    assert images(found)[0].data.shape == (1, 1, *frame.shape)  # what was good before it went back
    assert texts(found)[-1].startswith("ERR a message says that it has")
    assert f"{what}), more than" in texts(found)[-1]
    assert server.memory() < before + 2**26
    assert len(images(talk(server.port, image(frame)))) == 3
    wait_for(server, lambda log: f"{what}), more than" in log)


@pytest.mark.parametrize(("number", "why"), [(0, "unknown message 0"), (1030, "unknown message 1030"),
                                             (65535, "unknown message 65535")])
def test_an_unknown_message_ends_its_session_and_no_other(server, frame, number, why):
    with Client(server.port) as other, Client(server.port) as client:
        other.send(image(frame))
        client.send(image(frame), struct.pack("<H", number), b"\7" * 1000)
        assert why in texts(client.rest())[-1]
        other.send(close=True)
        assert len(images(other.rest())) == 3
    assert why in server.log


def test_a_client_that_is_gone_in_the_middle_of_an_image_is_one_line_in_the_log(server, frame):
    for reset in (False, True):
        with Client(server.port) as client:
            port = client.socket.getsockname()[1]
            if reset:
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.send(struct.pack("<H", 1022) + image(frame).to_bytes()[:5000])
        assert port
    assert len(images(talk(server.port, image(frame)))) == 3
    wait_for(server, lambda log: "left inside a message (image)" in log and "gone" in log)


def test_the_next_client_is_served_while_others_hang(server, frame):
    with Client(server.port) as silent, Client(server.port) as half:
        half.send(struct.pack("<H", 1022) + image(frame).to_bytes()[:5000])
        assert len(images(talk(server.port, image(frame)))) == 3
        silent.send(image(frame), close=True)
        assert len(images(silent.rest())) == 3


def test_nothing_of_the_patient_is_logged(server, frame):
    meta = {"PatientName": "Ventricle^Vera", "StudyInstanceUID": "1.2.826.0.1.4711"}
    talk(server.port, "Ventricle^Vera", image(frame, meta=meta), image(frame[:0], meta=meta))
    with Client(server.port) as client:
        client.send(HEADER, image(frame, meta=meta), b"Ventricle^Vera")
        client.rest()
    assert not any(word in server.log for word in ("Ventricle", "Vera", "4711"))


def wait_for(server: Server, said) -> None:
    for _ in range(200):
        if said(server.log):
            return
        time.sleep(0.05)
    raise AssertionError(server.log)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """One client at a time, who must not be slow."""
    folder = tmp_path_factory.mktemp("strict mrd")
    with serving(folder, "--precision", "fp32", "--clients", "1", "--stall", "0.4", "--idle", "1.5",
                 bundle="cine") as found:
        yield found


def test_a_client_that_stalls_is_given_up_and_its_place_is_free_again(strict, frame):
    for sent, why in ((struct.pack("<H", 1022) + image(frame).to_bytes()[:5000], "nothing came for 0.4 s (image)"),
                      (b"", "nothing came for 1.5 s (message)")):
        with Client(strict.port) as client:
            client.send(sent)
            assert texts(client.rest()) == [f"ERR {why}"]
        wait_for(strict, lambda log, why=why: why in log)


def test_a_client_above_the_limit_is_told_so_and_not_kept_waiting(strict, frame):
    with Client(strict.port) as first:
        first.send(image(frame))
        first.receive(1)
        with Client(strict.port) as second:
            assert texts(second.rest()) == ["ERR all places are taken, come back later"]
        first.send(close=True)
        first.rest()
    wait_for(strict, lambda log: log.count("connected") == log.count(" images, "))
    assert len(images(talk(strict.port, image(frame)))) == 3


def test_sigterm_ends_live_sessions_and_the_server_and_frees_the_port(strict, frame):
    """The last test of this server."""
    with Client(strict.port) as client:
        client.send(image(frame))
        client.receive(2)
        assert strict.stop() == 0
        assert texts(client.rest())[-1] == "ERR the server stops"
    socket.create_server(("127.0.0.1", strict.port)).close()
    assert strict.log.rstrip().endswith("stopped")


def run(*options: str, code: str = CODE) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)


def test_a_port_that_is_taken_is_one_line(server):
    done = run("--bundle", "cine", "--port", str(server.port))
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == (
        f"edgeseg: --host 127.0.0.1 --port {server.port}: Address already in use: choose another")


def test_a_missing_extra_is_one_line_and_the_command_line_loads_none_of_it():
    done = run("--bundle", "cine", "--port", "0", code="import sys; sys.modules['ismrmrd'] = None\n" + CODE)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "edgeseg: this needs ismrmrd: pip install 'edgeseg[mrd]'"
    done = run(code="import sys, edgeseg.cli.serve_mrd; print({'ismrmrd', 'openvino', 'cv2'} & set(sys.modules))")
    assert done.stdout == "set()\n"
