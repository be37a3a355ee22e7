"""Throughput: the Segmenter for archives, where what counts is the last image and not the next one.

Several inference streams share the CPUs, each with few threads: a small network keeps one core busy and not many. While
they work, the calling thread prepares the next frames and turns finished logits into labels. A frame goes through the
same NumPy code and the same network as in `Segmenter.segment_volume`, so its labels are the same. With `segment_frames`
it goes through the same frame graph as in `Segmenter.segment`, which leaves next to nothing to do around it.
"""

import math
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgeseg import geometry
from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.manifest import FrameProtocol
from edgeseg.preprocess import to_native
from edgeseg.runtime.backends import Backend
from edgeseg.runtime.frame_graph import graph_file
from edgeseg.runtime.openvino_backend import compiled
from edgeseg.runtime.segmenter import Segmentation, Segmenter
from edgeseg.runtime.threads import allowed_cpus, checked_threads, cpu_quota

REQUESTS_PER_STREAM = 2
"""One that computes and one that waits: a stream then never idles while logits are copied out of its request."""
FRAMES_PER_REQUEST = 4
"""Of `segment_frames`: small layers use a core better with more to do; 8 gain nothing over 4 (measured on `cine`)."""
VOLUMES = 2
"""Volumes of `segment_volumes` under way at once: one fills the streams while the other drains them."""
PATIENCE = 60.0
"""Seconds without an answer after which a request has failed; OpenVINO's queue does not call back about those."""
NO_ANSWER = "OpenVINO gave no answer for {:g} s"


