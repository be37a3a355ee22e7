"""A paced stream: frames arrive as from a scanner, and each must be done before the next arrives."""

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.measure import latency
from edgeseg.measure.latency import Latency
from edgeseg.measure.stress import Quota, Stress, check_quota
from edgeseg.measure.turns import DISCARD, LOAD_TIMEOUT, Job, WorkerError, started

MOST_RATE = 10_000
"""Frames a second: no scanner is near it, and the clock of a sleeping process is not finer."""
MOST_FRAMES = 10_000_000
"""The finishing times of all frames are kept until the end."""


@dataclass(frozen=True)
class Paced:
    """What a stream of `rate` frames a second, `seconds` long, met with.

    Attributes:
        frames: that were computed; none is skipped, so a stream that is too fast takes longer than `seconds`.
        missed: frames that were not done when the next one arrived. worst_lateness_ms: the longest that one was
            overdue then (0 where none was missed).
        max_queue: the most frames that waited at once while another was computed.
        latency: from the arrival of a frame to its label map, waiting included; images_per_second is None: the rate is
            the scanner's.
        stress: busy processes on the same CPUs. quota: CPUs that the process was held to, None for no limit.
        complete: False when it was interrupted; the rest then tells of what had been reported until then.
    """

    rate: float
    seconds: float
    frames: int
    missed: int
    worst_lateness_ms: float
    max_queue: int
    latency: Latency
    stress: int
    quota: float | None
    complete: bool

    @property
    def interrupted(self) -> bool:
        """Nothing else ends a stream: what fails raises."""
        return not self.complete


def measure_paced(job: Job, rate: float, seconds: float, stress: int = 0, quota: float | None = None,
                  on_second: Callable[[int, int], None] | None = None) -> Paced:
    """Run a paced stream in a process of its own; the schedule is the system's monotonic clock, kept in that process.

    The network is loaded and warm before stress and quota begin. End to end where the job has such a path.

    Args:
        rate: frames a second. quota: CPUs' worth of time that the process gets, by a cgroup of its own.
        on_second: called about every second with the number of frames done and of all.

    Raises:
        EdgesegError: numbers that make no stream, a quota that cannot be set here, a job that does not start or fails.
    """
    check_paced(rate, seconds, stress, quota)
    busy, total = Stress(stress), max(1, round(rate * seconds))
    start, finished = 0.0, []
    try:
        with ExitStack() as stack:
            worker = stack.enter_context(started(job))
            if quota is not None:
                stack.enter_context(Quota(quota, worker.process.pid))
            stack.enter_context(busy)
            modes = worker.ready["modes"]
            report = worker.ask({"mode": "end_to_end" if "end_to_end" in modes else modes[0], "rate": rate,
                                 "frames": total, "discard": DISCARD}, LOAD_TIMEOUT)
            while True:
                start = report["start"]
                finished += report["finished"]
                if on_second:
                    on_second(len(finished), total)
                if report["done"]:
                    break
                report = worker.answer(LOAD_TIMEOUT)
    except WorkerError as error:
        raise EdgesegError(f"{job.path}: the paced stream ended: {error}") from None
    except KeyboardInterrupt:
        pass
    arrivals = start + np.arange(len(finished) + 1) / rate
    missed, lateness, queue = deadlines(arrivals, finished)
    times = latency.summarise((np.asarray(finished) - arrivals[:-1]) * 1000)
    return Paced(rate, seconds, len(finished), missed, lateness * 1000, queue, replace(times, images_per_second=None),
                 stress, quota, len(finished) == total)


def check_paced(rate: float, seconds: float, stress: int = 0, quota: float | None = None) -> None:
    """Raise EdgesegError for numbers that make no stream, and where no process can be held to `quota`: it is tried."""
    if not (0 < rate < math.inf and 0 < seconds < math.inf):
        raise EdgesegError(f"--rate {rate:g} and {seconds:g} seconds must be above 0 and finite")
    if rate > MOST_RATE:
        raise EdgesegError(f"--rate {rate:g}: at most {MOST_RATE} frames a second")
    if rate * seconds > MOST_FRAMES:
        raise EdgesegError(f"--rate {rate:g} for --rate-seconds {seconds:g}: at most {MOST_FRAMES} frames in all")
    Stress(stress)
    if quota is not None:
        check_quota(quota)


def deadlines(arrivals: Sequence[float] | np.ndarray, finished: Sequence[float] | np.ndarray) -> tuple[int, float, int]:
    """Deadlines missed, worst lateness in s (0 where none was), and the most frames that waited at once.

    Args:
        arrivals: times in s of n + 1 frames: the deadline of a frame is the arrival of the next.
        finished: when the first n of them were done, in order.
    """
    due, done = np.asarray(arrivals[1:], float), np.asarray(finished, float)
    late = np.maximum(done - due, 0)
    # a frame that arrives waits together with all that arrived before it and are not begun: as many as are unfinished
    waiting = np.arange(len(done)) - np.searchsorted(done, arrivals[:-1], side="right")
    return int((late > 0).sum()), float(late.max(initial=0)), int(np.maximum(waiting, 0).max(initial=0))
