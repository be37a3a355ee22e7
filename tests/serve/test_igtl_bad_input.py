"""OpenIGTLink: whatever a client sends or leaves out, the server says what was wrong and answers the next one."""

import random
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import igtl_peer
import numpy as np
import pyigtl
import pytest
import tiny_bundle
from igtl_peer import Peer, changed, header, image

from edgeseg import Segmenter
from edgeseg.serve.common import Stop
from edgeseg.serve.igtl import Server
from edgeseg.serve.igtl_session import Limits

SPACING = (1.5, 1.5)
FRAME = tiny_bundle.frame(0)[0].astype(np.uint16)
GOOD = image(FRAME, SPACING)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return tiny_bundle.make_bundle(tmp_path_factory.mktemp("igtl bundle") / "tiny.edgeseg", precisions=("fp32",))


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    with igtl_peer.serving(bundle, tmp_path_factory.mktemp("igtl bad input")) as running:
        yield running


@pytest.fixture(scope="module")
def expected(bundle):
    found = Segmenter(bundle, precision="fp32", threads=1).segment(FRAME, SPACING)
    assert set(np.unique(found.labels)) == {0, 1, 2, 3}
    return found.labels


def check_serves(peer, expected):
    np.testing.assert_array_equal(peer.ask(GOOD).labels[0], expected)


def numbers(at, *values):
    return changed(GOOD, at, struct.pack(f">{len(values)}H", *values))


