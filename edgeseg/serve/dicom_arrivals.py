"""When a series is complete: DICOM has no word for it. The first of these that happens decides:

    expected count   the user's, or the one that its objects state, has come
    release          an association that brought several of its objects was released, no other one is at it, and no
                     count says that more are to come (senders with one association an image never get here)
    quiet period     nothing has come for it in so many seconds
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Arrival:
    count: int = 0
    expected: int = 0
    last: float = 0.0
    by: dict[int, int] = field(default_factory=dict)
    """Open associations that brought objects of it -> how many."""
    released: bool = False


class Arrivals:
    """Series on their way, by name. From any thread.

    Args:
        quiet: seconds. expected: the user's count of objects of a series, 0 for none.
        clock: seconds of any origin.
    """

    def __init__(self, quiet: float, expected: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet, self.expected, self._clock = quiet, expected, clock
        self._series: dict[str, Arrival] = {}
        self._changed = threading.Condition()

    def stored(self, series: str, association: int, expected: int = 0, count: int = 1) -> None:
        """So many objects of a series were stored; `expected`: what they say of how many it has."""
        with self._changed:
            arrival = self._series.setdefault(series, Arrival())
            arrival.count += count
            arrival.expected = self.expected or max(arrival.expected, expected)
            arrival.last = self._clock()
            arrival.by[association] = arrival.by.get(association, 0) + count
            self._changed.notify_all()

    def ended(self, association: int, released: bool) -> None:
        """An association was released, or went away without that."""
        with self._changed:
            for arrival in self._series.values():
                if arrival.by.pop(association, 0) > 1 and released:
                    arrival.released = True
            self._changed.notify_all()

    def next(self, most: float) -> str | None:
        """The series that is complete first, which is then forgotten; None when none was in `most` seconds."""
        end = self._clock() + most
        with self._changed:
            while True:
                now = self._clock()
                if due := [name for name, a in self._series.items() if self._complete(a, now)]:
                    del self._series[due[0]]
                    return due[0]
                if now >= end:
                    return None
                soonest = min((a.last + self.quiet for a in self._series.values()), default=end)
                self._changed.wait(max(0.001, min(end, soonest) - now))

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _complete(self, arrival: Arrival, now: float) -> bool:
        if arrival.expected and arrival.count >= arrival.expected:
            return True
        return (arrival.released and not arrival.by and not arrival.expected) or now - arrival.last >= self.quiet
