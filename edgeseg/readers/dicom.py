"""DICOM: `dicom:` (a file, or a folder with all that lies below it) of unlabelled MR or CT series.

Files are found by content. The images of a series that share orientation, size and kind make a stack; its slices are
ordered along the normal, the images of one place in time (`dicom_image.MOMENTS`). A Case is one moment of a stack:

    files -> series -> Stack [slices, phases] -> Case (one phase);  on_grid: its labels -> the stack's grid

Names of cases and patients are made of series numbers and hashes, never of what a file says of a person.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.readers.dataset import CaseRef, Dataset
from edgeseg.readers.dicom_image import File, Slice, is_dicom, read_file, short_hash
from edgeseg.readers.dicom_pixels import read_pixels

SAME_PLACE = 0.1
"""mm between positions that still are one: they are written with about four decimals."""
SAME_AXES = 1e-3
"""Difference of direction cosines that still are one orientation (0.06 degrees)."""
EVEN = 0.02
"""Part of the slice distance by which slices may be off an even grid."""
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's patient axes (left, back, head) to NIfTI's (right, front, head)."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Parallel slices at one or several phases.

    Attributes:
        name: seriesNNN_ and six digits of a hash of the series' UID. patient: pseudonym.
        phases: for each phase its (slot, slice) in the order of the slots; a slot without a slice is a missing image.
        slots: slices of the grid. affine [4, 4]: column, row, slot -> mm in NIfTI's axes.
        problem: why the series cannot be read; there are then no phases.
    """

    name: str
    patient: str
    vendor: str | None
    files: tuple[Path, ...]
    phases: tuple[tuple[tuple[int, Slice], ...], ...] = ()
    slots: int = 0
    affine: np.ndarray | None = None
    problem: str = ""

    def read(self, phase: int) -> Case:
        """One phase (from 0) as a Case: only the slices that are there, provenance["slots"] says where.

        Raises:
            EdgesegError: the series has a problem, a file is damaged or cannot be decompressed, a constant image.
        """
        if self.problem:
            raise EdgesegError(self.problem)
        assert self.affine is not None
        slots, slices = zip(*self.phases[phase], strict=True)
        (height, width), spacing = slices[0].shape, slices[0].spacing
        shape, distance = (width, height, self.slots), float(np.linalg.norm(self.affine[:3, 2]))
        pixels = read_pixels(slices)
        provenance = {"affine": self.affine, "header": header(shape, self.affine), "shape": shape, "slots": slots}
        return Case(id=self.case_name(phase), patient=self.patient, frames=pixels[:, None],
                    spacing=spacing, slice_spacing=distance if self.slots > 1 else None, vendor=self.vendor,
                    source=str(slices[0].path), provenance=provenance)

    def read_times(self) -> Iterator[Case]:
        """Every phase, one at a time."""
        return (self.read(t) for t in range(max(1, len(self.phases))))

    def case_name(self, phase: int) -> str:
        digits = max(2, len(str(len(self.phases))))
        return f"{self.name}_phase{phase + 1:0{digits}d}" if len(self.phases) > 1 else self.name


def open_dicom(root: Path, *, spec: str, split_file: Path | None = None) -> Dataset:
    """`dicom:PATH`: each phase of each stack is an unlabelled case; what was left out or is odd is logged."""
    stacks, notes = find_stacks([root])
    for note in notes:
        logging.getLogger(__name__).warning(note)
    refs = [CaseRef(s.case_name(t), s.patient, None, None, None, s.vendor, partial(s.read, t))
            for s in stacks for t in range(max(1, len(s.phases)))]
    return Dataset("dicom", spec, tuple(refs), None, "unknown")


