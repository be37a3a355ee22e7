"""A queue of frames that never ends, with all streams busy: `python -m edgeseg.measure.frame_queue`, a worker
(worker.py) whose every call waits for the next result. Images per second are calls over the sum of their times.

Job kinds: "bundle": raw frames to label maps by `Throughput.segment_frames`; "network": the network file alone, its
inputs prepared. Both in OpenVINO, as many streams as threads.
"""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeseg.measure.worker import checked, load_frames, main, network_input, settings_of
from edgeseg.runtime.throughput import REQUESTS_PER_STREAM, Queue, Throughput, answer

MODE = "queue"


class FrameQueue:
    """The subject of a worker."""

    def __init__(self, job: dict[str, Any]) -> None:
        cv2.setNumThreads(1)  # the streams use every thread
        frames, spacings, canvases = load_frames(Path(job["frames"]))
        streams, self.count = job["threads"], len(frames)
        if job["kind"] == "bundle":
            throughput = Throughput(job["path"], job["precision"], streams, streams)
            self.shape: tuple[int, ...] = (1, *frames[0].shape)
            endless: Iterator[Any] = map(checked, throughput.segment_frames(cycle(frames), spacings[0]))
            next(endless)  # it compiles what the settings are of
            self.runtime = settings_of(throughput._network)
        else:
            queue = Queue(Path(job["path"]), job["precision"], streams, streams)
            self.shape, self.runtime = queue.shape, settings_of(queue)
            endless = answers(queue, [network_input(c, self.shape, job["path"]) for c in canvases], streams)
        self.calls: dict[str, Callable[[int], Any]] = {MODE: lambda i: next(endless)}


def answers(queue: Queue, inputs: list[np.ndarray], streams: int) -> Iterator[np.ndarray]:
    """What the network makes of `inputs` again and again, in order."""
    under_way: deque[Any] = deque()
    for x in cycle(inputs):
        under_way.append(queue.start(x))
        if len(under_way) > REQUESTS_PER_STREAM * streams:
            yield answer(under_way.popleft())


if __name__ == "__main__":
    main(FrameQueue)
