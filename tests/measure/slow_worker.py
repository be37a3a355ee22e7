"""A worker whose calls take at least `path` seconds and fail after `precision` of them: its misses are certain."""

import time

from edgeseg.measure.worker import main


class Slow:
    count, shape, runtime = 1, (0,), {}

    def __init__(self, job):
        seconds, calls = float(job["path"]), iter(range(int(job["precision"]) if job["precision"].isdigit() else 10**9))

        def call(i):
            if next(calls, None) is None:
                raise ValueError("worn\nout")
            time.sleep(seconds)

        self.calls = {"network": call}


if __name__ == "__main__":
    main(Slow)
