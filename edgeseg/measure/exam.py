"""Exam: how long a whole cine exam takes from NIfTI files to masks, frame after frame and in several streams.

The exam is one 4D image (one file a channel) of `slices` x `phases` images, the bundle's own golden frames in turn.
Each row is a process that predicts it again and again, as `edgeseg predict` does, with the files in the page cache; the
rows take turns (turns.py), so a machine that drifts favours nobody.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgeseg import geometry
from edgeseg.container import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure import statistics, turns
from edgeseg.measure.statistics import Interval
from edgeseg.measure.turns import Job, Turns, Worker, WorkerError
from edgeseg.measure.worker import main, settings_of
from edgeseg.readers import nifti, nifti_write
from edgeseg.runtime.golden import load_golden
from edgeseg.runtime.predict import find_images, predict
from edgeseg.runtime.segmenter import Segmenter
from edgeseg.runtime.throughput import Throughput, checked_streams

SEQUENTIAL = "one frame after the other"
SLICE_SPACING = 8.0
"""mm; says nothing of the speed, but a header needs one."""
BLOCK_SECONDS = 0.5
"""Least length of a turn, for bundles so small that an exam takes less."""


@dataclass(frozen=True)
class ExamRow:
    """One way to predict the exam.

    Attributes:
        streams, threads: threads are those of all streams together. precision: the same in every row.
        seconds: median over the calls, from opening the image to the mask in its place; the process is loaded and warm.
            None when the row was interrupted before its first call. spread: all calls, in s.
        images_per_second: slices x phases / seconds. network_images_per_second: of the network alone, with the inputs
            already prepared and in the same streams.
        cpu_s: CPU time of an exam (mean): what a faster row may have paid with.
        faster: how many times faster than the first row, paired by round (None for the first row).
        settings: what the runtime says it runs with. failed: why the row ended in the middle, else None.
    """

    name: str
    streams: int
    threads: int
    seconds: float | None
    spread: tuple[float, ...]
    images_per_second: float | None
    network_images_per_second: float | None
    faster: Interval | None
    precision: str
    cpu_s: float | None
    settings: dict[str, str]
    failed: str | None = None


@dataclass(frozen=True)
class Exam:
    """The result: an exam of `slices` x `phases` images whose files have `megabytes` (10^6 bytes), and its rows, the
    sequential one first."""

    slices: int
    phases: int
    megabytes: float
    rows: tuple[ExamRow, ...]
    complete: bool
    interrupted: bool


def measure_exam(bundle: Bundle, streams: int | None, threads: int, slices: int = 10, phases: int = 30,
                 rounds: int = 5, on_block: Callable[[turns.Block], None] | None = None) -> Exam:
    """Predict one exam with the Segmenter and with Throughput in turns, `rounds` times each.

    Args:
        streams: of Throughput; None is its "auto". threads: of each row.
        on_block: called after each block; there are 2 rows x 2 modes x `rounds` of them.

    Raises:
        EdgesegError: numbers below 1, more streams than CPUs or threads, a bundle without frames, a row that does not
            start.
    """
    from edgeseg.runtime.precision import choose_precision

    if min(slices, phases, rounds) < 1:
        raise EdgesegError(f"an exam of {slices} slices x {phases} phases, {rounds} times: give at least 1 of each")
    count, _ = checked_streams("auto" if streams is None else streams, threads)
    precision = choose_precision(bundle, "openvino", threads)
    with tempfile.TemporaryDirectory(prefix="edgeseg-exam-") as scratch, ExitStack() as stack:
        images = write_exam(bundle, Path(scratch) / "images", slices, phases)
        jobs = {name: Job(kind, str(bundle.path), str(images), precision=precision, threads=threads,
                          module="edgeseg.measure.exam")
                for name, kind in ((SEQUENTIAL, "sequential"),
                                   (f"{count} stream{'s' * (count > 1)}", f"streams {count}"))}
        workers = {}
        for name, job in jobs.items():
            try:
                workers[name] = stack.enter_context(Worker(job))
            except WorkerError as error:
                raise EdgesegError(f"{bundle.path}: {name} does not start: {error}") from None
        # no call is discarded: one is some hundred frames, and the first was made when the worker started
        taken = turns.take_turns(workers, rounds, BLOCK_SECONDS, 0, on_block=on_block)
        rows = [summarise(name, 1 if name == SEQUENTIAL else count, jobs[name], workers[name].ready, taken,
                          slices * phases) for name in jobs]
        size = sum(f.stat().st_size for f in images.iterdir()) / 1e6
    return Exam(slices, phases, size, tuple(rows), taken.complete, taken.interrupted)


def summarise(name: str, streams: int, job: Job, ready: dict[str, Any], taken: Turns, images: int) -> ExamRow:
    seconds, network = (np.array([ms / 1000 for b in taken.of(name, mode) for ms in b.ms])
                        for mode in ("exam", "network"))
    median = float(np.median(seconds)) if seconds.size else None
    return ExamRow(name, streams, job.threads, median, tuple(map(float, seconds)), images / median if median else None,
                   images / float(np.median(network)) if network.size else None,
                   None if name == SEQUENTIAL else faster(taken, name), job.precision,
                   float(np.sum([b.cpu_s for b in taken.of(name, "exam")]) / seconds.size) if seconds.size else None,
                   ready["runtime"], taken.failed.get(name))


def faster(taken: Turns, name: str) -> Interval:
    """Seconds of the sequential row over those of row `name`, paired by round."""
    mine, theirs = ({b.round: float(np.median(b.ms)) for b in taken.of(row, "exam")} for row in (name, SEQUENTIAL))
    both = sorted(mine.keys() & theirs.keys())
    return statistics.ratio_interval([theirs[r] for r in both], [mine[r] for r in both])


def write_exam(bundle: Bundle, folder: Path, slices: int, phases: int) -> Path:
    """`folder`/exam_0000.nii.gz and one more for each further channel, [x, y, slices, phases]; returns `folder`.

    Raises:
        EdgesegError: the bundle has no golden frames.
    """
    golden = load_golden(bundle.file("golden.npz"))
    if not golden:
        raise EdgesegError("no frame to measure with: the bundle's golden.npz is empty; export it again")
    first = golden[0]
    alike = [g.frame for g in golden if g.frame.shape == first.frame.shape and g.spacing == first.spacing]
    frames = np.stack([alike[i % len(alike)] for i in range(slices * phases)])
    folder.mkdir()
    for c in range(frames.shape[1]):
        volumes = frames[:, c].reshape(phases, slices, *frames.shape[2:])
        nifti_write.write_volume(folder / f"exam_{c:04d}.nii.gz", volumes, first.spacing, SLICE_SPACING)
    return folder


class Predicting:
    """The subject of a worker: job.kind is "sequential" or "streams N", job.frames the folder of images."""

    count = 1

    def __init__(self, job: dict[str, Any]) -> None:
        images, streams = Path(job["frames"]), job["kind"].removeprefix("streams ")
        # the streams use every thread, so what resamples beside them takes one
        cv2.setNumThreads(job["threads"] if streams == "sequential" else 1)
        segmenter = (Segmenter(job["path"], "openvino", job["precision"], job["threads"]) if streams == "sequential"
                     else Throughput(job["path"], job["precision"], int(streams), job["threads"]))
        masks = images.with_name(f"masks {os.getpid()}")
        inputs = network_inputs(segmenter, next(iter(find_images([images]).values())))
        self.shape = (1, *inputs.shape[1:])
        self.runtime = settings_of(segmenter._network)
        self.calls: dict[str, Callable[[int], Any]] = {
            "exam": lambda i: checked(predict(segmenter, [images], masks)), "network": lambda i: segmenter.net(inputs)}


def network_inputs(segmenter: Segmenter, files: tuple[Path, ...]) -> np.ndarray:
    """One centred window [n, C, gh, gw] for each image of the exam, of its first time point again and again."""
    first = nifti.read_case(files, id="exam", patient="exam", frame=0)
    pre = segmenter.preprocessing
    canvas = pre.to_canvas(first.frames, first.spacing)
    windows = geometry.take_window(canvas, geometry.centre_start((canvas.shape[-2], canvas.shape[-1]), pre.size),
                                   pre.size)
    return np.concatenate([windows] * nifti.time_points(files[0]))


def checked(results: Sequence[Any]) -> None:
    """A case that failed took no time: its seconds would be a lie."""
    for result in results:
        if result.error:
            raise EdgesegError(f"the exam was not segmented: {result.error}")


if __name__ == "__main__":
    main(Predicting)
