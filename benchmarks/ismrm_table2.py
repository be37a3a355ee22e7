"""ISMRM 2024 #2094, Table 2: Dice over distillation temperature T and weight W, with W = 0 as the row without it.

    python benchmarks/ismrm_table2.py --data acdc:DIR --teacher nnunet:FOLDER --recipe benchmarks/recipes/X.toml \
        --seeds 0 1 2 --work runs/tables --out benchmarks/results

One student for each T, W and seed, all else the same, scored on split `val` (which no choice has looked at), FP32 in
PyTorch. A patient's Dice is the mean over seeds; the patient is the unit of every interval and of every paired
difference. Writes ismrm_table2.json, .md and .png. What --work holds already is not made again. The abstract's own grid
and numbers are in a picture that could not be read: grid and expansion ratio 8 (which it names) are options here.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import cell, evaluate_teacher, markdown_table, noted, provenance
from students import LABELS, make, parser_of, schedule, settle, shown, unnamed

from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import write_json, write_text
from edgeseg.measure.environment import describe
from edgeseg.measure.statistics import Difference, Interval, bootstrap_interval, paired_difference
from edgeseg.readers import open_data
from edgeseg.report.figures import new_figure, save

TEMPERATURES, WEIGHTS, SEEDS = (1.0, 2.0, 4.0, 8.0), (0.25, 0.5, 0.75, 1.0), (0,)
Scores = dict[str, np.ndarray]
"""Structure (and `mean`) -> Dice of each patient, in the order of the patients' names."""


@dataclass(frozen=True)
class Cell:
    """One T and W (T is None for W = 0), all seeds.

    Attributes:
        by_seed: scores of each seed. dev: mean over seeds of the Dice by which the best epoch was chosen.
    """

    temperature: float | None
    weight: float
    by_seed: list[Scores]
    dev: float

    @property
    def name(self) -> str:
        return "W = 0" if self.temperature is None else f"T = {self.temperature:g}, W = {self.weight:g}"

    def dice(self, structure: str = "mean") -> np.ndarray:
        """Each patient's Dice, averaged over the seeds."""
        return np.mean([scores[structure] for scores in self.by_seed], axis=0)


def grid(recipe: Recipe, given: argparse.Namespace) -> dict[tuple[float | None, float], dict[str, Recipe]]:
    """(T, W) -> run name -> recipe, one for each seed. T means nothing without distillation: W = 0 is there once."""
    cells = [(None, 0.0), *((t, w) for w in given.weights for t in given.temperatures if w > 0)]
    found: dict[tuple[float | None, float], dict[str, Recipe]] = {}
    for t, w in cells:
        changes = {"temperature": t or 1.0, "kd_weight": w, "expansion": given.expansion}
        name = f"x{given.expansion}-w0" if t is None else f"x{given.expansion}-t{t:g}-w{w:g}"
        found[t, w] = {f"{name}-s{s}": recipe.changed({**changes, "seed": s}) for s in given.seeds}
    return found


def read_cell(work: Path, key: tuple[float | None, float], runs: dict[str, Run]) -> Cell:
    scores = [json.loads((work / name / "score.json").read_text()) for name in runs]
    patients = sorted(scores[0]["mean"])  # of every seed and cell, or a KeyError: all were scored on one split
    arrays = [{s: np.array([values[p] for p in patients]) for s, values in one.items()} for one in scores]
    return Cell(*key, arrays, float(np.mean([run.metrics["dev"]["dice"] for run in runs.values()])))


def minus(cells: list[Cell], other: np.ndarray, seed: int) -> dict[str, Difference]:
    """Mean Dice of each cell minus that of `other`, on the same patients."""
    return {c.name: paired_difference(c.dice(), other, seed=seed) for c in cells}


def lower_is_better(cells: list[Cell], seed: int) -> dict[str, Any]:
    """The abstract's claim that a lower temperature is better, as it comes out.

    slope: change of mean Dice for each doubling of T, a line for each patient over all cells with W > 0.
    lowest_minus_highest: W -> paired difference between the lowest and the highest T.
    """
    distilled = cells[1:]
    temperatures = sorted({c.temperature for c in distilled if c.temperature})
    if len(temperatures) < 2:
        return {"slope": None, "lowest_minus_highest": {}, "verdict": "not measured: one temperature only"}
    doublings = np.log2([c.temperature for c in distilled])
    slope = bootstrap_interval(np.polyfit(doublings, np.array([c.dice() for c in distilled]), 1)[0], seed=seed)
    if slope.n < 2:
        verdict = "cannot be judged: one patient"
    elif slope.high < 0:
        verdict = "holds: Dice falls as T rises"
    elif slope.low > 0:
        verdict = "contradicted: Dice rises with T"
    else:
        verdict = "not shown: the interval of the slope contains 0"
    by_weight: dict[float, dict[float | None, np.ndarray]] = {}
    for c in distilled:
        by_weight.setdefault(c.weight, {})[c.temperature] = c.dice()
    pairs = {f"{w:g}": paired_difference(found[temperatures[0]], found[temperatures[-1]], seed=seed)
             for w, found in sorted(by_weight.items())}
    return {"slope": slope, "temperatures": temperatures, "lowest_minus_highest": pairs, "verdict": verdict}


