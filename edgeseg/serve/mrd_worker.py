"""A Segmenter in a thread of its own, so that whoever asks waits no longer than he wants to."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from edgeseg.runtime.segmenter import Segmenter

T = TypeVar("T")


class Worker:
    """Does one job at a time. A job that nobody waits for any more is finished all the same, as nothing can stop it.

    Args:
        done: called with the Segmenter in the worker's thread when `end` was called and the last job has ended.
    """

    def __init__(self, segmenter: Segmenter, done: Callable[[Segmenter], None]) -> None:
        self._segmenter, self._done = segmenter, done
        self._jobs: SimpleQueue[tuple[Callable[[Segmenter], Any], Future[Any]] | None] = SimpleQueue()
        self._last: Future[Any] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # the system has no thread left
            done(segmenter)
            raise

    def do(self, job: Callable[[Segmenter], T], seconds: float) -> T:
        """What `job` returns.

        Raises:
            TimeoutError: it took longer, or the job before, which did, still runs.
            Exception: what the job raised.
        """
        if self._last is not None and not self._last.done():
            raise TimeoutError
        self._last = Future()
        self._jobs.put((job, self._last))
        return self._last.result(seconds)

    def end(self, seconds: float = 1.0) -> None:
        """No more jobs. Waits for the one that runs, so that the Segmenter is free for the next client, but not for
        ever."""
        self._jobs.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, future = item
            try:
                future.set_result(job(self._segmenter))
            except BaseException as error:
                future.set_exception(error)
            del item, job, future  # an idle worker holds no image
        self._done(self._segmenter)
