"""From ultrasound clips to what an echo lab reads: masks, areas, ED and ES, EF, as files and pictures."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.measure import beats
from edgeseg.measure.ejection import clip_ef, volume_curve
from edgeseg.measure.phases import Phases, area_curve, find_phases, network_phases
from edgeseg.readers.nifti_write import write_volume
from edgeseg.report.echo import Curve, area_curves, write_overlay_video
from edgeseg.runtime.stream import Stream

LV = "LV"
COLUMNS = ("clip", "frames", "fps", "ed_frames", "es_frames", "ef_percent", "beats", "flagged_frames")


@dataclass(frozen=True)
class ClipReading:
    """What a bundle says of one clip.

    Attributes:
        labels: label values uint8 [T, H, W]. areas: of the left ventricle, pixels [T]. phases: detected ED and ES, when
            the valves close. ef: percent, area-length at the largest and smallest areas, mean over beats; NaN without
            a beat. flagged: frame -> why the stream flagged it.
        notes: what its reader found odd. error: why there is nothing of it.
    """

    name: str
    fps: float = float("nan")
    labels: np.ndarray | None = None
    areas: np.ndarray | None = None
    phases: Phases = field(default_factory=Phases)
    ef: float = float("nan")
    flagged: tuple[tuple[int, str], ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ""

    def row(self) -> tuple[str, ...]:
        frames = 0 if self.areas is None else len(self.areas)
        ed, es = (" ".join(map(str, events)) for events in (self.phases.ed, self.phases.es))
        return (self.name, str(frames), f"{self.fps:.4g}", ed, es, f"{self.ef:.1f}",
                str(min(len(self.phases.ed), len(self.phases.es))), str(len(self.flagged)))


def read_clip(stream: Stream, case: Case) -> ClipReading:
    """A whole clip through `stream`, frame by frame, from a clean state.

    Raises:
        EdgesegError: the bundle does not segment a left ventricle.
    """
    scheme = stream.bundle.scheme
    if LV not in scheme.names:
        raise EdgesegError(f"{stream.bundle.path}: segments {', '.join(scheme.foreground)}, no {LV}: take another "
                           "bundle")
    assert case.frame_time is not None
    stream.reset()
    stream.spacing, stream.frame_time = case.spacing, case.frame_time
    results = [stream.push(frame, number * case.frame_time) for number, frame in enumerate(case.frames)]
    labels = np.stack([r.labels for r in results])
    masks = labels == scheme.values[scheme.names.index(LV)]
    areas = area_curve(masks)
    phases = network_phases(areas, case.frame_time)
    extremes = find_phases(areas, case.frame_time, valves=False)
    flagged = tuple((n, r.status) for n, r in enumerate(results) if not r.ok)
    return ClipReading(case.id, 1 / case.frame_time, labels, areas, phases,
                       clip_ef(volume_curve(masks, stream.spacing), extremes), flagged,
                       tuple(case.provenance.get("notes", ())))


def read_clips(stream: Stream, refs: Iterable[tuple[str, Callable[[], Case]]], out: Path, pictures: bool = True,
               say: Callable[[ClipReading], None] = lambda reading: None) -> list[ClipReading]:
    """Read clips (name and loader each) and write into `out`.

    As each is done NAME.nii.gz (label values, [x, y, frame]), NAME.mp4 (contours) and NAME.png (areas with ED and ES),
    its line in clips.csv and, a line a frame in EchoNet-Dynamic's form, size.csv: what was read is there however it
    ends, and what an earlier reading left in these two tables is not. A clip that cannot be read is reported in its
    result, and the others go on. Results carry no labels.
    """
    out.mkdir(parents=True, exist_ok=True)
    found: list[ClipReading] = []
    with table(out / "clips.csv", COLUMNS) as add_clip, table(out / "size.csv", beats.COLUMNS) as add_sizes:
        for name, load in refs:
            try:
                case = load()
                reading = read_clip(stream, case)
                assert reading.labels is not None
                write_volume(out / f"{name}.nii.gz", reading.labels, stream.spacing, 1.0)
            except EdgesegError as error:
                reading = ClipReading(name, error=str(error))
            else:
                assert reading.areas is not None
                add_clip([reading.row()])
                add_sizes(beats.size_rows(beats.ClipSizes(name, reading.areas, Phases())))
                if pictures:
                    reading = drawn(out, case, reading, stream)
            found.append(replace(reading, labels=None))
            say(found[-1])
    return found


@contextmanager
def table(path: Path, header: Sequence[str]) -> Iterator[Callable[[Iterable[Sequence[object]]], None]]:
    """A CSV file that takes rows; those that it was given are on the disk."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")

        def add(rows: Iterable[Sequence[object]]) -> None:
            writer.writerows(rows)
            file.flush()

        add([header])
        yield add


def drawn(out: Path, case: Case, reading: ClipReading, stream: Stream) -> ClipReading:
    """The reading, with a note where no picture of it could be made."""
    try:
        draw(out, case, reading, stream)
    except (EdgesegError, OSError) as error:
        return replace(reading, notes=(*reading.notes, f"no picture: {error}"))
    return reading


def draw(out: Path, case: Case, reading: ClipReading, stream: Stream) -> None:
    assert reading.labels is not None
    assert reading.areas is not None
    assert case.frame_time is not None
    scheme = stream.bundle.scheme
    masks = reading.labels == scheme.values[scheme.names.index(LV)]
    write_overlay_video(out / f"{reading.name}.mp4", case.frames[:, 0], masks, None, case.frame_time)
    area_curves(out / f"{reading.name}.png", [Curve(LV, reading.areas, reading.phases)], case.frame_time,
                title=f"EF {reading.ef:.0f} %" if np.isfinite(reading.ef) else "no beat found")
