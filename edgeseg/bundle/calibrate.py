"""Calibration: which frames set the INT8 scales, and the sheet that says so."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from edgeseg import geometry
from edgeseg.bundle.leak import check_contents, check_names, check_own, held_out_contents, sha256
from edgeseg.bundle.recipe import STRATA, CalibrationRecipe
from edgeseg.case import Case
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.manifest import Calibration, CalibrationFrame
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import OPTIONS, CaseRef, Dataset, merge, open_data

MIN_FRAMES = 2
THIRDS = ("first third", "middle third", "last third")
"""Positions in a stack, as the reader orders it, or in a clip."""
GOLDEN_RATIO = 0.6180339887498949  # its multiples fill 0..1 evenly, however many are taken
HELD_BYTES = 512 << 20
"""Cases that were read stay in memory up to this size together: phantoms are slow to paint, and sets are resampled."""


@dataclass(frozen=True)
class Frame:
    """One drawn frame.

    Attributes:
        case: where it is from. index: which of its frames. third: one of THIRDS.
        pixels: float32 [C, H, W] as it was read. window: float32 [C, gh, gw], exactly what the network gets.
    """

    case: CaseRef
    index: int
    third: str
    pixels: np.ndarray
    window: np.ndarray


def calibration_frames(run: Run, data: Dataset, recipe: CalibrationRecipe) -> tuple[np.ndarray, Calibration]:
    """Network inputs float32 [n, C, gh, gw] that set the INT8 scales of a run, and their sheet.

    Of a source that has splits only training patients are drawn. From another source than the run itself nobody may
    calibrate who was held out of the run (dev or val), by name or by content. `data` is the run's own data set.

    Raises:
        EdgesegError: fewer than two usable frames, a held-out patient, images of other channels than the network's.
    """
    return next(calibration_sets(run, data, recipe, [recipe.seed]))


def calibration_sets(run: Run, data: Dataset, recipe: CalibrationRecipe, seeds: Sequence[int]
                     ) -> Iterator[tuple[np.ndarray, Calibration]]:
    """`calibration_frames` for each seed, the source opened and checked once."""
    for frames, sheet in calibration_draws(run, data, recipe, seeds):
        yield np.stack([f.window for f in frames]), sheet


def calibration_draws(run: Run, data: Dataset, recipe: CalibrationRecipe, seeds: Sequence[int]
                      ) -> Iterator[tuple[list[Frame], Calibration]]:
    """`calibration_sets` that still says where each frame is from: a recurrent student needs those before it."""
    source, held = open_source(run, data, recipe)
    source = remembering(source)
    for seed in seeds:
        frames = draw_frames(source, run.preprocessing, recipe.frames, seed, recipe.stratify)
        if len(frames) < MIN_FRAMES:
            raise EdgesegError(f"{source.spec}: only {len(frames)} usable frame(s) to calibrate with (the others are "
                               "constant or missing): name another source, or export with --no-int8")
        check_contents(run, held, ((f"frame {f.index} of {f.case.id}", (f.pixels, f.window)) for f in frames),
                       source.spec)
        yield frames, sheet(run, source, replace(recipe, seed=seed), frames)


def open_source(run: Run, data: Dataset, recipe: CalibrationRecipe) -> tuple[Dataset, dict[str, str]]:
    """The cases that a recipe may draw from, and the contents (`held_out_contents`) that none of them may have.

    A phantom is a pure function of its seed and number, and its name is the number: nothing to compare.
    """
    if recipe.source == "run":
        own = data.select("train")
        check_own(run, own)
        return own, {}
    opened = [open_data(spec) for spec in parts(recipe.source)]
    source = merge([d.select("train") if any(r.split for r in d.refs) else d for d in opened])
    check_names(run, data, source)
    return source, {} if synthetic(source.spec) else held_out_contents(run, data)


def sheet(run: Run, source: Dataset, recipe: CalibrationRecipe, frames: list[Frame]) -> Calibration:
    salt = hashlib.sha256((run.folder / "student.safetensors").read_bytes()).hexdigest()

    def known_as(name: str) -> str:
        return name if recipe.keep_ids else hashlib.sha256(f"{salt}:{name}".encode()).hexdigest()[:32]

    rows = tuple(CalibrationFrame(patient=known_as(f.case.patient), case=known_as(f.case.id), slice=f.index,
                                  sha256=sha256(f.window)) for f in frames)
    return Calibration(recipe=recipe.name, source="run" if recipe.source == "run" else without_path(source.spec),
                       data=source.name, synthetic=synthetic(source.spec), ids="kept" if recipe.keep_ids else "salted",
                       seed=recipe.seed, patients=len({r.patient for r in rows}), strata=strata(frames), frames=rows)


def parts(spec: str) -> list[str]:
    """The data sets of a data spec, which are joined by " + "."""
    return re.split(rf" \+ (?=(?:{'|'.join(OPTIONS)}|phantom):)", spec)


def synthetic(spec: str) -> bool:
    return all(part.startswith("phantom:") for part in parts(spec))


def without_path(spec: str) -> str:
    """`acdc:/data/acdc + phantom:cine?n=4` -> `acdc + phantom:cine?n=4`."""
    return " + ".join(p if p.startswith("phantom:") else p.partition(":")[0] for p in parts(spec))


def remembering(data: Dataset, limit: int = HELD_BYTES) -> Dataset:
    """The same data set, whose cases stay in memory once they were read until `limit` bytes of pixels are full."""
    held: dict[str, Case] = {}

    def load(ref: CaseRef) -> Case:
        if ref.id in held:
            return held[ref.id]
        case = replace(ref.load(), labels=None)
        if sum(c.frames.nbytes for c in held.values()) + case.frames.nbytes <= limit:
            held[ref.id] = case
        return case

    return replace(data, refs=tuple(replace(r, load=partial(load, r)) for r in data.refs))


def draw_frames(data: Dataset, preprocessing: Preprocessing, count: int, seed: int,
                stratify: Sequence[str] = STRATA) -> list[Frame]:
    """Up to `count` frames, dealt out to the patients in turn, over the strata as evenly as the data allow.

    The same data, count, seed and strata give the same frames. Constant frames are left out, and no frame comes twice.

    Raises:
        EdgesegError: a case that cannot be read, or that has other channels than the network.
    """
    deck = Deck(data, preprocessing, np.random.default_rng([seed, len(data)]), frozenset(stratify))
    frames: list[Frame] = []
    while len(frames) < count and (ref := deck.next_case()):
        if frame := deck.draw(ref):
            frames.append(frame)
    return frames


@dataclass
class Deck:
    """What is left to draw from, and how often each patient, case and stratum was drawn."""

    data: Dataset
    preprocessing: Preprocessing
    rng: np.random.Generator
    stratify: frozenset[str]
    cases: dict[str, list[CaseRef]] = field(default_factory=dict, init=False)
    left: dict[str, list[int]] = field(default_factory=dict, init=False)
    drawn: Counter[tuple[str, str | None]] = field(default_factory=Counter, init=False)

    def __post_init__(self) -> None:
        names = self.data.patients()
        by_patient: dict[str, list[CaseRef]] = {p: [] for p in names}
        for ref in self.data.refs:
            by_patient[ref.patient].append(ref)
        # in random order, so that what is equal in all counts is taken at random
        for k in self.rng.permutation(len(names)):
            refs = by_patient[names[k]]
            self.cases[names[k]] = [refs[i] for i in self.rng.permutation(len(refs))]
        self.at = self.rng.random()

    def seen(self, stratum: str, value: str | None) -> int:
        return self.drawn[stratum, value] if stratum in self.stratify and value is not None else 0

    def next_case(self) -> CaseRef | None:
        """Of the patients that gave fewest frames one of the rarest group and vendor; of that patient the case that
        gave fewest, of the rarest phase."""
        if not self.cases:
            return None
        patient = min(self.cases, key=lambda p: (self.drawn["of patient", p], self.seen("group", self.cases[p][0].group)
                                                 + self.seen("vendor", self.cases[p][0].vendor)))
        return min(self.cases[patient], key=lambda r: (self.drawn["of case", r.id], self.seen("phase", r.phase)))

    def draw(self, ref: CaseRef) -> Frame | None:
        """A frame of the rarest third of this case, or None when none is left."""
        case = ref.load()
        check_channels(case, self.preprocessing)
        canvas = self.preprocessing.to_canvas(case.frames, case.spacing)
        if ref.id not in self.left:
            self.left[ref.id] = [i for i, image in enumerate(canvas) if self.windows(image)]
        left = self.left[ref.id]
        if not left:
            self.cases[ref.patient].remove(ref)
            if not self.cases[ref.patient]:
                del self.cases[ref.patient]
            return None
        self.at = (self.at + GOLDEN_RATIO) % 1
        third = partial(third_of, total=len(case.frames))
        if "position" in self.stratify:
            rarest = min(self.seen("position", third(i)) for i in left)
            left = [i for i in left if self.seen("position", third(i)) == rarest]
        index = left[int(self.at * len(left))]
        self.left[ref.id].remove(index)
        windows = self.windows(canvas[index])
        window = windows[int(self.rng.integers(len(windows)))]
        for stratum, value in (("of patient", ref.patient), ("of case", ref.id), ("phase", ref.phase),
                               ("group", ref.group), ("vendor", ref.vendor), ("position", third(index))):
            self.drawn[stratum, value] += 1
        return Frame(ref, index, third(index), case.frames[index].copy(), window)

    def windows(self, image: np.ndarray) -> list[np.ndarray]:
        """What the network gets of a canvas [C, h, w] in use, without windows in which the image is constant."""
        found = []
        for y, x in self.preprocessing.starts((image.shape[-2], image.shape[-1])):
            h, w = self.preprocessing.size
            inside = image[:, max(0, y) : y + h, max(0, x) : x + w]  # the padding around it does not count
            if inside.min() < inside.max():
                found.append(np.ascontiguousarray(geometry.take_window(image, (y, x), (h, w))))
        return found


def third_of(index: int, total: int) -> str:
    return THIRDS[min(2, 3 * index // total)]


def check_channels(case: Case, preprocessing: Preprocessing) -> None:
    have, need = case.frames.shape[1], len(preprocessing.channels)
    if have != need:
        raise EdgesegError(f"{case.source or case.id}: has {have} channel(s), but the network takes {need}: name "
                           "another source")


def strata(frames: list[Frame]) -> dict[str, dict[str, int]]:
    """How many frames there are of each phase, group, vendor and third of the stack, as far as it is known."""
    value: dict[str, Callable[[Frame], str | None]] = {
        "phase": lambda f: f.case.phase, "group": lambda f: f.case.group, "vendor": lambda f: f.case.vendor,
        "position": lambda f: f.third}
    counted = {name: Counter(v for f in frames if (v := get(f)) is not None) for name, get in value.items()}
    return {name: dict(sorted(c.items())) for name, c in counted.items() if c}
