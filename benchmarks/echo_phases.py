"""ED, ES and ejection fraction from the masks of a student, on phantom clips whose events and EF are known.

    python benchmarks/echo_phases.py --run runs/echo/31 --work runs/echo --out benchmarks/results

Of each network (the students, their teacher, and the true masks, which show what the rules themselves cost): aFD of ED
and ES conditioned on the beat as published, and free-running with missed and false events; EF by area-length and by
plain areas; and of the first student the aFD over the sampling rate. Test clips are split val of --other. Writes
echo_phases.json, .md and .png. The clip is the unit of every interval.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import echo_common as echo
from common import Target, cell, markdown_table, target
from echo_crew import TEACHER, Crew, Step, prediction, train_teacher

from edgeseg.case import Case
from edgeseg.distill.run import Run
from edgeseg.measure.afd import ClipCurve, Detector, conditioned, free_running
from edgeseg.measure.ejection import EfAgreement, clip_ef, ef_agreement, volume_curve
from edgeseg.measure.overlap import above
from edgeseg.measure.phases import (
    PHASES,
    PUBLISHED_AREA_THRESHOLD,
    area_curve,
    find_phases,
    network_phases,
    published_phases,
    true_phases,
)
from edgeseg.readers import open_data
from edgeseg.report.figures import new_figure, save

TRUTH = "true masks"
METHODS = ("area-length, detected extremes", "area-length, true events", "plain areas, detected extremes")
PEERS = (
    ("Fiorito 2018, 3D CNN + LSTM", "private, A4C and A2C, 500 patients", "1.63", "1.71", "mean absolute error"),
    ("Dezaki 2019, DenseNet + GRU", "private", "0.20", "1.43", "mean absolute error"),
    ("Lane 2021, CNN + LSTM", "own, multibeat", "-0.09 +- 1.10", "0.11 +- 1.29", "signed mean +- SD: a bias, no aFD"),
    ("Lane 2021, CNN + LSTM", "external site", "-1.34 +- 3.27", "-0.31 +- 3.37", "signed mean +- SD: a bias, no aFD"),
    ("Reynaud 2021, UVT", "EchoNet-Dynamic", "7.17", "3.36", "nearest event; clips with too few events skipped"),
    ("Li 2023, semi-supervised CNN + RNN", "EchoNet-Dynamic", "2.1 (40.2 ms)", "1.7 (32.6 ms)", "aFD"),
    ("Yang 2025, Latent Motion Profiling", "EchoNet-Dynamic", "3.0 (58.3 ms)", "2.0 (38.8 ms; in their code 39.8 ms)",
     "aFD, unsupervised"),
    ("DDSB 2024, training free", "EchoNet-Dynamic, CAMUS", "unknown", "unknown", "abstract without figures"),
    ("EchoDFKD 2025", "EchoNet-Dynamic", "unknown", "unknown", "aFD, the reference frame picks the beat"),
)
"""Method, data, ED and ES in frames, what the figure is: from their abstracts."""


@dataclass
class Found:
    """Of one network, clip by clip: area curves at 1/2 and at the published 25/255, EF in percent by method. `detect`:
    our detector, of masks that follow the heart or do not."""

    detect: Detector = network_phases
    half: list[ClipCurve] = field(default_factory=list)
    published: list[ClipCurve] = field(default_factory=list)
    ef: dict[str, list[float]] = field(default_factory=lambda: {m: [] for m in METHODS})

    def add(self, case: Case, probability: np.ndarray) -> None:
        assert case.frame_time is not None
        truth, masks = true_phases(case), above(probability)
        for curves, threshold in ((self.half, 0.5), (self.published, PUBLISHED_AREA_THRESHOLD)):
            curves.append(ClipCurve(case.id, area_curve(probability, threshold), truth, case.frame_time))
        areas, volumes = self.half[-1].curve, volume_curve(masks, case.spacing)
        events = find_phases(areas, case.frame_time, valves=False)
        for method, curve, phases in zip(METHODS, (volumes, volumes, areas), (events, truth, events), strict=True):
            self.ef[method].append(clip_ef(curve, phases))

    def phases(self, kept: Sequence[bool]) -> dict[str, Any]:
        """The four ways to say how far off events are."""
        half, published = ([c for c, k in zip(curves, kept, strict=True) if k]
                           for curves in (self.half, self.published))
        return {"conditioned, published rule": conditioned(published),
                "conditioned, our detector": conditioned(half, self.detect),
                "free-running, our detector": free_running(half, self.detect),
                "free-running, published rule": free_running(published, lambda curve, _: published_phases(curve))}


def measure_all(given: argparse.Namespace, names: list[str]) -> tuple[dict[str, Found], list[float], list[bool]]:
    """Network -> what was found; true EF (NaN: unknown); which clips have 50 frames per second."""
    networks, ef, at_50 = echo.predicted(given, names), [], []
    found = {TRUTH: Found(find_phases), **{n: Found() for n in names}}
    for case in open_data(given.other).select("val"):
        assert case.labels is not None
        assert case.frame_time is not None
        found[TRUTH].add(case, case.labels == 1)
        for name, network in networks.items():
            found[name].add(case, echo.ventricle(network, case))
        ef.append(float(case.provenance["echo"].get("ef", np.nan)))
        at_50.append(abs(1 / case.frame_time - 50) < 0.5)
    return found, ef, at_50


def phase_table(found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for name, ways in found.items():
        for way, phases in ways.items():
            for phase in PHASES:
                one = phases[phase]
                free = way.startswith("free")
                difference = one.difference if free else one
                rows.append([name, way, phase, cell(difference.frames, 2), cell(difference.ms, 1),
                             cell(difference.bias, 2), str(difference.missed), cell(one.f1, 3) if free else "",
                             f"{one.found}, {one.missed}, {one.false}, {one.border}" if free else ""])
    return markdown_table(["masks", "how", "", "aFD, frames", "aFD, ms", "bias, frames", "events without an estimate",
                           "F1 at +-2 frames", "found, missed, false, at the border"], rows)


def ef_table(found: dict[str, dict[str, EfAgreement]]) -> str:
    rows = [[name, method, cell(a.agreement.mae, 2), cell(a.agreement.bias, 2),
             f"{a.agreement.limits[0]:.1f} to {a.agreement.limits[1]:.1f}", cell(a.r, 3), str(a.n), str(a.left_out)]
            for name, methods in found.items() for method, a in methods.items()]
    return markdown_table(["masks", "method", "MAE, points", "bias", "95 % limits of agreement", "Pearson r", "clips",
                           "without an EF"], rows)


def sampling_table(rows: list[dict[str, Any]]) -> str:
    def number(value: float | None, digits: int) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    return markdown_table(["frames kept", "frames/s", "aFD published, frames", "ms", "F1 ED", "F1 ES"], [
        [r["name"], number(r["fps"], 1), number(r["mean"]["frames"]["value"], 2), number(r["mean"]["ms"]["value"], 1),
         *(number(r["free"][p]["f1"]["value"], 3) for p in PHASES)] for r in rows])


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """Mean aFD of ED and ES, published rule, in ms and in native frames, over the frames a second that were kept."""
    figure, axes = new_figure(7, 4.5)
    other, at = axes.twinx(), [r["fps"] for r in rows]
    for side, unit, style in ((axes, "ms", "o-"), (other, "frames", "s--")):
        values, low, high = ([float("nan") if (v := r["mean"][unit][k]) is None else v for r in rows]
                             for k in ("value", "low", "high"))
        line, = side.plot(at, values, style, label=unit, color="C0" if unit == "ms" else "C1")
        side.fill_between(at, low, high, alpha=0.15, color=line.get_color())
        side.set_ylabel(f"mean aFD of ED and ES, {'ms' if unit == 'ms' else 'native frames'}")
        side.set_ylim(0, None)
    axes.set_xlabel("frames a second that the student gets")
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside upper right", ncols=2)
    save(figure, path)


def targets(name: str, ways: dict[str, Any], ef: EfAgreement) -> list[Target]:
    rows = [target(f"{p} aFD of {name} at 50 frames/s, published rule, frames",
                   ways["conditioned, published rule"][p].frames, "<=", 1.0) for p in PHASES]
    free = ways["free-running, our detector"]
    rows += [target(f"{p} aFD of {name} at 50 frames/s, free-running, frames", free[p].difference.frames, "<=", 1.0)
             for p in PHASES]
    rows += [target(f"{p} F1 of {name} at 50 frames/s, free-running, +-2 frames", free[p].f1, ">=", 0.95)
             for p in PHASES]
    return [*rows, target(f"EF of {name}, mean absolute error, points", ef.agreement.mae, "<=", 3.0)]


def main(arguments: list[str] | None = None) -> None:
    parser = echo.parser_of(__doc__)
    parser.add_argument("--run", type=Path, action="append", help="a student's run; repeat (default: WORK/31)")
    given = parser.parse_args(arguments)
    echo.settle(given)
    runs = {r.name: r.resolve() for r in given.run or [given.work / "31"]}
    for folder in runs.values():
        Run.open(folder)
    first, curve = next(iter(runs)), given.work / "sampling.json"
    with Crew(given.work, given.jobs) as crew:
        train_teacher(given, crew)
        networks = runs | {TEACHER: given.teacher}
        crew.run([*(prediction(given, n, network, given.other, "val") for n, network in networks.items()),
                  Step(f"sampling-{first}", ("sampling", runs[first], given.other, "val", curve))])
    found, truth, at_50 = measure_all(given, list(networks))
    phases = {which: {n: f.phases(kept) for n, f in found.items()}
              for which, kept in (("all", [True] * len(at_50)), ("50 fps", at_50))}
    ef = {n: {m: ef_agreement(values, truth) for m, values in f.ef.items()} for n, f in found.items()}
    rows = targets(first, phases["50 fps"][first], ef[first][METHODS[0]])
    sampling = json.loads(curve.read_text())["rows"]
    document = {**echo.started(given, "echo_phases"), "test": f"{open_data(given.other).name}, split val",
                "clips": len(at_50), "clips_at_50_fps": sum(at_50),
                "phases": phases, "ef": ef, "true_ef": truth, "measured_ef": {n: f.ef for n, f in found.items()},
                "sampling_rates": sampling, "peers": PEERS}
    about = (f"Phantom figures: {len(at_50)} unseen clips, {sum(at_50)} of them at 50 frames per second, with 95 % "
             "bootstrap intervals over clips. Conditioned: the true event picks the beat (published rule: area at "
             "25/255) or the nearest detected event. Free-running: nothing is given; an event within 10 frames of a "
             "true one counts for the aFD, within 2 as found; one that lies within 2 frames of an end of the clip and "
             "has no partner is counted as at the border and nowhere else.")
    parts = [about, "## Events, clips at 50 frames per second", phase_table(phases["50 fps"]), "## Events, all clips",
             phase_table(phases["all"]), "## Ejection fraction, all clips", ef_table(ef),
             f"## Sampling rate, {first}",
             "Every k-th frame is kept and the area curve (at 25/255) brought back to the native frames.",
             sampling_table(sampling), "## Published peers",
             "Other data and other definitions: not to be compared with the tables above, nor all with each other.",
             markdown_table(["method", "data", "ED", "ES", "what the figure is"], PEERS)]
    echo.finish(given, "echo_phases", "Echo: phases and function", document, parts, rows)
    plot(given.out / "echo_phases.png", sampling)


if __name__ == "__main__":
    echo.run_main(main, "echo_phases")
