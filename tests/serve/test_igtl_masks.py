"""OpenIGTLink: the masks that come back are Python's, at the place and time of their images."""

import struct

import cv2
import igtl_peer
import numpy as np
import pyigtl
import pytest
import tiny_clips
from igtl_peer import Peer, image

from edgeseg import Segmenter, Stream, open_bundle
from edgeseg.measure.bench import scanner_frames
from edgeseg.phantoms.cine import cine_case
from edgeseg.shipped import find

SPACING = (1.40625, 1.40625)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with igtl_peer.serving("cine", tmp_path_factory.mktemp("igtl"), "--precision", "fp32") as running:
        yield running


@pytest.fixture(scope="module")
def python():
    return Segmenter(find("cine"), precision="fp32", threads=1)


@pytest.fixture(scope="module")
def scanner(python):
    """Frames [256, 216] uint16 of the protocol for which the bundle has a frame graph."""
    frames, spacings, _ = scanner_frames(python.bundle)
    assert spacings[0] == SPACING
    seen = [f[0] for f in frames if python.segment(f[0], SPACING).labels.any()]  # not all of them show the heart
    assert len(seen) > len(frames) / 2
    return seen


def test_through_pyigtl_masks_matrix_and_time_are_those_of_python(server, python, scanner):
    client = pyigtl.OpenIGTLinkClient("127.0.0.1", server.port)
    try:
        for number, frame in enumerate(scanner):
            expected = python.segment(frame, SPACING)
            assert expected.ok
            assert expected.labels.any()
            sent = pyigtl.ImageMessage(frame[None], igtl_peer.matrix(), "ras", 1000.5 + number, "Probe")
            client.send_message(sent)
            got = client.wait_for_message("Probe_seg", timeout=20)
            assert got is not None, server.log()
            np.testing.assert_array_equal(got.image[0], expected.labels)
            assert got.image.dtype == np.uint8
            assert got.timestamp == sent.timestamp
            assert got.world_coordinate_system == "ras"
            np.testing.assert_allclose(got.ijk_to_world_matrix, igtl_peer.matrix(), atol=1e-3)
    finally:
        client.stop()


def test_place_and_time_come_back_bit_for_bit(server, scanner):
    sent = bytearray(image(scanner[0]))
    sent[34:42] = struct.pack(">II", 1_700_000_000, 0x12345679)  # finer than a float of seconds
    with Peer(server.port) as peer:
        reply = peer.ask(bytes(sent))
    assert reply.stamp == sent[34:42]
    assert reply.body[5:72] == sent[58 + 5 : 58 + 72]
    assert reply.body[:5] == bytes((0, 1, 1, 3, 2))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64", ">u2", ">f8"])
