import signal
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_bundle

from edgeseg.errors import EdgesegError
from edgeseg.measure import paced, stress, worker
from edgeseg.measure.document import one_line
from edgeseg.measure.paced import check_paced, deadlines, measure_paced
from edgeseg.measure.turns import Job, write_frames
from edgeseg.runtime import threads


def children() -> list[str]:
    """Process ids of this process's children (none where the system does not say)."""
    return [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]


@pytest.fixture
def slow(monkeypatch):
    """Jobs whose calls take at least so many seconds, and fail after `calls` of them."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(paced, "DISCARD", 0)
    return lambda seconds, calls="": Job("slow", str(seconds), "", precision=calls, module="slow_worker")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    raw = [tiny_bundle.frame(i) for i in range(2)]
    return str(write_frames(tmp_path_factory.mktemp("with space") / "frames.npz", raw, [(1.5, 1.5)] * 2, raw))


@pytest.mark.parametrize(("finished", "found"), [
    ([0.5, 1.5, 2.5, 3.5], (0, 0.0, 0)),  # in time
    ([1.0, 2.0, 3.0, 4.0], (0, 0.0, 0)),  # just in time
    ([1.25, 2.0, 2.5, 3.5], (1, 0.25, 1)),  # one is late, the next catches up
    ([3.5, 3.625, 3.75, 3.875], (3, 2.5, 3)),  # the first holds up all: 1, 2 and 3 wait from t = 3 on
    ([2.0, 4.0, 6.0, 8.0], (4, 4.0, 2)),  # half the speed: from t = 3 on 1 is computed and 2 and 3 wait
    ([0.5, 1.5, 2.5, 9.0], (1, 5.0, 0)),  # the last one's deadline counts too
    ([], (0, 0.0, 0)),
])
def test_misses_lateness_and_queue_by_hand(finished, found):
    assert deadlines(np.arange(len(finished) + 1.0), finished) == found


def test_a_subject_slower_than_the_stream_misses_every_deadline_and_skips_nothing(slow):
    seen = []
    found = measure_paced(slow(0.4), rate=100, seconds=0.04, on_second=lambda *done: seen.append(done))
    # 4 frames 10 ms apart, 400 ms each: none is done when the last one arrives, and no report empties the queue
    assert (found.frames, found.missed, found.max_queue, found.complete) == (4, 4, 3, True)
    assert found.worst_lateness_ms >= 4 * 400 - 40
    assert found.latency.n == 4
    assert found.latency.max_ms >= 4 * 400 - 30  # the last arrives at 30 ms: waiting is part of it
    assert len(seen) > 1
    assert seen[-1] == (4, 4)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


class Clock:
    """A clock that moves only when somebody sleeps or works."""

    now = 8.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


class Subject:
    """Calls that take the given seconds, one after the other; `taken`: when each began, and which frame it was of."""

    count = 3

    def __init__(self, clock, seconds):
        self.clock, self.seconds, self.taken = clock, seconds, []
        self.calls = {"network": self.call}

    def call(self, i):
        self.taken.append((self.clock.now, i))
        self.clock.now += self.seconds[len(self.taken) - 1]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(worker, "time", clock)
    return clock


@pytest.fixture
def paced_here(clock, monkeypatch):
    """measure_paced at 4 frames a second with the worker's own stream on the clock, in this process."""
    def measure(seconds):
        subject = Subject(clock, [0.25] * paced.DISCARD + seconds)

        @contextmanager
        def started(job):
            reports = []

            def ask(token, timeout):
                reports.append(worker.stream(subject, **token))
                return next(reports[0])

            yield SimpleNamespace(ready={"modes": ["network"]}, ask=ask, answer=lambda timeout: next(reports[0]))

        monkeypatch.setattr(paced, "started", started)
        found = measure_paced(Job("", "", ""), rate=4, seconds=len(seconds) / 4)
        return found, [began for began, _ in subject.taken[paced.DISCARD:]]
    return measure


def test_each_frame_is_begun_when_it_arrives_and_its_time_counts_from_there(paced_here):
    found, began = paced_here([0.125] * 12)
    start = 8 + 0.25 * paced.DISCARD
    assert began == [start + k / 4 for k in range(12)]
    assert (found.frames, found.missed, found.worst_lateness_ms, found.max_queue, found.complete) == (12, 0, 0, 0, True)
    assert (found.latency.n, found.latency.p50_ms, found.latency.max_ms) == (12, 125, 125)
    assert (found.rate, found.seconds, found.stress) == (4, 3, 0)
    assert '"quota": null' in one_line(found)


def test_a_frame_that_takes_a_whole_period_is_just_in_time_and_one_that_takes_more_is_not(paced_here):
    found, began = paced_here([0.25] * 8)
    assert np.diff(began).tolist() == [0.25] * 7
    assert (found.missed, found.worst_lateness_ms, found.max_queue, found.latency.max_ms) == (0, 0, 0, 250)
    found, began = paced_here([0.25, 0.375, 0.125, 0.25])
    assert np.diff(began).tolist() == [0.25, 0.375, 0.125]  # the third waits an eighth, the fourth is on time again
    # frames 1 and 3 of 0..3: 375 ms, then 125 ms after a wait of 125
    assert (found.missed, found.worst_lateness_ms, found.latency.max_ms) == (1, 125, 375)


