"""Broken streams into the MRD session: cut at any byte, bytes changed. It ends, says why, the next one is served."""

import io
import random
import socket

import numpy as np
import pytest
import tiny_bundle

pytest.importorskip("ismrmrd", reason="the extra `mrd` is not installed")

import ismrmrd
from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolDeserializer, ProtocolSerializer
from mrd_client import HEADER, image, images, texts

from edgeseg.container import open_bundle
from edgeseg.serve.common import Segmenters
from edgeseg.serve.mrd_session import Session, Settings
from edgeseg.serve.mrd_wire import CLOSE, Reader

SEED = 8


def items() -> list:
    """One of every message; two images, the second with attributes."""
    pixels = tiny_bundle.frame(0)[0, 8:32, 8:28].astype(np.uint16)
    return [ConfigFile("edgeseg"), ConfigText("{}"), HEADER, "text",
            ismrmrd.Waveform.from_array(np.ones((2, 5), np.uint32)), image(pixels, (1.5, 1.5), meta={}),
            ismrmrd.Acquisition.from_array(np.ones((1, 8), np.complex64), np.ones((8, 2), np.float32)),
            image(pixels.astype(np.float32), (1.5, 1.5), image_index=1)]


@pytest.fixture(scope="module")
def stream() -> tuple[bytes, list[int]]:
    """A valid session, and where each image ends in it."""
    out, ends = io.BytesIO(), []
    with ProtocolSerializer(out) as writer:
        for item in items():
            writer.serialize(item)
            if isinstance(item, ismrmrd.Image):
                ends.append(out.tell())
    return out.getvalue(), ends


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory):
    bundle = open_bundle(tiny_bundle.make_bundle(tmp_path_factory.mktemp("mrd fuzz") / "tiny.edgeseg"))
    return Segmenters(bundle, precision="fp32", threads=1, most=2)


def serve(data: bytes, segmenters: Segmenters) -> tuple[bytes, list[str]]:
    """What a client that sends `data` and hangs up gets, and the log."""
    ours, theirs = socket.socketpair()
    log: list[str] = []
    with theirs:
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)
        Session(ours, segmenters, Settings(stall=5), log.append).run()
        return b"".join(iter(lambda: theirs.recv(2**16), b"")), log


def read(answer: bytes) -> list:
    return list(ProtocolDeserializer(io.BytesIO(answer)).deserialize())


def count(answer: bytes) -> int:
    """Messages up to the close, without a look at what is in them: an original may hold anything."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**20)
        ours.sendall(answer)
        reader = Reader(theirs, 5, 5)
        return sum(1 for _ in iter(reader.read, CLOSE))


def originals(found: list) -> list[ismrmrd.Image]:
    return [i for i in images(found) if i.image_series_index == 1]


def cut(length: int, stream: tuple[bytes, list[int]], segmenters: Segmenters) -> None:
    data, ends = stream
    answer, log = serve(data[:length], segmenters)
    found = read(answer)
    whole = sum(end <= length for end in ends)
    assert [i.to_bytes() for i in originals(found)] == [
        i.to_bytes() for i in items() if isinstance(i, ismrmrd.Image)][:whole]
    assert len(log) == 1
    assert "the client left" in log[0]
    assert f"{whole} images, {whole} masks" in log[0]
    assert texts(found)[-1].startswith("ERR the client left")


def changed(seed: int, data: bytes) -> bytes:
    """Some bytes set anew, a piece left out, or one put in."""
    rng = random.Random(seed)
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(broken))
        kind = rng.random()
        if kind < 0.7:
            broken[at] = rng.choice((0, 1, 255, rng.randrange(256)))
        elif kind < 0.85:
            del broken[at : at + rng.randrange(1, 300)]
        else:
            broken[at:at] = rng.randbytes(rng.randrange(1, 300))
    return bytes(broken)


def survive(seed: int, stream: tuple[bytes, list[int]], segmenters: Segmenters) -> None:
    """No exception, an answer that can be read to its close, and one line in the log that says how it ended."""
    answer, log = serve(changed(seed, stream[0]), segmenters)
    assert count(answer) >= int(log[0].partition("; ")[2].split()[0])  # every image that came, at least
    assert len(log) == 1
    assert "failed" not in log[0]


def whole_session(stream: tuple[bytes, list[int]], segmenters: Segmenters) -> None:
    answer, log = serve(stream[0], segmenters)
    assert (len(images(read(answer))), log) == (5, ["closed; 2 images, 2 masks"])


def test_a_whole_session_is_served(stream, segmenters):
    whole_session(stream, segmenters)


def test_a_session_cut_at_any_byte_ends_with_what_was_whole(stream, segmenters):
    last = len(stream[0]) - 2
    edges = {0, 1, 2, last + 1, *(e + d for e in stream[1] for d in (-1, 0, 1))}
    for length in sorted(edges | set(random.Random(SEED).sample(range(last), 120))):
        cut(length, stream, segmenters)
    whole_session(stream, segmenters)


def test_changed_bytes_end_a_session_at_worst(stream, segmenters):
    for seed in range(120):
        survive(seed, stream, segmenters)
    whole_session(stream, segmenters)


@pytest.mark.soak
def test_a_session_cut_at_every_byte_ends_with_what_was_whole(stream, segmenters):
    assert len(stream[0]) > 2000
    for length in range(len(stream[0])):
        cut(length, stream, segmenters)
    whole_session(stream, segmenters)


@pytest.mark.soak
def test_thousands_of_changed_sessions_end_at_worst(stream, segmenters):
    for seed in range(1000, 4000):
        survive(seed, stream, segmenters)
    whole_session(stream, segmenters)