def page(document: dict[str, Any], results: str, cells: list[Cell], gain: dict[str, Difference], training: str) -> str:
    quick = "**A quick run with tiny settings: these numbers mean nothing.**\n\n" if document["quick"] else ""
    claim, seeds = document["lower_temperature_is_better"], document["seeds"]
    slope: Interval | None = claim["slope"]
    said = (f"Change of mean Dice for each doubling of T, a line for each patient over all W > 0: {cell(slope)} (n = "
            f"{slope.n} patients).\n\n" if slope else "")
    ends = [[w, cell(d), p_value(d)] for w, d in claim["lowest_minus_highest"].items()]
    span = (f"T = {claim['temperatures'][0]:g} minus T = {claim['temperatures'][-1]:g}" if ends else "")
    chosen = max(cells, key=lambda c: c.dev)
    choice = (f"By the Dice on dev one would choose {chosen.name}"
              + (f"; on val it differs from W = 0 by {cell(gain[chosen.name])}." if chosen.name in gain else
                 ", that is, no distillation."))
    scale = ("" if document["recipe"]["t_squared"] else " Without the factor T² the soft loss shrinks as T grows, so "
             "that a high T is also a small weight: T and W cannot be told apart completely.")
    return (f"# ISMRM 2024 #2094, Table 2\n\n{quick}`{document['command']}`, commit {document['commit']}"
            f"{' with changes' if document['changed_files'] else ''}, seeds {', '.join(map(str, seeds))}; "
            f"{document['machine']['cpu']}.\n\n" + results
            + f"\nDice on {document['data']}, split {document['split']}, mean over patients with 95 % bootstrap "
            "intervals over patients; students in FP32 without test-time augmentation, a patient's Dice averaged over "
            f"{len(seeds)} seed(s). Differences are paired by patient and seed; p is Wilcoxon's; neither is corrected "
            f"for the {len(gain)} comparisons, and the interval does not hold what another seed would change"
            + (" (one seed: that cannot be seen here)" if len(seeds) == 1 else "") + f". {choice}\n"
            + f"\n## Is a lower temperature better?\n\n**{claim['verdict']}.** {said}"
            + (markdown_table(["W", span, "p"], ends) if ends else "") + f"\n{scale.strip()}\n"
            + f"\n## How it was trained\n\nExpansion ratio {document['expansion']}. {training}\n"
            + noted(document["notes"])
            + "\nThe abstract's own grid and numbers are in a picture that could not be read: nothing is compared to "
            "them.\n")


def table(cells: list[Cell], teachers: dict[str, Scores], gain: dict[str, Difference], gap: dict[str, Difference],
          seed: int) -> str:
    structures = [s for s in cells[0].by_seed[0] if s != "mean"]

    def dice(values: dict[str, np.ndarray]) -> list[str]:
        return [cell(bootstrap_interval(values[s], seed=seed), 3) for s in (*structures, "mean")]

    lines = [[name, "", *dice(scores), "", "", "", ""] for name, scores in teachers.items()]
    for c in cells:
        means = [float(scores["mean"].mean()) for scores in c.by_seed]
        spread = f"{min(means):.3f} to {max(means):.3f}" if len(means) > 1 else "-"
        d = gain.get(c.name)
        lines.append(["-" if c.temperature is None else f"{c.temperature:g}", f"{c.weight:g}",
                      *dice({s: c.dice(s) for s in (*structures, "mean")}), spread, cell(d) if d else "",
                      p_value(d) if d else "", cell(gap[c.name])])
    return markdown_table(["T", "W", *structures, "mean Dice", "of single seeds", "minus W = 0", "p",
                           f"minus {next(iter(teachers))}"], lines)


def p_value(d: Difference) -> str:
    return "-" if d.p != d.p else f"{d.p:.2g}"


