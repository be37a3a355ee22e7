"""Volumes and ejection fraction of a segmented DICOM series, for its report.

A stack: disk summation in each phase; end-diastole (ED) and end-systole (ES) are the phases of the largest and the
smallest left ventricle, for the right one too. A loop: area-length volumes of the left ventricle over its detected
beats. Where that would mean nothing (`why` says so) there are no values.
"""

from dataclasses import dataclass, field

import numpy as np

from edgeseg.labels import LabelScheme
from edgeseg.measure.ejection import beats, clip_ef, volume_curve
from edgeseg.measure.phases import area_curve, bridge, find_phases
from edgeseg.measure.volumes import ejection_fraction, mass_g, volume_ml
from edgeseg.runtime import dicom_codes as codes
from edgeseg.runtime.dicom_report import Measured
from edgeseg.runtime.dicom_series import Moment, Series

LEAST_SLICES = 3
"""Of a stack whose sum of disks is a volume."""


@dataclass
class Measures:
    """Fed with one moment after the other (`add`); then `values`, or `why` there are none."""

    scheme: LabelScheme
    series: Series
    why: str = ""
    _volumes: dict[str, list[float]] = field(default_factory=dict)
    _loop: dict[str, list[Measured]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "LV" not in self.scheme.names:
            self.why = "the bundle has no left ventricle (LV)"
        elif not self.series.is_loop and (self.series.slots < LEAST_SLICES or self.series.moments < 2):
            self.why = f"fewer than {LEAST_SLICES} slices or 2 phases"

    def add(self, moment: Moment, labels: np.ndarray) -> None:
        """The label values uint8 [N, H, W] of the next moment."""
        if self.why:
            return
        if self.series.is_loop:
            self._add_loop(moment, labels)
        elif len(labels) != self.series.slots:
            self.why = "slices are missing"
        else:
            assert moment.gap is not None  # there are several slices
            for name, value in zip(self.scheme.names, self.scheme.values, strict=True):
                self._volumes.setdefault(name, []).append(volume_ml(labels == value, (moment.gap, *moment.spacing)))

    def values(self) -> dict[str, list[Measured]]:
        """Label -> its values; empty where `why` says why."""
        if self.why or self.series.is_loop:
            return {} if self.why else self._loop
        lv = self._volumes["LV"]
        ed, es = int(np.argmax(lv)), int(np.argmin(lv))
        if not lv[ed] > 0:
            self.why = "no left ventricle was found"
            return {}
        found: dict[str, list[Measured]] = {
            name: of_chamber(name.lower(), self._volumes[name][ed], self._volumes[name][es], "mr")
            for name in ("LV", "RV") if name in self._volumes and self._volumes[name][ed] > 0}
        if "MYO" in self._volumes:
            found["MYO"] = [Measured(codes.MEASURES["myo mass"], mass_g(self._volumes["MYO"][ed]), "g")]
        return found

    def _add_loop(self, moment: Moment, labels: np.ndarray) -> None:
        masks = labels == self.scheme.values[self.scheme.names.index("LV")]
        if moment.frame_time is None:
            self.why = "the loop says no frame rate"
            return
        phases = find_phases(area_curve(masks), moment.frame_time, valves=False)
        curve = bridge(volume_curve(masks, moment.spacing))
        ef = clip_ef(curve, phases)
        if not np.isfinite(ef):
            self.why = "no whole beat was found"
            return
        known = [tuple(float(np.median(curve[max(t - 1, 0) : t + 2])) for t in beat) for beat in beats(phases)]
        ed, es = np.mean(known, axis=0)
        found = of_chamber("lv", float(ed), float(es), "us", codes.AREA_LENGTH) if moment.spacing_known else []
        name = codes.MEASURES["lv ef us"]
        self._loop = {"LV": [m for m in found if m.name != name] + [Measured(name, ef, "%", codes.AREA_LENGTH)]}


def of_chamber(label: str, ed: float, es: float, modality: str, method: codes.Code | None = None) -> list[Measured]:
    ef = codes.MEASURES.get(f"{label} ef {modality}", codes.EJECTION_FRACTION)
    return [Measured(codes.MEASURES[f"{label} edv"], ed, "ml", method),
            Measured(codes.MEASURES[f"{label} esv"], es, "ml", method),
            Measured(codes.STROKE_VOLUME, ed - es, "ml", method), Measured(ef, ejection_fraction(ed, es), "%", method)]
