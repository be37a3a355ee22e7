"""What the INT8 student loses on images unlike those that it learned from: one row a change, paired by patient.

    python benchmarks/robustness.py --bundle cine --data acdc:DIR --out benchmarks/results

Each case is changed in each of the ways of edgeseg/measure/perturb.py, segmented as `edgeseg predict` would, and its
mask compared with the equally changed manual labels, in the changed image's own grid. The drop is the Dice of the
unchanged images minus that, over the same patients (and, for fewer slices, over the same slices). Writes
robustness.json, robustness.md and robustness.png. Choices belong on `--split dev`; `val` is for reporting.
"""

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, Target, cell, markdown_table, provenance, target

from edgeseg.case import Case
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.environment import describe
from edgeseg.measure.evaluate import split_note
from edgeseg.measure.overlap import dice_per_class
from edgeseg.measure.perturb import Perturbation, perturbations
from edgeseg.measure.statistics import Difference, Interval, bootstrap_interval, paired_difference, per_patient
from edgeseg.readers import Dataset, open_data
from edgeseg.report.figures import new_figure, save
from edgeseg.runtime.segmenter import Segmenter

LIMIT = 0.03
"""The largest drop of mean Dice that any row may have."""


@dataclass(frozen=True)
class Row:
    """One change. `dice`: of the changed images; `drop`: unchanged minus changed, "mean" and each structure."""

    name: str
    group: str
    dice: dict[str, Interval]
    drop: dict[str, Difference]


@dataclass
class Scores:
    """Dice [cases, structures] of one change and of the unchanged images on the same slices."""

    changed: list[np.ndarray] = field(default_factory=list)
    before: list[np.ndarray] = field(default_factory=list)


class Scorer:
    """Masks of a Segmenter against labels; `refused` counts the images that it would not segment, by row."""

    def __init__(self, segmenter: Segmenter, dataset: Dataset) -> None:
        self.segmenter, self.scheme, self.ignore = segmenter, segmenter.scheme, dataset.ignore
        self.refused: dict[str, int] = defaultdict(int)

    def masks(self, case: Case, row: str) -> tuple[np.ndarray, np.ndarray]:
        """Class indices uint8 [N, H, W], found and manual; an image that is refused counts as all background."""
        if case.labels is None or case.scheme is None:
            raise EdgesegError(f"{case.source or case.id}: has no labels: choose labelled data")
        found = self.segmenter.segment_volume(case.frames, case.spacing)
        self.refused[row] += not found.ok
        manual = self.scheme.encode(case.labels, case.scheme, self.ignore)
        return self.scheme.encode(found.labels, self.scheme), manual

    def dice(self, found: np.ndarray, manual: np.ndarray) -> np.ndarray:
        return dice_per_class(found, manual, len(self.scheme.names))


def measure(scorer: Scorer, cases: Dataset, rows: tuple[Perturbation, ...]) -> tuple[dict[str, Scores], list[str]]:
    """Row name -> its scores, and the patient of each case, in the order of `cases`; "unchanged" is a row too."""
    found: dict[str, Scores] = defaultdict(Scores)
    patients, start = [], time.monotonic()
    for number, case in enumerate(cases, start=1):
        unchanged = scorer.masks(case, "unchanged")
        found["unchanged"].changed.append(scorer.dice(*unchanged))
        for row in rows:
            kept = slice(None) if row.slices is None else row.slices(len(case.frames))
            found[row.name].before.append(scorer.dice(*(m[kept] for m in unchanged)))
            found[row.name].changed.append(scorer.dice(*scorer.masks(row.change(case), row.name)))
        patients.append(case.patient)
        spent = time.monotonic() - start
        print(f"case {number:3d}/{len(cases)}  {len(rows)} changes, {spent / number:.1f} s a case, "
              f"{(len(cases) - number) * spent / number / 60:.1f} min left", flush=True)
    return dict(found), patients


def of_patients(scores: list[np.ndarray], patients: list[str], structures: tuple[str, ...]) -> dict[str, list[float]]:
    """"mean" and each structure -> one value a patient, sorted by patient."""
    table = np.stack(scores)
    columns = {"mean": table.mean(axis=1), **dict(zip(structures, table.T, strict=True))}
    return {name: list(per_patient(list(column), patients).values()) for name, column in columns.items()}


def summarise(rows: tuple[Perturbation, ...], found: dict[str, Scores], patients: list[str],
              structures: tuple[str, ...], seed: int) -> list[Row]:
    table = []
    for row in rows:
        changed, before = (of_patients(s, patients, structures)
                           for s in (found[row.name].changed, found[row.name].before))
        table.append(Row(row.name, row.group, {k: bootstrap_interval(v, seed=seed) for k, v in changed.items()},
                         {k: paired_difference(before[k], v, seed=seed) for k, v in changed.items()}))
    return table


def targets(table: list[Row]) -> list[Target]:
    """The worst row of all, then that of each group."""
    def worst(rows: list[Row]) -> Row:
        return max(rows, key=lambda r: r.drop["mean"].value)

    overall = worst(table)
    groups = {row.group: [r for r in table if r.group == row.group] for row in table}
    return [target(f"worst row: {overall.name}", overall.drop["mean"], "<=", LIMIT),
            *(target(f"{group}: {worst(rows).name}", worst(rows).drop["mean"], "<=", LIMIT)
              for group, rows in groups.items())]