def plot(path: Path, cells: list[Cell], teachers: dict[str, Scores], seed: int) -> None:
    """Mean Dice against T, a line for each W; W = 0 and the teacher as lines across."""
    figure, axes = new_figure(7, 4.5)
    for shift, weight in enumerate(sorted({c.weight for c in cells[1:]})):
        row = sorted((c for c in cells[1:] if c.weight == weight), key=lambda c: c.temperature or 0)
        found = [bootstrap_interval(c.dice(), seed=seed) for c in row]
        ends = np.array([[i.value - i.low, i.high - i.value] for i in found]).T
        axes.errorbar([(c.temperature or 0) * 1.03**shift for c in row], [i.value for i in found],
                      np.maximum(np.nan_to_num(ends), 0), fmt="o-", capsize=3, label=f"W = {weight:g}")
    axes.axhline(float(cells[0].dice().mean()), color="black", linestyle=":", label="W = 0")
    for name, scores in teachers.items():
        axes.axhline(float(scores["mean"].mean()), color="grey", linestyle="--", label=name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="distillation temperature T", ylabel="mean Dice", title="mean and 95 % interval over patients")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    save(figure, path)


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--temperatures", type=float, nargs="+", help=f"default: {TEMPERATURES}")
    parser.add_argument("--weights", type=float, nargs="+", help=f"default: {WEIGHTS}; W = 0 is always there")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--expansion", type=int, default=8, help="the abstract's student has 8")
    parser.add_argument("--tta", nargs="+", choices=("mirror+rotate", "mirror", "none"), help="of the teacher's rows")
    given = parser.parse_args(arguments)
    quick = given.quick
    given.temperatures = sorted(set(given.temperatures or ((1.0, 2.0) if quick else TEMPERATURES)))
    given.weights = sorted(set(given.weights or ((0.5,) if quick else WEIGHTS)))
    given.seeds = list(dict.fromkeys(given.seeds))
    given.tta = given.tta or (("none",) if quick else ("mirror+rotate", "none"))
    recipe = settle(given)
    wanted = grid(recipe, given)
    runs = make(given.work, {n: r for found in wanted.values() for n, r in found.items()}, "--score",
                "--predict", *given.tta, *(["--quick"] if quick else []))
    cells = [read_cell(given.work, key, {n: runs[n] for n in found}) for key, found in wanted.items()]
    evaluations = evaluate_teacher(given, given.work / LABELS, next(iter(runs.values())).scheme)
    teachers = {name: {s or "mean": np.array(list(e.patient_dice(s).values())) for s in (None, *e.scheme.foreground)}
                for name, e in evaluations.items()}
    seed = given.seeds[0]
    gain = minus(cells[1:], cells[0].dice(), seed)
    gap = minus(cells, teachers[f"teacher {given.tta[0]}"]["mean"], seed)
    data = open_data(given.data, given.split_file)
    cases = {r.id for r in data.refs}
    training = schedule(recipe.changed({"kd_weight": max(given.weights)}), runs)
    document = {
        "schema": "edgeseg.ismrm_table2/1", "quick": quick, **provenance(), "seeds": given.seeds, "data": data.name,
        "split": given.split, "expansion": given.expansion, "recipe": shown(recipe), "machine": describe(),
        "notes": {name: unnamed(e.notes, cases) for name, e in evaluations.items()},
        "cells": [{"temperature": c.temperature, "weight": c.weight, "dev_dice": c.dev, "patient_dice": c.by_seed,
                   "dice": {s: bootstrap_interval(c.dice(s), seed=seed) for s in c.by_seed[0]},
                   "minus_w0": gain.get(c.name), "minus_teacher": gap[c.name]} for c in cells],
        "teacher": {name: {s: bootstrap_interval(v, seed=seed) for s, v in scores.items()}
                    for name, scores in teachers.items()},
        "lower_temperature_is_better": lower_is_better(cells, seed),
        "training": {n: {k: r.metrics.get(k) for k in ("dev", "seconds", "machine")} for n, r in runs.items()},
    }
    write_json(given.out / "ismrm_table2.json", document)
    results = table(cells, teachers, gain, gap, seed)
    write_text(given.out / "ismrm_table2.md", page(document, results, cells, gain, training))
    plot(given.out / "ismrm_table2.png", cells, teachers, seed)
    for name, d in gain.items():
        print(f"{name} minus W = 0: {cell(d)}")
    print(f"lower T is better: {document['lower_temperature_is_better']['verdict']}")
    print(f"wrote    {given.out / 'ismrm_table2.md'}")


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"ismrm_table2: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
