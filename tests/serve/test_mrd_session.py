"""One session of the MRD server in this process, on a socket pair: deadlines, overlays, clients that do not read."""

import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import tiny_bundle

pytest.importorskip("ismrmrd", reason="the extra `mrd` is not installed")

import ismrmrd
from mrd_client import Client, image, images, talk, texts

from edgeseg.container import open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.serve.common import Segmenters, listen, warn_if_open
from edgeseg.serve.mrd_session import MAX_SERIES, Session, Settings

SPACING = (1.5, 1.5)


@pytest.fixture(scope="module")
def segmenters(tmp_path_factory):
    bundle = open_bundle(tiny_bundle.make_bundle(tmp_path_factory.mktemp("mrd session") / "tiny.edgeseg"))
    return Segmenters(bundle, precision="fp32", threads=1, most=2)


@pytest.fixture
def session(segmenters):
    """A function that serves one session in a thread and gives the client's end; the log is in its `log`."""
    threads = []

    def start(**settings) -> socket.socket:
        ours, theirs = socket.socketpair()
        one = Session(ours, segmenters, Settings(**settings), start.log.append)
        threads.append(threading.Thread(target=one.run))
        threads[-1].start()
        return theirs

    start.log = []
    yield start
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


def frame(seed: int = 0, **head) -> ismrmrd.Image:
    return image(tiny_bundle.frame(seed)[0].astype(np.uint16), SPACING, image_index=seed, **head)


def test_without_time_for_masks_every_original_passes_with_one_warning(session):
    sent = [frame(k) for k in range(6)]
    found = talk(session(image_deadline=0), *sent)
    assert images(found) == sent
    assert texts(found)[0].startswith("WRN series 1 image 0: was not segmented in time (0 s)")
    assert [t for t in texts(found) if "6 of 6 images have no mask" in t] == texts(found)[1:]


def test_a_series_that_used_its_time_up_passes_the_rest_and_the_next_series_has_its_own(session, segmenters):
    slow_down(segmenters, 0.2)
    with Client(session(series_deadline=0.5)) as client:
        client.send(*[frame(k) for k in range(8)])
        time.sleep(1)  # the frame that was given up is done by then
        client.send(*[frame(k, series=2) for k in range(2)], close=True)
        found = client.rest()
    of = [[i for i in images(found) if i.image_series_index == s] for s in (1, 1001, 2, 1002)]
    assert len(of[0]) == 8
    assert len(of[1]) in (1, 2)
    assert [i.image_index for i in of[1]] == list(range(len(of[1])))
    assert (len(of[2]), len(of[3])) == (2, 2)
    assert any("came after the 0.5 s" in t for t in texts(found))


def test_a_network_that_hangs_holds_no_original_back_and_masks_go_on_after_it(session, segmenters):
    slow_down(segmenters, 1.0, of=1)
    with Client(session(image_deadline=0.3)) as client:
        start = time.monotonic()
        client.send(*[frame(k) for k in range(3)])
        while len(images(back := client.receive(1))) == 0 or back[0].image_index != 2:
            pass
        assert time.monotonic() - start < 1.0
        time.sleep(1.0)
        client.send(frame(3), close=True)
        masks = [i.image_index for i in images(client.rest()) if i.image_series_index == 1001]
    assert masks[-1] == 3
    assert 1 not in masks


def slow_down(segmenters: Segmenters, seconds: float, of: int | None = None) -> None:
    """Let the pool's next Segmenter take that long for every frame, or for the `of`-th alone."""

    class Slow(Segmenter):
        count = 0

        def segment(self, pixels, spacing):
            if of is None or self.count == of:
                time.sleep(seconds)
            self.count += 1
            return super().segment(pixels, spacing)

    slow = Slow(segmenters.first.bundle, precision="fp32", threads=1)
    kept = segmenters._free[:]
    segmenters._free.append(slow)

    def give(segmenter: Segmenter) -> None:
        type(segmenters).give(segmenters, segmenter)
        segmenters._free[:] = kept
        del segmenters.give

    segmenters.give = give


def test_overlays_are_three_channels_of_colour_over_the_image(session):
    sent = frame()
    back, overlay, _ = images(talk(session(output="overlays"), sent))
    assert back == sent
    assert overlay.image_type == ismrmrd.IMTYPE_RGB
    assert overlay.data.shape == (3, 1, *sent.data.shape[2:])
    assert overlay.data.dtype == np.uint16
    assert overlay.data.max() <= 255
    grey = (overlay.data[0] == overlay.data[1]) & (overlay.data[1] == overlay.data[2])
    assert np.array_equal(~grey[0], tiny_bundle.label_image(0) > 0)
    assert "WindowCenter" not in overlay.meta


def test_a_client_that_never_reads_is_given_up_with_bounded_memory(session):
    large = image(np.random.default_rng(0).integers(0, 300, (512, 512)).astype(np.uint16), SPACING)
    with Client(session(queue_bytes=2**20, stall=0.5)) as client, suppress(BrokenPipeError, ConnectionResetError):
        while True:
            client.send(large)
    assert "the client read nothing for 0.5 s" in session.log[0]
    assert int(session.log[0].split(";")[1].split()[0]) < 20  # images of 0.5 MB, and 1 MB may wait


def test_many_series_are_reported_when_the_session_has_too_many_open(session):
    count = MAX_SERIES + 3
    found = talk(session(), *[frame(0, series=s) for s in range(1, count + 1)])
    assert [i.image_series_index for i in images(found) if i.image_series_index > 2000] == [
        2000 + s for s in range(1, count + 1)]
    first = next(k for k, item in enumerate(found) if isinstance(item, str))
    assert len(images(found[:first])) == 2 * MAX_SERIES + 1  # the first report came before the last images


def test_a_series_without_a_whole_phase_has_no_ef_and_says_so(session):
    sent = [frame(0, slice=s, phase=p) for s in range(3) for p in range(3)]
    lacking = [i for i in sent if (i.slice, i.phase) != (1, 1)]
    assert "only 2 of 3 phases have all slices" in texts(talk(session(), *lacking))[0]
    alone = [i for i in sent if i.slice == i.phase]
    found = texts(talk(session(), *alone))
    assert len(found) == 1
    assert found[0].startswith("WRN series 1: no volumes")


def test_one_phase_has_volumes_and_no_ef(session):
    found = texts(talk(session(), *[frame(0, slice=s) for s in range(3)]))
    assert "LV EDV" in found[0]
    assert "EF" not in found[0]


def test_places_are_found_by_position_where_slices_have_no_number(session):
    found = texts(talk(session(), *[frame(0, slice=0, position=(0, 0, 5.0 * z + 0.01 * p), phase=p)
                                    for z in range(4) for p in range(2)]))
    assert "4 slices 5.0 mm apart, 2 phases" in found[0]


def test_no_more_segmenters_are_given_out_than_allowed(segmenters):
    one, two = segmenters.take(), segmenters.take()
    assert one is not two
    assert segmenters.take() is None
    segmenters.give(one)
    assert segmenters.take() is one
    segmenters.give(one)
    segmenters.give(two)


def test_listening_beyond_this_machine_is_warned_of_and_a_wrong_address_is_one_line():
    lines: list[str] = []
    for host in ("127.0.0.1", "localhost", "0.0.0.0"):
        warn_if_open(host, lines.append)
    assert len(lines) == 1
    assert "0.0.0.0" in lines[0]
    with pytest.raises(EdgesegError, match=r"--host 192\.0\.2\.1 --port 0: .*: choose another"):
        listen("192.0.2.1", 0)