def test_frames_that_waited_are_computed_at_once_and_the_schedule_does_not_move(clock):
    subject = Subject(clock, [0.25, 0.25, 0.25, 1.25, 0.125, 0.125, 0.125, 0.125, 0.125])
    reports = list(worker.stream(subject, "network", rate=2, frames=7, discard=2))
    assert [i for _, i in subject.taken] == [0, 1, 0, 1, 2, 0, 1, 2, 0]
    start = 8.5  # after the calls that are not counted
    assert [r["start"] for r in reports] == [start] * len(reports)
    assert [r["done"] for r in reports] == [False] * (len(reports) - 1) + [True]
    # frame 1 arrives at 0.5 and takes until 1.75: 2 and 3 wait, then frames are on time again
    finished = [f - start for r in reports for f in r["finished"]]
    assert finished == [0.25, 1.75, 1.875, 2.0, 2.125, 2.625, 3.125]
    assert deadlines(np.arange(8) / 2, finished) == (2, 0.75, 2)


def test_a_bundle_is_paced_end_to_end(tmp_path, frames):
    bundle = tiny_bundle.make_bundle(tmp_path / "tiny.edgeseg", precisions=("fp32",))
    asked = []

    class Watched(paced.Stress):
        def __enter__(self):
            asked.append(self.count)
            return super().__enter__()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paced, "Stress", Watched)
        found = measure_paced(Job("bundle", str(bundle), frames), rate=50, seconds=0.3, stress=1)
    assert (found.frames, found.stress, asked) == (15, 1, [1])
    assert found.latency.p50_ms > 0
    assert found.latency.images_per_second is None  # 1000 / median would be no rate of this stream
    assert not children()


def test_the_quota_is_on_the_measuring_process_and_is_gone_afterwards(frames, monkeypatch):
    asked = []

    class Watched(paced.Quota):
        def __enter__(self):
            super().__enter__()
            asked.append((threads.cpu_quota(Path(f"/proc/{self.pid}/cgroup")), self.group))
            return self

    monkeypatch.setattr(paced, "Quota", Watched)
    try:
        found = measure_paced(Job("empty", "", frames), rate=50, seconds=0.1, quota=0.5)
    except EdgesegError as error:
        pytest.skip(f"no quota on this machine: {error}")
    (limit, group), = asked
    assert (found.quota, limit, found.frames) == (0.5, 0.5, 5)
    assert not group.exists()


def test_ctrl_c_keeps_what_was_reported(slow):
    found = measure_paced(slow(0.3), rate=1000, seconds=60, stress=1,
                          on_second=lambda *done: signal.raise_signal(signal.SIGINT))
    assert not found.complete
    assert 1 <= found.frames == found.missed == found.latency.n < 60_000
    assert not children()


def test_ctrl_c_before_the_first_frame_gives_an_empty_stream(frames, monkeypatch):
    monkeypatch.setattr(paced.Stress, "__enter__", lambda self: signal.raise_signal(signal.SIGINT))
    found = measure_paced(Job("empty", "", frames), rate=10, seconds=1)
    assert (found.frames, found.missed, found.latency.n, found.complete) == (0, 0, 0, False)
    assert not children()


@pytest.mark.parametrize(("options", "message"), [
    ({"rate": 0}, "--rate 0 and 1 seconds must be above 0 and finite"),
    ({"rate": -5}, "must be above 0"),
    ({"rate": float("nan")}, "must be above 0"),
    ({"rate": float("inf")}, "must be above 0 and finite"),
    ({"seconds": 0}, "must be above 0"),
    ({"seconds": float("inf")}, "must be above 0 and finite"),
    ({"rate": 10_001}, "--rate 10001: at most 10000 frames a second"),
    ({"rate": 50, "seconds": 200_001}, "--rate 50 for --rate-seconds 200001: at most 10000000 frames in all"),
    ({"seconds": 1e308}, "at most 10000000 frames in all"),
    ({"stress": 100_000}, "--stress 100000: at most "),
    ({"stress": -1}, "--stress -1: the number of busy processes cannot be negative"),
    ({"quota": 0}, "--quota 0: must be at least 0.01 CPUs"),
    ({"quota": float("nan")}, "--quota nan: must be"),
])
def test_impossible_streams_are_refused(frames, options, message):
    with pytest.raises(EdgesegError, match=message) as caught:
        measure_paced(Job("empty", "", frames), **{"rate": 10, "seconds": 1} | options)
    assert "\n" not in str(caught.value)
    assert not children()


def test_the_largest_stream_that_makes_sense_is_allowed():
    check_paced(10_000, 1000, 64 * len(threads.allowed_cpus()))


def test_a_quota_that_cannot_be_had_is_found_before_the_job_starts(frames, monkeypatch):
    monkeypatch.setattr(stress, "groups", lambda process, root: (Path("/proc"), Path("/proc")))  # holds no new folder
    monkeypatch.setattr(paced, "started", None)
    with pytest.raises(EdgesegError, match="--quota 1: ") as caught:
        measure_paced(Job("empty", "", frames), rate=10, seconds=1, quota=1)
    assert "\n" not in str(caught.value)
    assert not children()


def test_a_subject_that_fails_in_the_middle_is_one_line(slow):
    with pytest.raises(EdgesegError, match="the paced stream ended: ValueError: worn out") as caught:
        measure_paced(slow(0.0, calls="3"), rate=100, seconds=0.2)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_network_is_one_line(frames, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a network")
    with pytest.raises(EdgesegError, match=r"broken\.onnx: openvino fp32 does not start"):
        measure_paced(Job("network", str(broken), frames), rate=10, seconds=1)