class Throughput(Segmenter):
    """A Segmenter on OpenVINO whose volumes and frames run in several streams. `segment_volume` and `segment_frames`
    may be called by several threads.

    Args:
        streams: networks that run at the same time. "auto": as many as threads, one thread each.
        threads: of all streams together; default: the physical cores that affinity and the container's quota leave.

    Raises:
        EdgesegError: as for Segmenter; fewer than one stream, or more than CPUs or threads.
    """

    def __init__(self, bundle: Bundle | Path | str, precision: str = "auto", streams: int | Literal["auto"] = "auto",
                 threads: int | None = None) -> None:
        self.streams, count = checked_streams(streams, threads)
        super().__init__(bundle, "openvino", precision, count)
        self._frame_models: dict[str, Any] = {}
        self._loading = threading.Lock()

    def _load(self, path: Path) -> Backend:
        if self.bundle.manifest.stream:
            raise EdgesegError(f"{self.bundle.path}: its network takes the frames of a clip one after the other, never "
                               "in several streams: leave --streams out")
        self._queue = Queue(path, self.precision, self.streams, self.threads)
        return self._queue

    def net(self, x: np.ndarray) -> np.ndarray:
        """Normalised float32 [n, C, gh, gw] -> logits float32 [n, K, gh, gw], the n in all streams."""
        waiting = [self._queue.start(x[i : i + 1]) for i in range(len(x))]
        return np.concatenate([answer(w) for w in waiting])

    def classes(self, frames: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
        """Class indices uint8 [N, H, W], without checks: one frame is prepared or finished while others compute."""
        stack = np.ascontiguousarray(frames if frames.ndim == 4 else frames[:, None], np.float32)
        native, pre = (stack.shape[-2], stack.shape[-1]), self.preprocessing
        shape = geometry.canvas_shape(native, spacing, pre.spacing)
        normal = pre.normalise(stack)  # by the statistics of the whole volume
        under_way: deque[tuple[np.ndarray, deque[Future[np.ndarray]]]] = deque()
        labels: list[np.ndarray] = []

        def finish() -> None:
            canvas, tiles = under_way.popleft()
            logits = pre.canvas_logits(canvas, lambda window: answer(tiles.popleft()))  # asks for them in this order
            labels.append(to_native(logits, native))

        for i in range(len(normal)):
            canvas = geometry.resize_linear(normal[i : i + 1], shape)
            windows = (geometry.take_window(canvas, start, pre.size) for start in pre.starts(shape))
            under_way.append((canvas, deque(self._queue.start(w) for w in windows)))
            if len(under_way) > REQUESTS_PER_STREAM * self.streams:
                finish()
        while under_way:
            finish()
        return np.concatenate(labels)

    def segment_volumes(self, volumes: Iterable[tuple[np.ndarray, tuple[float, float]]]) -> Iterator[Segmentation]:
        """`segment_volume` of each (frames, spacing), in order, a few ahead: the next volume is read from `volumes`
        while this one computes, and at most VOLUMES + 1 of them are in memory."""
        with ThreadPoolExecutor(VOLUMES) as pool:
            under_way: deque[Future[Segmentation]] = deque()
            for frames, spacing in volumes:
                under_way.append(pool.submit(self.segment_volume, frames, spacing))
                if len(under_way) > VOLUMES:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()

    def segment_frames(self, frames: Iterable[np.ndarray], spacing: tuple[float, float]) -> Iterator[Segmentation]:
        """`segment` of each raw frame [H, W] or [C, H, W], in order: each has its own statistics, and what is wrong
        with its pixels is its status.

        Where the bundle has a frame graph for them, all streams work on FRAMES_PER_REQUEST frames at once, and
        REQUESTS_PER_STREAM times as many for each are read ahead; other frames are segmented one after the other.

        Raises:
            EdgesegError: the file of the frame graph cannot be loaded.
        """
        kinds: dict[tuple[Any, ...], FrameRequests] = {}
        under_way: deque[tuple[FrameRequest, int] | Segmentation] = deque()

        def start(frame: np.ndarray) -> tuple[FrameRequest, int] | Segmentation:
            # each frame finds the CPU's caches full of the last one's network: what is the same for all is asked once
            if (found := kinds.get(kind := (frame.shape, frame.dtype))) is None:
                protocol = self._graphs.find(frame.shape[-2:], frame.dtype, spacing) if len(spacing) == 2 else None
                if protocol is None or self.problem(frame[None], spacing):
                    return self.segment(frame, spacing)
                found = kinds[kind] = FrameRequests(self._frame_model(protocol))
            elif not sound(frame):
                return self.segment(frame, spacing)  # it says what is wrong
            return found.put(frame)

        def finish(place: tuple[FrameRequest, int] | Segmentation) -> Segmentation:
            if isinstance(place, Segmentation):
                return place
            request, slot = place
            try:
                return Segmentation(request.labels(slot))
            except Exception as error:  # as in `segment`; this request is not used again
                return Segmentation(np.zeros_like(request.output[slot]), f"failed: {type(error).__name__}: {error}")

        for frame in frames:
            under_way.append(start(np.asarray(frame)))
            if len(under_way) > REQUESTS_PER_STREAM * self.streams * FRAMES_PER_REQUEST:
                yield finish(under_way.popleft())
        while under_way:
            yield finish(under_way.popleft())

    def _frame_model(self, protocol: FrameProtocol) -> Any:
        """The frame graph of a protocol, compiled for all streams when its first frame comes."""
        with self._loading:
            if protocol.name not in self._frame_models:
                path = self.bundle.file(graph_file(protocol, self.backend, self.precision))
                self._frame_models[protocol.name] = compiled(path, self.precision, "THROUGHPUT", self.streams,
                                                             self.threads, batch=FRAMES_PER_REQUEST)[0]
            return self._frame_models[protocol.name]


class FrameRequests:
    """Requests of one frame graph: one that is being filled, and idle ones."""

    def __init__(self, model: Any) -> None:
        self.model, self.idle = model, deque[FrameRequest]()
        self.open = FrameRequest(self)

    def put(self, frame: np.ndarray) -> "tuple[FrameRequest, int]":
        """Where the frame went; a request that is full starts."""
        if self.open.started:
            self.open = self.idle.popleft() if self.idle else FrameRequest(self)
        request, slot = self.open, self.open.count
        request.pixels[slot] = frame
        request.count += 1
        if request.count == len(request.pixels):
            request.start()
        return request, slot


class FrameRequest:
    """Some frames in a frame graph, with buffers of its own: handing arrays over to OpenVINO costs more than
    copying."""

    def __init__(self, owner: FrameRequests) -> None:
        self.request, self.owner = owner.model.create_infer_request(), owner
        self.pixels, self.output = self.request.get_input_tensor(0).data, self.request.get_output_tensor(0).data
        self.count = self.taken = 0
        self.started = False

    def start(self) -> None:
        self.started = True
        self.request.start_async()

    def labels(self, slot: int) -> np.ndarray:
        """Label values uint8 [H, W]; waits for them. A request that is not full starts as it is."""
        if not self.started:
            self.start()
        if not self.request.wait_for(int(1000 * PATIENCE)):
            raise EdgesegError(NO_ANSWER.format(PATIENCE))
        found = self.output[slot].copy()  # the next frame overwrites it
        self.taken += 1
        if self.taken == self.count:
            self.count, self.taken, self.started = 0, 0, False
            if self.owner.open is not self:
                self.owner.idle.append(self)
        return found


def sound(frame: np.ndarray) -> bool:
    """Whether the pixels have any contrast and are finite."""
    centre = min(frame.size // 2 + frame.shape[-1] // 2, frame.size - 1)
    if frame.dtype.kind in "ui" and frame.item(0) != frame.item(centre):
        return True  # corner and centre mostly tell: 0.03 ms less than all pixels, with cold caches
    return bool(-np.inf < frame.min() < frame.max() < np.inf)


class Queue:
    """A compiled network with requests for several streams; also a `backends.Backend`."""

    states: tuple[str, ...] = ()

    def __init__(self, path: Path, precision: str, streams: int, threads: int) -> None:
        import openvino as ov

        self.compiled, self.shape, self.dtype = compiled(path, precision, "THROUGHPUT", streams, threads)
        self._requests = ov.AsyncInferQueue(self.compiled, REQUESTS_PER_STREAM * streams)
        self._requests.set_callback(deliver)
        self._starting = threading.Lock()  # the queue finds an idle request and fills it in two steps

    def start(self, x: np.ndarray) -> "Future[np.ndarray]":
        """The logits [1, K, gh, gw] of `x` [1, C, gh, gw] some time later; waits until there is a request for it."""
        if x.dtype != self.dtype:
            raise TypeError(f"expected {self.dtype} pixels, got {x.dtype}")
        found: Future[np.ndarray] = Future()
        with self._starting:
            self._requests.start_async({0: x}, found)
        return found

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return answer(self.start(x))

    def reset(self) -> None:
        """No network with states runs here."""


def deliver(request: Any, found: "Future[np.ndarray]") -> None:
    found.set_result(np.array(request.get_output_tensor(0).data))  # a copy: the request reuses its buffer


def answer(found: "Future[np.ndarray]") -> np.ndarray:
    try:
        return found.result(PATIENCE)
    except TimeoutError:
        raise EdgesegError(NO_ANSWER.format(PATIENCE)) from None


def checked_streams(streams: int | Literal["auto"], threads: int | None) -> tuple[int, int]:
    """Number of streams, and of threads for all of them.

    Raises:
        EdgesegError: fewer than one, or more streams than CPUs (affinity and quota) or than threads.
    """
    if streams == "auto":
        count = checked_threads(threads)
        return count, count
    quota = cpu_quota()
    most = min(len(allowed_cpus()), math.ceil(quota) if quota is not None else sys.maxsize)
    if not isinstance(streams, int) or streams < 1:
        raise EdgesegError(f"the number of streams must be auto or at least 1, not {streams}")
    if streams > most:
        raise EdgesegError(f"{streams} streams: this process may use {most} CPUs (affinity and quota); ask for fewer")
    if threads is not None and streams > checked_threads(threads):
        raise EdgesegError(f"{streams} streams share {threads} thread(s): ask for fewer streams or more threads")
    return streams, max(checked_threads(threads), streams)