def test_every_type_of_pixels_has_the_masks_of_python(server, python, dtype):
    case = cine_case(3, 5, "ED")
    frame = case.frames[len(case.frames) // 2, 0]
    frame = (frame * (250 / frame.max())).astype(dtype)
    expected = python.segment(frame.astype(np.dtype(dtype).newbyteorder("=")), case.spacing)
    assert expected.ok
    assert expected.labels.any()
    with Peer(server.port) as peer:
        np.testing.assert_array_equal(peer.ask(as_sent(frame, case.spacing)).labels[0], expected.labels)


def as_sent(frame, spacing):
    """pyigtl does not pack big-endian pixels."""
    if frame.dtype.byteorder != ">":
        return image(frame, spacing)
    sent = image(frame.astype(frame.dtype.newbyteorder("=")), spacing)
    return igtl_peer.changed(igtl_peer.changed(sent, 4, b"\1"), igtl_peer.IMAGE_HEAD, frame.tobytes())


def test_colour_becomes_the_grey_of_clips(server, python, scanner):
    frame = np.clip(scanner[0] / scanner[0].max() * 255, 0, 255).astype(np.uint8)
    colour = np.stack([frame, np.roll(frame, 3, 0), frame // 2, np.full_like(frame, 255)], axis=-1)
    expected = python.segment(cv2.cvtColor(colour[..., :3].copy(), cv2.COLOR_RGB2GRAY), SPACING).labels
    assert expected.any()
    with Peer(server.port) as peer:
        for components in (3, 4):
            reply = peer.ask(image(np.ascontiguousarray(colour[None, ..., :components])))
            np.testing.assert_array_equal(reply.labels[0], expected)


def test_a_plane_may_lie_along_any_two_axes(server, python, scanner):
    frame = scanner[0].astype(np.float32)
    whole = igtl_peer.matrix((1.0, 1.5))
    whole[:3, 2] /= 4  # 2 mm between planes
    with Peer(server.port) as peer:
        for flat, spacing in ((0, (1.0, 1.5)), (1, (2.0, 1.5)), (2, (2.0, 1.0))):
            pixels = np.expand_dims(frame, flat)
            reply = peer.ask(pyigtl.ImageMessage(pixels, whole, timestamp=1.0, device_name="Image").pack())
            np.testing.assert_array_equal(np.squeeze(reply.labels), python.segment(frame, spacing).labels)
            assert reply.labels.shape == pixels.shape


def test_metadata_of_header_version_2_is_no_pixel(server, python, scanner):
    with Peer(server.port) as peer:
        reply = peer.ask(image(scanner[1], version=2))
    np.testing.assert_array_equal(reply.labels[0], python.segment(scanner[1], SPACING).labels)


def test_clients_at_once_get_their_own_masks_in_order(server, python, scanner):
    expected = [python.segment(frame, SPACING).labels for frame in scanner]

    def client(first: int) -> None:
        order = [(first + i) % len(scanner) for i in range(12)]
        with Peer(server.port) as peer:
            for n, number in enumerate(order):
                peer.send(image(scanner[number], stamp=n + 1, device=f"Image{first}"))
                if n % 4 == 3:  # four on their way at a time
                    for m in range(n - 3, n + 1):
                        reply = peer.read()
                        assert (reply.device, reply.stamp) == (f"Image{first}_seg", struct.pack(">II", m + 1, 0))
                        np.testing.assert_array_equal(reply.labels[0], expected[order[m]])

    igtl_peer.in_threads(*(lambda i=i: client(i) for i in range(3)))


def test_a_long_device_name_is_cut_and_one_that_is_not_ascii_made_so(server, scanner):
    with Peer(server.port) as peer:
        assert peer.ask(image(scanner[0], device="ABCDEFGHIJKLMNOPQRST")).device == "ABCDEFGHIJKLMNOP_seg"
        odd = bytearray(image(scanner[0]))
        odd[14:34] = b"B\xfc\x07d".ljust(20, b"\0")
        assert peer.ask(bytes(odd)).device == "B??d_seg"


@pytest.fixture(scope="module")
def clip_bundle(clip_run, tmp_path_factory):
    """Of a recurrent student, without INT8: `stream_bundle` takes several times as long to make."""
    from edgeseg.bundle.export import export_bundle

    return open_bundle(export_bundle(clip_run, tmp_path_factory.mktemp("recurrent") / "clip.edgeseg", int8=False,
                                     seconds=0.1))


@pytest.fixture(scope="module")
def clip_server(clip_bundle, tmp_path_factory):
    with igtl_peer.serving(clip_bundle.path, tmp_path_factory.mktemp("igtl clip"), "--precision", "fp32") as running:
        yield running


def clip(seed):
    return [f[0].astype(np.uint8) for f in tiny_clips.clip(seed, 10)[0]]


def push(peer, frame, stamp, **given):
    return peer.ask(image(frame, (1.0, 1.0), stamp, **given))


def test_a_recurrent_bundle_remembers_the_frames_of_a_connection(clip_server, clip_bundle):
    python = Stream(open_bundle(clip_bundle.path), precision="fp32", threads=1)
    alone = Segmenter(clip_bundle, precision="fp32", threads=1)
    apart = 0
    for seed in (1, 2):  # the second client begins anew
        python.reset()
        with Peer(clip_server.port) as peer:
            for i, frame in enumerate(clip(seed)):
                expected = python.push(frame, 5 + i / 50)
                assert expected.ok
                np.testing.assert_array_equal(push(peer, frame, 5 + i / 50).labels[0], expected.labels)
                apart += int((expected.labels != alone.segment(frame, (1.0, 1.0)).labels).sum())
    assert apart > 0  # or remembering would prove nothing


def test_time_stamps_rule_what_is_remembered(clip_server, clip_bundle):
    frames, times = clip(3), [1 + i / 50 for i in range(10)]
    times[5:] = [t + 2 for t in times[5:]]
    times[8] = times[7]
    python = Stream(clip_bundle, precision="fp32", threads=1)
    with Peer(clip_server.port) as peer:
        for i, frame in enumerate(frames):
            expected, reply = python.push(frame, times[i]), push(peer, frame, times[i])
            if i in (5, 8):
                assert (reply.code, reply.device) == (1, "Image_seg")
                assert reply.text.startswith("gap:" if i == 5 else "time:")
                assert not expected.ok
                reply = peer.read()
            np.testing.assert_array_equal(reply.labels[0], expected.labels)


def test_another_device_or_pixel_size_begins_a_new_clip_and_a_turned_probe_does_not(clip_server, clip_bundle):
    frames = clip(4)
    python = Stream(clip_bundle, precision="fp32", threads=1)
    with Peer(clip_server.port) as peer:
        for i, frame in enumerate(frames):
            spacing = (1.0, 1.0) if i < 7 else (1.1, 1.1)
            if i in (4, 7):
                python.reset()
            python.spacing = spacing
            expected = python.push(frame, 1 + i / 50)
            sent = igtl_peer.matrix(spacing)
            sent[:3, :3] = np.roll(sent[:3, :3], i, axis=0)  # another pose, whose pixel size differs in its last digits
            got = peer.ask(pyigtl.ImageMessage(frame[None], sent, timestamp=1 + i / 50,
                                               device_name="A" if i < 4 else "B").pack())
            np.testing.assert_array_equal(got.labels[0], expected.labels)
