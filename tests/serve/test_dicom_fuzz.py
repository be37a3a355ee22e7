"""A valid session, cut short at every byte or changed: the node answers the next client and keeps whole objects."""

import random
import socket
import struct
import threading

import numpy as np
import pytest
import tiny_bundle

pytest.importorskip("pynetdicom")
pytest.importorskip("highdicom")
from dicom_files import PERSON, Plane, slice_file
from dicom_peer import BEAT, associate, cine, echo, labels_of, node, results_of, store, wait_for
from pydicom import dcmread
from pynetdicom import evt

from edgeseg.runtime.segmenter import Segmenter

ANSWERED = (0x01, 0x05)
"""Types of the messages that are answered, besides whole requests: A-ASSOCIATE, A-RELEASE."""
DATA, COMMAND, LAST = 0x04, 1, 2
"""P-DATA, and the bits of what it carries: part of a command (else of a data set), the last part."""


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    return Segmenter(tiny_bundle.make_bundle(tmp_path_factory.mktemp("fuzz") / "tiny.edgeseg"), threads=1)


def small():
    return slice_file(np.arange(64).reshape(8, 8), Plane(), 0, 0, 1, series="1.99")


def recorded(address) -> list[tuple[bytes, bool]]:
    """The messages of a client that echoes, stores an image and releases; and after which of them an answer comes."""
    sent: list[bytes] = []
    data = small()
    association = associate(address, [data])
    association.bind(evt.EVT_DATA_SENT, lambda event: sent.append(bytes(event.data)))
    assert association.send_c_echo().Status == 0
    assert association.send_c_store(data).Status == 0
    association.release()
    request = association.requestor.primitive
    from pynetdicom.pdu import A_ASSOCIATE_RQ

    first = A_ASSOCIATE_RQ()
    first.from_primitive(request)
    messages = [first.encode(), *sent]
    following = [*(m[0] == DATA and not m[11] & COMMAND for m in messages[1:]), False]  # is more of the same request
    return [(m, m[0] in ANSWERED or bool(m[0] == DATA and m[11] & LAST and not more))
            for m, more in zip(messages, following, strict=True)]


def read_message(client: socket.socket) -> bytes:
    head = b""
    while len(head) < 6 and (more := client.recv(6 - len(head))):
        head += more
    if len(head) < 6:
        return head
    body, length = b"", struct.unpack(">L", head[2:])[0]
    while len(body) < length and (more := client.recv(length - len(body))):
        body += more
    return head + body


def replay(address, messages: list[tuple[bytes, bool]], stop: int, rude: bool) -> None:
    """Send the first `stop` bytes of a session as a client would, waiting for its answers, and leave."""
    with socket.create_connection(address, timeout=5) as client:
        try:
            for message, answered in messages:
                client.sendall(message[:stop])
                if (stop := stop - len(message)) <= 0:
                    break
                if answered and not read_message(client):
                    break
        except (TimeoutError, ConnectionError):
            pass  # the node had enough of it
        if rude:  # the connection is reset, not closed
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def changed(messages: list[tuple[bytes, bool]], rng: random.Random) -> list[tuple[bytes, bool]]:
    """The session with some bytes of one message other than they were."""
    which = rng.randrange(len(messages))
    message = bytearray(messages[which][0])
    for _ in range(rng.choice((1, 1, 2, 8))):
        message[rng.randrange(len(message))] = rng.choice((0, 0xFF, 0x7F, rng.randrange(256)))
    return [*messages[:which], (bytes(message), False), *[(m, False) for m, _ in messages[which + 1 :]]]


def survives(running, cases: int, seed: int, step: int) -> None:
    """Cut the session at every `step`-th byte, then change it until there were `cases` cases; then all is well."""
    rng = random.Random(seed)
    messages = recorded(running.address)
    length = sum(len(m) for m, _ in messages)
    cuts = list(range(seed % step, length, step))[:cases]
    for stop in cuts:
        replay(running.address, messages, stop, rude=stop % 2 == 1)
    for _ in range(cases - len(cuts)):
        replay(running.address, changed(messages, rng), length, rude=rng.random() < 0.5)
    wait_for(lambda: echo(running.address))
    for path in (running.spool.folder / "incoming").rglob("*.dcm"):
        dcmread(path).pixel_array  # whole  # noqa: B018
    data = cine("1.2.77")
    assert set(wait_for(lambda: store(running.address, data))) == {0}

    def done():
        found = [s for s in results_of(running.spool.folder)
                 if s.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.77"]
        return len(found) == 2 and found

    np.testing.assert_array_equal(labels_of(wait_for(done), data).reshape(BEAT.shape), BEAT)
    said = " ".join(running.lines)
    assert PERSON not in said
    assert "are open" not in said  # every case was heard
    wait_for(lambda: not any("AcceptorThread" in t.name for t in threading.enumerate()), 20)  # nobody is left waiting
    assert list((running.spool.folder / "receiving").glob("*.dcm")) == []


def test_a_session_cut_short_or_changed_harms_nobody_else(segmenter, tmp_path):
    with node(segmenter, tmp_path, quiet=2.0) as running:
        survives(running, cases=50, seed=3, step=61)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
def test_a_session_cut_at_every_byte_and_changed_harms_nobody_else(segmenter, tmp_path, seed):
    with node(segmenter, tmp_path, quiet=2.0) as running:
        survives(running, cases=2500, seed=seed, step=1)
