"""A series of cine images while it comes in: what was segmented, and at its end volumes and ejection fraction.

Slices are told apart by number and position, times by repetition and phase, in whatever order they come. An image that
comes again for the same slice and time takes the place of the one before.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeseg.labels import LabelScheme
from edgeseg.measure.volumes import ejection_fraction, mass_g, volume_ml
from edgeseg.serve.mrd_image import SERIES_STEP, Segmented, mask_message, structures
from edgeseg.serve.mrd_wire import Original

MAX_ENTRIES = 20_000
"""Slices x times whose areas are kept. Images beyond get their mask, the series no volumes."""
SAME_PLACE_MM = 0.5
"""Images with one slice number are one slice as long as they lie this close to each other."""
MAX_NOTES = 16
"""Kinds of notes that are told apart."""

UNITS = {"ml": "ml", "percent": "%", "g": "g"}
"""By the end of a value's name."""

Slice = tuple[int, float]
Time = tuple[int, int]


@dataclass(frozen=True)
class Volumes:
    """Read-out of a series.

    Attributes:
        slices, times: how many there are. complete: how many of the times have every slice.
        distance: between slices in mm.
        ed, es: the times with the largest and the smallest left ventricle, ml by label name; es is None with only one
            time. ed_phase, es_phase: their cardiac phases.
        reference: the label that ED and ES were chosen by.
    """

    slices: int
    times: int
    complete: int
    distance: float
    reference: str
    ed_phase: int
    ed: dict[str, float]
    es_phase: int | None
    es: dict[str, float] | None

    def values(self) -> dict[str, float]:
        """What a report names: `LV_EDV_ml`, `LV_ESV_ml`, `LV_EF_percent`, `MYO_mass_g` (at ED). What is not defined,
        as the EF of an empty ventricle, is left out."""
        found: dict[str, float] = {}
        for name, ml in self.ed.items():
            if name == "MYO":
                found["MYO_mass_g"] = mass_g(ml)
                continue
            found[f"{name}_EDV_ml"] = ml
            if self.es is not None:
                found |= {f"{name}_ESV_ml": self.es[name], f"{name}_EF_percent": ejection_fraction(ml, self.es[name])}
        return {name: value for name, value in found.items() if np.isfinite(value)}

    def __str__(self) -> str:
        said = ", ".join(f"{name.rpartition('_')[0].replace('_', ' ')} {value:.1f} {UNITS[name.rpartition('_')[2]]}"
                         for name, value in self.values().items())
        when = f"ED phase {self.ed_phase}" + ("" if self.es_phase is None else f", ES phase {self.es_phase}")
        return (f"{said}; {when} (by {self.reference}); {self.slices} slices {self.distance:.1f} mm apart, "
                f"{self.complete} phases; research use")