def page(document: dict[str, Any], table: list[Row], unchanged: dict[str, Interval], numbers: list[Target]) -> str:
    structures = [s for s in unchanged if s != "mean"]
    lines = [[row.group, row.name, cell(row.dice["mean"]), cell(row.drop["mean"]),
              *(f"{row.drop[s].value:+.4f}" for s in structures), "**yes**" if over(row) else ""] for row in table]
    refused = [f"{n} image(s) refused and scored as background: {name}" for name, n in document["refused"].items()]
    return "\n".join([
        "# Robustness", "", *(["**A quick run on a few cases: these numbers mean nothing.**", ""] * document["quick"]),
        f"`{document['command']}`, commit {document['commit']}"
        f"{' with uncommitted changes' if document['changed_files'] else ''}, seed {document['seed']}; "
        f"{document['machine']['cpu']}. Bundle `{document['bundle']}`, {document['precision'].upper()} in OpenVINO, on "
        f"{document['data']}, split {document['split']}: {unchanged['mean'].n} patients, {document['cases']} volumes.",
        "", *(f"**{note}**\n" for note in document["notes"]),
        markdown_table(("number to reach", "drop", "95 %", "limit", ""), [t.line() for t in numbers]),
        "The worst of many rows is picked after looking, so its interval is too narrow. Unchanged images: mean Dice "
        + cell(unchanged["mean"]) + "; " + ", ".join(f"{s} {unchanged[s].value:.4f}" for s in structures) + ".", "",
        "## Every row", "", "Mean over patients with 95 % bootstrap intervals over patients; drop = unchanged minus "
        "changed, paired by patient. What each change does: edgeseg/measure/perturb.py.", "",
        markdown_table(("kind", "change", "mean Dice", "drop", *(f"drop {s}" for s in structures),
                        f"over {LIMIT:g}"), lines), *(f"- {line}" for line in refused)])


def over(row: Row) -> bool:
    return row.drop["mean"].value > LIMIT


def forest(path: Path, table: list[Row], unchanged: Interval) -> None:
    """Drops with their intervals, one line a row; linear up to twice the limit, logarithmic beyond."""
    figure, axes = new_figure(8, 1.5 + 0.21 * len(table))
    colours = {group: f"C{i}" for i, group in enumerate(dict.fromkeys(r.group for r in table))}
    for y, row in enumerate(table):
        drop = row.drop["mean"]
        if np.isfinite([drop.low, drop.high]).all():
            axes.plot([drop.low, drop.high], [y, y], color=colours[row.group], linewidth=1.5)
        axes.plot(drop.value, y, "o" if not over(row) else "D", color=colours[row.group], markersize=5)
    starts = {row.group: y for y, row in reversed(list(enumerate(table)))}
    for start in list(starts.values())[:-1]:  # reversed: all but the first group
        axes.axhline(start - 0.5, color="0.85", linewidth=0.8)
    axes.axvline(0, color="0.5", linewidth=1)
    axes.axvline(LIMIT, color="black", linestyle="--", linewidth=1)
    axes.set_xscale("symlog", linthresh=2 * LIMIT, linscale=1)
    low, high = axes.get_xlim()
    ticks = [t for t in (-0.5, -0.2, -0.1, -0.03, 0, 0.03, 0.1, 0.2, 0.5, 1) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(table)), [row.name for row in table], fontsize=8)
    for label, row in zip(axes.get_yticklabels(), table, strict=True):
        label.set_color(colours[row.group])
    axes.set(ylim=(len(table) - 0.5, -0.5), xlabel=f"drop of mean Dice from {unchanged.value:.3f}\n95 % intervals over "
             f"{unchanged.n} patients; dashed: the limit, diamond: over it")
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True, help="a bundle's folder or zip")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val", help="val, dev, train or all")
    parser.add_argument("--split-file", type=Path)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of noise, bias field and intervals")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="four cases: proves that the script runs, nothing else")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    check_out(given.out)
    segmenter = Segmenter(given.bundle, "openvino", given.precision, given.threads)
    dataset = open_data(given.data, given.split_file)
    cases = dataset.select(None if given.split == "all" else given.split)
    if not len(cases):
        raise EdgesegError(f"{given.data}: no case in split {given.split!r}: choose another --split or --split-file")
    manifest, structures = segmenter.bundle.manifest, segmenter.scheme.foreground
    note = split_note(manifest.data, dataset.name, given.split, cases.patients())
    if given.quick:
        cases = replace(cases, refs=cases.refs[:4])
    rows, scorer = perturbations(given.seed), Scorer(segmenter, dataset)
    found, patients = measure(scorer, cases, rows)
    unchanged = {k: bootstrap_interval(v, seed=given.seed)
                 for k, v in of_patients(found["unchanged"].changed, patients, structures).items()}
    table = summarise(rows, found, patients, structures, given.seed)
    numbers = targets(table)
    document = {
        "schema": "edgeseg.robustness/1", "quick": given.quick, **provenance(), "seed": given.seed,
        "machine": describe(), "bundle": segmenter.bundle.path.name, "precision": segmenter.precision,
        "data": dataset.name, "split": given.split, "cases": len(patients), "patients": unchanged["mean"].n,
        "notes": [note] if note else [], "refused": {k: n for k, n in scorer.refused.items() if n},
        "targets": [t.document() for t in numbers], "unchanged": unchanged, "rows": table}
    write_json(given.out / "robustness.json", document)
    write_text(given.out / "robustness.md", page(document, table, unchanged, numbers))
    forest(given.out / "robustness.png", table, unchanged["mean"])
    for line in (t.line() for t in numbers):
        print("  ".join(part for part in line if part))
    print(f"wrote    {given.out / 'robustness.md'}")


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"robustness: {error}")
