"""When a series is complete, and what the folder of the node keeps, without a network."""

import pytest

pytest.importorskip("pynetdicom")

from edgeseg.errors import EdgesegError
from edgeseg.serve.dicom_arrivals import Arrivals
from edgeseg.serve.dicom_network import Addresses, server_context
from edgeseg.serve.dicom_send import Receiver
from edgeseg.serve.dicom_spool import Spool


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_release_completes_what_its_association_brought(clock):
    arrivals = Arrivals(2.0, clock=clock)
    for _ in range(3):
        arrivals.stored("a", 1)
    arrivals.stored("b", 2, count=2)
    assert arrivals.next(0) is None
    arrivals.ended(1, released=True)
    assert arrivals.next(0) == "a"
    assert arrivals.next(0) is None  # forgotten, and b is still coming


@pytest.mark.parametrize("how", ["one object", "aborted", "another association at it", "more are announced"])
def test_without_a_telling_release_a_quiet_period_decides(clock, how):
    arrivals = Arrivals(2.0, clock=clock)
    arrivals.stored("a", 1, expected=9 if how == "more are announced" else 0, count=1 if how == "one object" else 4)
    if how == "another association at it":
        arrivals.stored("a", 2)
    arrivals.ended(1, released=how != "aborted")
    clock.now += 1.9
    assert arrivals.next(0) is None
    clock.now += 0.2
    assert arrivals.next(0) == "a"


def test_a_new_object_begins_the_quiet_period_again(clock):
    arrivals = Arrivals(2.0, clock=clock)
    arrivals.stored("a", 1)
    clock.now += 1.9
    arrivals.stored("a", 1)
    clock.now += 1.9
    assert arrivals.next(0) is None


@pytest.mark.parametrize(("users", "stated", "needed"), [(0, 3, 3), (2, 3, 2), (4, 0, 4), (4, 3, 4)])
def test_the_expected_count_completes_at_once_and_the_users_goes_first(clock, users, stated, needed):
    arrivals = Arrivals(2.0, expected=users, clock=clock)
    for _ in range(needed - 1):
        arrivals.stored("a", 1, expected=stated)
    assert arrivals.next(0) is None
    arrivals.stored("a", 1, expected=stated)
    assert arrivals.next(0) == "a"


def test_a_thread_that_waits_hears_of_a_series_at_once():
    import threading

    arrivals, found = Arrivals(60.0), []
    thread = threading.Thread(target=lambda: found.append(arrivals.next(60.0)))
    thread.start()
    arrivals.stored("a", 1, expected=1)
    thread.join(20)
    assert found == ["a"]


@pytest.fixture
def spool(tmp_path):
    found = Spool(tmp_path / "a folder")
    yield found
    found.close()


def test_an_object_is_on_disk_whole_or_not_at_all(spool):
    def parts():
        yield b"first"
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        spool.receive(parts())
    assert list((spool.folder / "receiving").iterdir()) == []
    path = spool.receive((b"one", memoryview(b"two")))
    assert spool.keep(path, "s", "i") == "new"
    assert (spool.folder / "incoming" / "s" / "i.dcm").read_bytes() == b"onetwo"


def test_a_second_copy_is_dropped_and_another_object_of_its_name_stays_apart(spool):
    for content, how in ((b"x", "new"), (b"x", "copy"), (b"y", "other")):
        path = spool.receive((content,))
        assert spool.keep(path, "s", "i") == how
        assert path.exists() == (how == "other")
    place = spool.set_aside(path, "why\nnot")
    assert place.read_bytes() == b"y"
    assert place.with_suffix(".txt").read_text() == "why not\n"


def test_what_comes_after_a_series_was_taken_begins_a_new_one(spool):
    spool.keep(spool.receive((b"1",)), "s", "1")
    first = spool.take("s")
    spool.keep(spool.receive((b"2",)), "s", "2")
    assert spool.incoming() == {"s": 1}
    second = spool.take("s")
    assert [p.name for p in first.iterdir()] == ["1.dcm"]
    assert sorted(spool.ready()) == sorted([first, second])
    assert spool.take("s") is None


def test_results_appear_whole_and_only_then_the_images_go(spool):
    spool.keep(spool.receive((b"1",)), "s", "1")
    ready = spool.take("s")
    out = spool.begin(ready.name)
    (out / "a.dcm").write_bytes(b"result")
    assert (spool.results(), spool.ready()) == ([], [ready])
    found = spool.finish(out, ready.name)
    assert [p.name for p in found.iterdir()] == ["a.dcm"]
    assert (spool.results(), spool.ready()) == ([found], [])


def test_a_restart_finds_everything_but_what_nobody_was_told_of(tmp_path):
    first = Spool(tmp_path)
    first.keep(first.receive((b"1",)), "coming", "1")
    first.keep(first.receive((b"1",)), "taken", "1")
    ready = first.take("taken")
    first.receive((b"half",))
    first.begin("taken-1")
    first.close()
    again = Spool(tmp_path)
    assert (again.incoming(), again.ready()) == ({"coming": 1}, [ready])
    assert list((tmp_path / "receiving").iterdir()) == []
    with pytest.raises(EdgesegError, match="another node works in this folder"):
        Spool(tmp_path)
    again.close()


@pytest.mark.parametrize(("text", "found"), [
    ("127.0.0.1:104", Receiver("127.0.0.1", 104)), ("PACS@pacs.example:11112", Receiver("pacs.example", 11112, "PACS")),
    ("[::1]:104", Receiver("::1", 104)), ("127.0.0.1", None), (":104", None), ("a:0", None), ("a:70000", None),
    ("A_TITLE_THAT_IS_TOO_LONG@a:104", None)])
def test_where_results_go_is_read_or_refused(text, found):
    if found:
        assert Receiver.parse(text) == found
        return
    with pytest.raises(EdgesegError, match="write HOST:PORT"):
        Receiver.parse(text)


def test_addresses_are_compared_as_addresses(tmp_path):
    allowed = Addresses(["10.1.0.0/16", "::1"])
    for host, inside in (("10.1.2.3", True), ("10.2.2.3", False), ("::1", True), ("::ffff:10.1.2.3", True),
                         ("fe80::1%eth0", False)):
        assert (host in allowed) == inside
    assert "8.8.8.8" in Addresses([])
    with pytest.raises(EdgesegError, match="--allow-address pacs"):
        Addresses(["pacs"])
    (tmp_path / "no.pem").write_text("no certificate")
    with pytest.raises(EdgesegError, match="name PEM files"):
        server_context(tmp_path / "no.pem", None, None)