class Series:
    """One `image_series_index` of one session.

    Attributes:
        images, masks: how many came and how many have a mask. seconds: that segmenting them took.
        notes: why an image has no mask -> how often.
    """

    def __init__(self, number: int, scheme: LabelScheme) -> None:
        self.number, self._scheme = number, scheme
        self.images = self.masks = 0
        self.seconds = 0.0
        self.notes: Counter[str] = Counter()
        names = [name for name, _ in structures(scheme)]
        self._reference = "LV" if "LV" in names else names[0]
        self._areas: dict[tuple[Slice, Time], tuple[float, ...]] = {}
        self._places: dict[int, list[float]] = {}
        self._depth, self._slabs = 0.0, False
        self._largest: tuple[float, Original, np.ndarray] | None = None

    def note(self, why: str) -> bool:
        """Count why an image has no mask; True when it is the first of this kind."""
        kind = why if why in self.notes or len(self.notes) < MAX_NOTES else "has other problems"
        self.notes[kind] += 1
        return self.notes[kind] == 1

    def add(self, image: Original, found: Segmented) -> None:
        """Areas of every label of an image that was segmented."""
        head = image.head
        self.masks += 1
        key = self._slice(head), (head.repetition, head.phase)
        # ml for each mm of slice distance, which is only known when all slices are here
        areas = tuple(volume_ml(found.labels == value, (1.0, *found.spacing)) for _, value in structures(self._scheme))
        if key in self._areas or len(self._areas) < MAX_ENTRIES:
            self._areas[key] = areas
        self._depth, self._slabs = head.field_of_view[2] / head.matrix_size[2], self._slabs or head.matrix_size[2] > 1
        size = dict(zip((n for n, _ in structures(self._scheme)), areas, strict=True))[self._reference]
        if self._largest is None or size > self._largest[0]:
            self._largest = size, Original(head, (*image.parts[:4], b"")), found.labels

    def _slice(self, head: Any) -> Slice:
        """The slice of an image: its number, and the position along the normal that this slice was first seen at."""
        along = sum(float(n) * float(p) for n, p in zip(head.slice_dir, head.position, strict=True))
        along = along if np.isfinite(along) else 0.0
        known = self._places.setdefault(head.slice, [])
        if (place := next((p for p in known if abs(p - along) < SAME_PLACE_MM), None)) is None:
            place = along
            if len(self._areas) < MAX_ENTRIES:
                known.append(along)
        return head.slice, place

    def distance(self) -> float | None:
        """mm between slices: the median step between their positions; of a single one, and of the partitions of a
        volume, the thickness. None where neither is known."""
        places = sorted({along for (_, along), _ in self._areas})
        steps = float(np.median(np.diff(places))) if len(places) > 1 and not self._slabs else self._depth
        return steps if np.isfinite(steps) and steps > 0 else None

    def volumes(self) -> Volumes | None:
        """None without a mask, without a slice distance, or when no time has every slice."""
        slices, times = {key[0] for key in self._areas}, {key[1] for key in self._areas}
        whole = sorted(t for t in times if all((s, t) in self._areas for s in slices))
        if (distance := self.distance()) is None or not whole or len(self._areas) == MAX_ENTRIES:
            return None
        names = [name for name, _ in structures(self._scheme)]
        stacks = {t: np.sum([self._areas[s, t] for s in slices], axis=0) * distance for t in whole}
        curve = [float(stacks[t][names.index(self._reference)]) for t in whole]
        ed, es = whole[int(np.argmax(curve))], whole[int(np.argmin(curve))]

        def of(time: Time) -> dict[str, float]:
            return dict(zip(names, map(float, stacks[time]), strict=True))

        one = len(whole) == 1
        return Volumes(len(slices), len(times), len(whole), distance, self._reference, ed[1], of(ed),
                       None if one else es[1], None if one else of(es))

    def report(self) -> tuple[list[str], tuple[bytes, ...]]:
        """Lines for the console, a warning begins with WRN; and a message with the read-out in its meta attributes:
        the mask of the frame with the largest ventricle once more, in a series of its own. () without a mask."""
        lines = []
        if missing := self.images - self.masks:
            why = ", ".join(f"{count} {kind}" for kind, count in self.notes.most_common())
            lines.append(f"WRN series {self.number}: {missing} of {self.images} images have no mask ({why})")
        if self._largest is None:
            return lines, ()
        _, image, labels = self._largest
        found = self.volumes()
        if found is None:
            lines.append(f"WRN series {self.number}: no volumes: no phase has all slices, or their "
                         "distance is unknown, or there are too many")
            return lines, ()
        if found.complete < found.times:
            lines.append(f"WRN series {self.number}: only {found.complete} of {found.times} phases have all slices")
        lines.append(f"series {self.number}: {found}")
        meta: dict[str, Any] = {name: f"{value:.2f}" for name, value in found.values().items()}
        meta |= {"DataRole": ["Segmentation", "Quantitative", "Report"], "ImageComments": str(found),
                 "SequenceDescriptionAdditional": "edgeseg_report", "SeriesDescriptionAdditional": "edgeseg_report"}
        return lines, mask_message(image, labels, self._scheme, 2 * SERIES_STEP, meta)
