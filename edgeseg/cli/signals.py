"""What Ctrl-C and a polite kill mean to a command that keeps what it has measured."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def first_one_ends() -> Iterator[None]:
    """The first SIGINT or SIGTERM raises KeyboardInterrupt; after it both are ignored until the block has ended.

    What was measured until then is still to be written, and people press Ctrl-C twice when a process takes a second to
    end. SIGINT stays ignored where it was (a shell's background job).
    """
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]

    def end(number: int, frame: Any) -> None:
        for n in numbers:
            signal.signal(n, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {n: signal.signal(n, end) for n in numbers}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
