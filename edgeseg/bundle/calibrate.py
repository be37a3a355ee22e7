"""Calibration: which real frames set the INT8 scales, and the sheet that says so."""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np

from edgeseg import geometry
from edgeseg.case import Case
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Calibration, CalibrationFrame
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import CaseRef, Dataset

MIN_FRAMES = 2
GOLDEN_RATIO = 0.6180339887498949  # its multiples fill 0..1 evenly, however many are taken


@dataclass(frozen=True)
class Frame:
    """One drawn frame: `window` float32 [C, gh, gw] is exactly what the network gets."""

    case: Case
    index: int
    window: np.ndarray


def draw_frames(data: Dataset, preprocessing: Preprocessing, count: int, seed: int) -> list[Frame]:
    """Up to `count` frames, dealt out to the patients in turn, spread over their cases and slices.

    The same data, count and seed give the same frames. Constant frames are left out.
    """
    rng = np.random.default_rng([seed, len(data)])
    patients = [data.patients()[i] for i in rng.permutation(len(data.patients()))]
    offset = rng.random()
    cases: dict[str, list[CaseRef]] = {p: [] for p in patients}
    for ref in data.refs:
        cases[ref.patient].append(ref)
    frames = []
    for rank, patient in enumerate(patients):
        refs = cases[patient]
        wanted = [0] * len(refs)
        for turn in range(count // len(patients) + (rank < count % len(patients))):
            wanted[(rank + turn) % len(refs)] += 1  # the first turn goes round the phases too
        for ref, number in zip(refs, wanted, strict=True):
            if number:
                frames += frames_of(ref.load(), preprocessing, number, (offset + rank * GOLDEN_RATIO) % 1)
    return frames


def frames_of(case: Case, preprocessing: Preprocessing, number: int, offset: float) -> list[Frame]:
    """`number` frames of a case (all of them if it has fewer), evenly spread; `offset` (0..1) shifts them."""
    total = len(case.frames)
    number = min(number, total)
    canvas = preprocessing.to_canvas(case.frames, case.spacing)
    indices = [int((k + offset) * total / number) for k in range(number)]
    return [Frame(case, i, centre_window(canvas[i], preprocessing.size)) for i in indices
            if canvas[i].min() < canvas[i].max()]


def centre_window(canvas: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The window of the fixed grid around the centre of a normalised canvas [C, h, w], padded with 0 as in use."""
    start = geometry.centre_start((canvas.shape[-2], canvas.shape[-1]), size)
    return np.ascontiguousarray(geometry.take_window(canvas, start, size))


def calibration_frames(run: Run, data: Dataset, count: int, seed: int) -> tuple[np.ndarray, Calibration]:
    """Network inputs float32 [n, C, gh, gw] from the run's training patients, and their sheet.

    Raises:
        EdgesegError: fewer than two usable frames, or a patient that the run does not know as a training patient
            (dev and val patients choose and report: they must not shape the model).
    """
    if count < MIN_FRAMES:
        raise EdgesegError(f"calibration needs at least {MIN_FRAMES} frames, not {count}: raise --calibration-frames")
    train = data.select("train")
    check_leak(run, train)
    frames = draw_frames(train, run.preprocessing, count, seed)
    if len(frames) < MIN_FRAMES:
        raise EdgesegError(f"{data.spec}: only {len(frames)} usable training frame(s) to calibrate with (the others "
                           "are constant or missing): name other data, or export with --no-int8")
    salt = hashlib.sha256((run.folder / "student.safetensors").read_bytes()).hexdigest()

    def hashed(name: str) -> str:
        return hashlib.sha256(f"{salt}:{name}".encode()).hexdigest()[:32]

    rows = tuple(CalibrationFrame(patient=hashed(f.case.patient), case=hashed(f.case.id), slice=f.index,
                                  sha256=hashlib.sha256(f.window.tobytes()).hexdigest()) for f in frames)
    sheet = Calibration(recipe="run", source="run", data=data.name, synthetic=False, ids="salted", seed=seed,
                        patients=len({r.patient for r in rows}), strata=strata(frames),
                        frames=rows)
    return np.stack([f.window for f in frames]), sheet


def check_leak(run: Run, train: Dataset) -> None:
    """Raise EdgesegError unless every patient of `train` was a training patient of the run, and no other."""
    splits = {name: set(patients) for name, patients in run.data["splits"].items()}
    for patient in train.patients():
        for held_out in ("dev", "val"):
            if patient in splits.get(held_out, ()):
                raise EdgesegError(f"{train.spec}: patient {patient} was in {held_out} when {run.folder} was trained, "
                                   "so must not calibrate it: restore the split of the run")
        if patient not in splits["train"]:
            raise EdgesegError(f"{train.spec}: patient {patient} is new since {run.folder} was trained: restore the "
                               "data or the split of the run")


def strata(frames: list[Frame]) -> dict[str, dict[str, int]]:
    """How many frames there are of each phase, group, vendor and third of the stack, as far as it is known."""
    thirds = ("first third", "middle third", "last third")
    columns: dict[str, list[str | None]] = {
        "phase": [f.case.phase for f in frames],
        "group": [f.case.group for f in frames],
        "vendor": [f.case.vendor for f in frames],
        "position": [thirds[min(2, 3 * f.index // len(f.case.frames))] for f in frames],
    }
    counted = {name: Counter(v for v in values if v is not None) for name, values in columns.items()}
    return {name: dict(sorted(c.items())) for name, c in counted.items() if c}