def find_files(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """The DICOM files among `paths` and in the folders among them, sorted; and how many other files there were."""
    files = sorted({f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()})
    found = [f for f in files if is_dicom(f)]
    return found, len(files) - len(found)


def find_stacks(paths: Sequence[Path]) -> tuple[list[Stack], list[str]]:
    """Every stack of every series in files and folders, and notes: one line each on what was left out or is odd.

    Raises:
        EdgesegError: nothing that is a DICOM image; pydicom is not installed.
    """
    paths_found, others = find_files(paths)
    series: dict[str, list[File]] = defaultdict(list)
    seen: set[str] = set()
    copies = objects = 0
    for path in paths_found:
        file = read_file(path)
        if file is None:
            objects += 1
        elif file.instance and file.instance in seen:
            copies += 1
        else:
            seen.add(file.instance)
            series[file.series].append(file)
    if not series:
        raise EdgesegError(f"{', '.join(map(str, paths))}: holds no DICOM image")
    counts = (("files that are not DICOM", others), ("DICOM objects that are no images", objects),
              ("copies of an image", copies))
    left_out = ", ".join(f"{what} ({n})" for what, n in counts if n)
    notes = [f"left out: {left_out}"] if left_out else []
    stacks = []
    for uid, files in sorted(series.items(), key=lambda item: (item[1][0].number, item[0])):
        made, said = stacks_of(uid, files)
        stacks += made
        notes += said
    return stacks, notes


def stacks_of(uid: str, files: list[File]) -> tuple[list[Stack], list[str]]:
    """The stacks of one series, with notes; one without slices when a file of the series cannot be used."""
    first, paths = files[0], tuple(f.path for f in files)
    name = f"series{first.number:03d}_{short_hash(uid.encode(), 6)}" if uid else "unreadable"
    bad = [f.problem for f in files if f.problem]
    if bad:
        more = f" (and {len(bad) - 1} more of this series)" if len(bad) > 1 else ""
        return [Stack(name, first.patient, first.vendor, paths, problem=bad[0] + more)], []
    groups = grouped([s for f in files for s in f.slices])
    stacks, notes = [], []
    for number, group in enumerate(groups, 1):
        part = f"{name}_part{number}" if len(groups) > 1 else name
        stack, said = make_stack(part, first, group)
        stacks.append(stack)
        phases = max(f.phases for f in files)
        if 1 < len(stack.phases) < phases:
            said.append(f"{len(stack.phases)} phases, the files speak of {phases}")
        notes += [f"{part}: {line}" for line in said]
    return stacks, notes


def grouped(slices: list[Slice]) -> list[list[Slice]]:
    """Slices of one orientation, size, spacing and kind together; the order of the files has no influence."""
    axes: list[tuple[float, ...]] = []
    groups: dict[tuple, list[Slice]] = defaultdict(list)
    for s in sorted(slices, key=lambda s: (s.row, s.column, s.moments[-1] or 0, s.position, str(s.path))):
        own = (*s.row, *s.column)
        index = next((i for i, known in enumerate(axes) if np.allclose(known, own, rtol=0, atol=SAME_AXES)), len(axes))
        if index == len(axes):
            axes.append(own)
        groups[index, s.shape, np.round(s.spacing, 4).tobytes(), s.kind].append(s)
    return sorted(groups.values(), key=lambda g: min(s.moments[-1] or 0 for s in g))


def make_stack(name: str, about: File, slices: list[Slice]) -> tuple[Stack, list[str]]:
    """Slices of one group -> their grid and phases."""
    paths = tuple(dict.fromkeys(s.path for s in slices))
    places = places_of(slices)
    points = np.array([place[0].position for place in places])
    if len(points) > 1 and np.diff(points @ slices[0].normal).min() < SAME_PLACE:
        return Stack(name, about.patient, about.vendor, paths, problem=f"{paths[0]}: is one of several images side by "
                     "side in one plane: these are no stack, leave the series out"), []
    slots, off = grid_slots(points, slices[0].normal)
    phases, guessed = phases_of(places)
    first, count = slices[0], int(slots[-1]) + 1
    step = (points[-1] - points[0]) / (count - 1) if count > 1 else first.normal * first.gap
    affine = np.eye(4)
    affine[:3, 0] = np.multiply(first.row, first.spacing[1])  # from column to column
    affine[:3, 1] = np.multiply(first.column, first.spacing[0])
    affine[:3, 2], affine[:3, 3] = step, points[0]
    stack = Stack(name, about.patient, about.vendor, paths,
                  tuple(tuple((int(slots[p]), phase[p]) for p in sorted(phase)) for phase in phases), count,
                  TO_RAS @ affine)
    notes = []
    if missing := count * len(phases) - len(slices):
        notes.append(f"{missing} of {count} slices x {len(phases)} phases are missing: the mask is background there"
                     + (", and which phases they are is a guess" if guessed else ""))
    if off > EVEN * np.linalg.norm(step):
        notes.append(f"its slices are not evenly spaced: those of the mask are up to {off:.1f} mm off")
    return stack, notes


def places_of(slices: list[Slice]) -> list[list[Slice]]:
    """The slices of each position, positions in the order along the normal."""
    normal = slices[0].normal
    places: list[list[Slice]] = []
    for s in sorted(slices, key=lambda s: float(np.dot(s.position, normal))):
        for place in reversed(places):
            away = np.subtract(s.position, place[0].position)
            if np.linalg.norm(away) < SAME_PLACE:
                place.append(s)
                break
            if np.dot(away, normal) > SAME_PLACE:
                places.append([s])
                break
        else:
            places.append([s])
    return places


def grid_slots(points: np.ndarray, normal: np.ndarray) -> tuple[np.ndarray, float]:
    """Slot of each position [n, 3] on an even grid, and how many mm the worst is off it.

    Gaps that are multiples of the smallest leave slots empty (missing slices); other uneven ones are evened out.
    """
    if len(points) == 1:
        return np.zeros(1, int), 0.0
    along = (points - points[0]) @ normal
    guess, off = np.rint(along / np.diff(along).min()).astype(int), np.inf
    for slots in (guess, np.arange(len(points))):
        even = points[0] + slots[:, None] / slots[-1] * (points[-1] - points[0])
        off = float(np.linalg.norm(points - even, axis=1).max())
        if off <= EVEN * along[-1] / slots[-1] and slots[-1] < 4 * len(points):
            break
    return slots, off


def phases_of(places: list[list[Slice]]) -> tuple[list[dict[int, Slice]], bool]:
    """For each phase the slice of each place that has one; and whether places of fewer images are a guess.

    The first of MOMENTS that tells all images of every place apart orders them. Where a place has fewer images than
    others they belong to the phases whose times are nearest; numbers that are not comparable count from the first.
    """
    most = max(map(len, places))
    which = next((m for m in range(len(places[0][0].moments))
                  if all(len({s.moments[m] for s in place} - {None}) == len(place) for place in places)), None)

    def when(s: Slice) -> float:
        return (s.moments[which] or 0.0) if which is not None else 0.0

    comparable = which is not None and which < 2  # time since the R wave, or a number that counts alike at every place
    ordered = [sorted(place, key=lambda s: (when(s), str(s.path), s.frame)) for place in places]
    usual = np.median([[when(s) for s in place] for place in ordered if len(place) == most], axis=0)
    phases: list[dict[int, Slice]] = [{} for _ in range(most)]
    for p, place in enumerate(ordered):
        at = np.arange(len(place))
        if comparable and len(place) < most:
            from scipy.optimize import linear_sum_assignment

            at = linear_sum_assignment(np.abs(np.array([when(s) for s in place])[:, None] - usual))[1]
        for t, s in zip(at, place, strict=True):
            phases[t][p] = s
    return phases, not comparable


def header(shape: tuple[int, int, int], affine: np.ndarray) -> nib.Nifti1Header:
    """Of a NIfTI file of this grid, in scanner coordinates."""
    image = nib.Nifti1Image(np.broadcast_to(np.uint8(0), shape), affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    return image.header


def on_grid(labels: np.ndarray, slots: Sequence[int], count: int) -> np.ndarray:
    """Labels [N, H, W] of the slices in `slots` -> uint8 [count, H, W], background in the other slots."""
    grid = np.zeros((count, *labels.shape[1:]), np.uint8)
    grid[list(slots)] = labels
    return grid