REFUSED = {
    "checksum": (changed(GOOD, 100, b"\xff\xff", crc=False), 9, "the checksum of the body is wrong"),
    "no pixels": (numbers(6, 0, 40, 1), 2, "an image without pixels: 0 x 40 x 1, 1 components"),
    "no components": (changed(GOOD, 2, b"\0"), 2, "0 components"),
    "fewer bytes than its size": (numbers(6, 36, 4000, 1), 12, "parts of images"),
    "lying size": (changed(numbers(6, 65535, 65535, 65535), 66, b"\xff" * 6), 2, "bytes of pixels, its size says"),
    "part of an image": (numbers(60, 1, 0, 0), 12, "parts of images are not supported"),
    "complex pixels": (changed(GOOD, 3, b"\x0d"), 12, "pixels of type 13"),
    "byte order": (changed(GOOD, 4, b"\x07"), 12, "byte order 7"),
    "volume": (image(np.stack([FRAME] * 3), SPACING), 12, "a volume of 3 planes: send one plane an image"),
    "two components": (image(np.stack([FRAME] * 2, -1)[None], SPACING), 2, "2 components a pixel"),
    "constant": (image(np.ones_like(FRAME), SPACING), 2, "the image is constant"),
    "NaN": (image(np.where(FRAME > 100, np.nan, FRAME), SPACING), 2, "NaN or infinite"),
    "a double that float32 does not hold": (image(FRAME * 1e300, SPACING), 2, "NaN or infinite"),
    "NaN in the matrix": (changed(GOOD, 12, struct.pack(">f", np.nan)), 2, "is not two positive numbers"),
    "pixels of no size": (image(FRAME, (0.0, 1.5)), 2, "is not two positive numbers"),
    "pixels of a metre": (image(FRAME, (1000.0, 1000.0)), 2, "pixels of 1000 x 1000 mm make an image"),
    "pixels of infinite size": (changed(GOOD, 12, struct.pack(">f", np.inf)), 2, "is not two positive numbers"),
    "no body": (header(), 2, "an image of 0 bytes"),
    "body of one byte": (header(size=1, crc=0x42F0E1EBA9EA3693) + b"\1", 2, "an image of 1 bytes"),
    "no extended header": (header(version=2), 2, "no extended header"),
    "metadata larger than the body": (changed(image(FRAME, SPACING, version=2), 4, b"\xff" * 4), 2, "do not fit"),
    "extended header larger than it": (changed(image(FRAME, SPACING, version=2), 0, b"\xff" * 2), 2, "do not fit"),
    "extended header of no size": (changed(image(FRAME, SPACING, version=2), 0, bytes(2)), 2, "do not fit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_segmented_is_answered_by_a_status_and_the_connection_goes_on(server, expected, name):
    message, code, text = REFUSED[name]
    with Peer(server.port) as peer:
        reply = peer.ask(message)
        assert (reply.type, reply.device, reply.code) == ("STATUS", "Image_seg", code)
        assert text in reply.text
        check_serves(peer, expected)
    assert text in server.log()


@pytest.mark.parametrize("size", [2**25 + 1, 2**33, 2**63, 2**64 - 1])
@pytest.mark.parametrize("kind", [b"IMAGE", b"STRING"])
def test_a_body_of_gigabytes_is_refused_before_memory_is_asked_for(server, expected, kind, size):
    before = server.memory("VmPeak")
    with Peer(server.port) as peer:
        reply = peer.ask(header(kind, size) + bytes(100_000))
        assert reply.code == 11
        assert f"a body of {size} bytes" in reply.text
        assert peer.rest() == []
    assert server.memory("VmPeak") - before < 200_000  # KiB: address space of a thread, not of the body
    with Peer(server.port) as peer:
        check_serves(peer, expected)


@pytest.mark.parametrize("rubbish", [b"GET / HTTP/1.1\r\n\r\n" + bytes(60), bytes(58), b"\xff" * 500])
def test_what_is_not_openigtlink_is_told_so_and_left(server, expected, rubbish):
    with Peer(server.port) as peer:
        reply = peer.ask(rubbish)
        assert reply.code == 17
        assert "not OpenIGTLink" in reply.text
        assert peer.rest() == []
    with Peer(server.port) as peer:
        check_serves(peer, expected)


def test_other_messages_are_passed_over(server, expected):
    others = [pyigtl.TransformMessage(np.eye(4), device_name="Probe"), pyigtl.StringMessage("hello", device_name="S"),
              pyigtl.PointMessage(positions=[[1.0, 2.0, 3.0]], device_name="P")]
    with Peer(server.port) as peer:
        for other in others:
            peer.send(other.pack())
        peer.send(header(b"NOBODYKNOWS", 200_000) + bytes(200_000) + header(b"\xff\xfe\0\0"))
        check_serves(peer, expected)  # the first answer is that to the image


def test_queries_are_answered(server):
    with Peer(server.port) as peer:
        reply = peer.ask(header(b"GET_CAPABIL"))
        assert reply.type == "CAPABILITY"
        assert struct.unpack("12s" * (len(reply.body) // 12), reply.body)[0].rstrip(b"\0") == b"IMAGE"
        assert peer.ask(GOOD).type == "IMAGE"
        reply = peer.ask(header(b"GET_STATUS"))
        assert (reply.code, reply.text) == (1, "1 of 1 images segmented")
        assert peer.ask(header(b"STT_TDATA", 3) + b"abc").code == 12


def test_a_second_client_is_served_while_the_first_hangs_in_its_image(server, expected):
    with Peer(server.port) as hanging, Peer(server.port) as peer:
        hanging.send(GOOD[:1000])
        for _ in range(3):
            check_serves(peer, expected)
        hanging.send(GOOD[1000:])
        np.testing.assert_array_equal(hanging.read().labels[0], expected)


def test_who_has_sent_all_still_gets_every_answer(server, expected):
    with Peer(server.port) as peer:
        peer.send(GOOD * 5)
        assert [r.type for r in peer.rest()] == ["IMAGE"] * 5


def test_a_connection_that_is_reset_hurts_nobody(server, expected):
    for _ in range(5):
        peer = Peer(server.port)
        peer.send(GOOD * 3 + GOOD[:500])
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        peer.socket.close()
    with Peer(server.port) as peer:
        check_serves(peer, expected)


def test_the_log_holds_nothing_that_a_client_wrote(server):
    with Peer(server.port) as peer:
        peer.ask(image(np.ones_like(FRAME), SPACING, device="DOE^JANE", version=2))
        peer.send(header(b"SMITH"))
        peer.ask(header(b"GET_MILLER"))
    log = server.log()
    assert "the image is constant" in log
    assert not any(name in log for name in ("DOE", "JANE", "SMITH", "MILLER"))


def in_process(bundle, limits):
    """A server in this process, whose limits no option changes; (address, its log, what stops it)."""
    lines, stop = [], Stop()
    server = Server(bundle, "127.0.0.1", 0, precision="fp32", threads=1, log=lines.append, limits=limits)
    thread = threading.Thread(target=server.serve, args=(stop,))
    thread.start()

    def end():
        stop.set()
        thread.join()

    return server.address[1], lines, end


def test_a_slow_client_loses_the_oldest_replies_and_is_told(bundle):
    pixels = np.random.default_rng(0).integers(0, 300, (500, 500), np.uint16)
    large, count = image(pixels, (0.1, 0.1), device="Large"), 30
    port, lines, end = in_process(bundle, Limits(stall=100))
    try:
        with Peer(port, receive_buffer=4096) as peer:
            for number in range(1, count + 1):  # 7.5 MB of label images: more than sockets and queue hold
                peer.send(large[:34] + struct.pack(">II", number, 0) + large[42:])
            peer.send(header(b"GET_STATUS"))
            replies = peer.rest()
    finally:
        end()
    got = [struct.unpack(">II", r.stamp)[0] for r in replies if r.type == "IMAGE"]
    told = [r for r in replies if r.type == "STATUS"]
    assert got == sorted(got)
    assert (got[0], got[-1]) == (1, count)
    assert told[0].code == 8
    assert sum(int(r.text.split()[0]) for r in told if r.code == 8) == count - len(got) > 0
    assert told[-1].text == f"{count} of {count} images segmented"
    assert any("reads too slowly" in line for line in lines)


def test_who_stalls_in_a_message_is_told_and_left_and_who_says_nothing_is_waited_for(bundle, expected):
    port, lines, end = in_process(bundle, Limits(stall=0.4))
    try:
        with Peer(port) as idle, Peer(port) as stalls, Peer(port) as drips:
            stalls.send(GOOD[:700])
            for byte in GOOD[:8]:
                drips.send(bytes((byte,)))
                time.sleep(0.08)
            for peer in (stalls, drips):
                reply = peer.read()
                assert (reply.code, reply.text) == (7, "a message took more than 0.4 s")
                assert peer.rest() == []
            check_serves(idle, expected)
    finally:
        end()
    assert sum("took more than 0.4 s" in line for line in lines) == 2


def test_clients_above_the_limit_are_turned_away_until_one_leaves(bundle, expected):
    port, lines, end = in_process(bundle, Limits(clients=2))
    try:
        with Peer(port) as first, Peer(port) as second:
            check_serves(first, expected)
            check_serves(second, expected)
            with Peer(port) as third:
                reply = third.read()
                assert (reply.code, reply.text) == (6, "2 clients are served already")
                assert third.rest() == []
            first.rest()
            while not any("left" in line for line in lines):
                time.sleep(0.02)
            with Peer(port) as fourth:
                check_serves(fourth, expected)
    finally:
        end()


def test_a_stream_is_lent_again_and_again(bundle):
    port, _, end = in_process(bundle, Limits())
    try:
        from edgeseg.serve import igtl

        before = igtl.Stream
        igtl.Stream = None  # making another one would fail
        try:
            for _ in range(3):
                with Peer(port) as peer:
                    peer.send(GOOD)
                    assert [r.type for r in peer.rest()] == ["IMAGE"]
        finally:
            igtl.Stream = before
    finally:
        end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_code_0_and_frees_the_port(bundle, tmp_path, expected, number):
    with igtl_peer.serving(bundle, tmp_path) as running, Peer(running.port) as peer, Peer(running.port) as hanging:
        check_serves(peer, expected)
        hanging.send(GOOD[:100])
        assert running.stop(number) == 0
        assert peer.read() is None
        again = socket.create_server(("127.0.0.1", running.port))
        again.close()


def one_line(*arguments, before=""):
    done = subprocess.run([sys.executable, "-c", before + igtl_peer.COMMAND, "alone", *map(str, arguments)],
                          capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


def test_a_taken_port_is_one_line(server, bundle):
    said = one_line("--bundle", bundle, "--port", server.port)
    assert f"--port {server.port}: Address already in use" in said


def test_without_pyigtl_the_command_names_what_to_install(bundle):
    said = one_line("--bundle", bundle, "--port", 0, before="import sys; sys.modules['pyigtl'] = None; ")
    assert "pip install 'edgeseg[igtl]'" in said


def test_the_command_line_starts_without_the_server():
    code = f"import sys; sys.argv[1:] = ['--help']\ntry:\n    {igtl_peer.COMMAND}\nexcept SystemExit:\n    pass\n"
    done = subprocess.run([sys.executable, "-c", code + "print(' '.join(sys.modules))"], capture_output=True, text=True,
                          check=True)
    assert not {"pyigtl", "openvino", "cv2", "edgeseg.serve"} & set(done.stdout.splitlines()[-1].split())


SESSION = [GOOD, header(b"GET_CAPABIL"), image(FRAME, SPACING, version=2), GOOD]
BYTES = b"".join(SESSION)
ENDS = np.cumsum([len(m) for m in SESSION])


def cut(server, at):
    """A valid session that ends after `at` bytes: what was whole is answered, what was not is said to be so."""
    with Peer(server.port) as peer:
        peer.send(BYTES[:at])
        replies = peer.rest()
    whole = int((at >= ENDS).sum())
    assert [r.type for r in replies[:whole]] == ["IMAGE", "CAPABILITY", "IMAGE", "IMAGE"][:whole], at
    assert [r.code for r in replies[whole:]] == ([] if at in (0, *ENDS) else [7]), at


def spoil(server, rng):
    """Some bytes of a session changed or left out: every reply is a message, and the connection ends."""
    spoilt = bytearray(BYTES)
    for _ in range(rng.choice((1, 1, 3, 20))):
        where = rng.choice((rng.randrange(58), rng.randrange(58, 142), rng.randrange(len(BYTES))))
        spoilt[where : where + rng.choice((0, 1))] = rng.randbytes(rng.choice((0, 1, 2)))
    with Peer(server.port) as peer:
        try:
            peer.send(bytes(spoilt))
        except ConnectionError:
            return  # it was left before all was sent
        assert all(r.type in ("IMAGE", "STATUS", "CAPABILITY") for r in peer.rest())


def fuzz(server, expected, cuts, spoils):
    rng = random.Random(8)
    heads = [end + at for end in (0, *ENDS[:-1]) for at in (0, 1, 57, 58, 59, 70, 129, 130, 131) if end + at < ENDS[-1]]
    for at in [*heads, *rng.sample(range(len(BYTES) + 1), cuts - len(heads))]:
        cut(server, at)
    for _ in range(spoils):
        spoil(server, rng)
    assert server.process.poll() is None
    with Peer(server.port) as peer:
        check_serves(peer, expected)


def test_a_session_cut_or_spoilt_anywhere_hurts_nobody(server, expected):
    fuzz(server, expected, cuts=80, spoils=60)


@pytest.mark.soak
def test_thousands_of_sessions_cut_or_spoilt_hurt_nobody(server, expected):
    assert len(BYTES) > 2000
    fuzz(server, expected, cuts=2000, spoils=2000)
