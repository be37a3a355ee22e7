"""Runs compared on the same patients: arms, what each scores, how each differs from the first one, as a page.

Runs that differ by their seed alone are one arm. A patient's value is the mean over the arm's seeds, and the patient is
the unit of every interval and test; what the seeds change is shown beside it.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.scores import Scores
from edgeseg.errors import EdgesegError
from edgeseg.measure.overlap import macro, micro
from edgeseg.measure.significance import MARGIN, compare_paired, corrected, crossed_interval
from edgeseg.measure.statistics import bootstrap_interval
from edgeseg.readers import Dataset
from edgeseg.report.figures import save

SCHEMA = "edgeseg.compare/1"
SEED = r"-s\d+$"
"""End of a run's name."""
METRICS = ("dice", "iou", "recall", "precision")
Document = Mapping[str, Any]


@dataclass(frozen=True)
class Arm:
    """Runs of one recipe. `scores`: of each run, on the same cases."""

    name: str
    runs: tuple[Run, ...]
    scores: tuple[Scores, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def dice(self) -> np.ndarray:
        """float64 [seeds, patients, structures]."""
        return np.stack([s.patient_dice for s in self.scores])


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Group by recipe, in the order in which each first appears; a run that is named twice counts once.

    Raises:
        EdgesegError: two runs of one recipe and seed, or of different structures.
    """
    groups: dict[str, list[Run]] = {}
    for run in {run.folder.resolve(): run for run in runs}.values():
        if run.scheme.foreground != runs[0].scheme.foreground:
            raise EdgesegError(f"{run.folder}: segments {', '.join(run.scheme.foreground)}, {runs[0].name} "
                               f"{', '.join(runs[0].scheme.foreground)}: compare runs of one task")
        group = groups.setdefault(json.dumps(asdict(seedless(run))), [])
        if twin := next((r for r in group if r.seed == run.seed), None):
            raise EdgesegError(f"{run.folder}: the same recipe and seed as {twin.folder}: leave one of them out")
        group.append(run)
    names = [common_name(group) for group in groups.values()]
    return [Arm(name if names.count(name) == 1 else f"{group[0].folder.parent.name}/{name}",
                tuple(sorted(group, key=lambda r: r.seed)))
            for name, group in zip(names, groups.values(), strict=True)]


def seedless(run: Run) -> Recipe:
    """The run's recipe with seed 0; a phantom's teacher, which every run trains in its own folder, has no path, and the
    run that it began with no seed in its name."""
    path = run.recipe["teacher"].partition(":")[2]
    own = path and Path(path).resolve().is_relative_to(run.folder.resolve())
    began = re.sub(SEED, "", run.recipe.get("pretrained", ""))
    return Recipe().changed(run.recipe | {"seed": 0, "pretrained": began} | ({"teacher": "phantom"} if own else {}))


def common_name(runs: Sequence[Run]) -> str:
    """`encoder` for encoder-s0, encoder-s1, ...; else the name of the first run."""
    stems = {re.sub(SEED, "", run.name) for run in runs}
    return stems.pop() if len(stems) == 1 else runs[0].name


def compare(arms: Sequence[Arm], data: Dataset, split: str, margin: float = MARGIN, seed: int = 0) -> dict[str, Any]:
    """All that the page says, as one document. No patient is named in it: their values are in one order for all arms.
    """
    base = arms[0]
    values = [arm.dice.mean(axis=2) for arm in arms]  # [seeds, patients]
    family = corrected([compare_paired(v.mean(axis=0), values[0].mean(axis=0), margin, seed) for v in values[1:]])
    rows = []
    for arm, found, against in zip(arms, values, [None, *family], strict=True):
        row = {"name": arm.name, "runs": [r.name for r in arm.runs], "seeds": arm.seeds,
               "dice": bootstrap_interval(found.mean(axis=0), seed=seed),
               "structures": {name: bootstrap_interval(arm.dice.mean(axis=0)[:, k], seed=seed)
                              for k, name in enumerate(base.scores[0].structures)},
               "micro": averaged([micro(s.counts) for s in arm.scores]),
               "macro": averaged([macro(s.counts) for s in arm.scores]),
               "dice_by_seed": found.mean(axis=1), "patient_dice": found, "against": None}
        if against:
            both = [s for s in arm.seeds if s in base.seeds]
            gap = np.array([found[arm.seeds.index(s)] - values[0][base.seeds.index(s)] for s in both])
            row["against"] = vars(against) | {
                "non_inferior": against.non_inferior, "common_seeds": both,
                "difference_by_seed": gap.mean(axis=1) if both else [],
                "over_seeds_too": crossed_interval(gap, seed=seed) if both else None}
        rows.append(row)
    return {"schema": SCHEMA, "data": data.name, "split": split, "licence": data.licence, "margin": margin,
            "seed": seed, "cases": len(data), "patients": len(base.scores[0].patients),
            "structures": base.scores[0].structures, "baseline": base.name, "arms": rows,
            "notes": list(remarks(arms, data, split))}


def averaged(found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Mean over seeds and structures."""
    return {name: float(np.mean([one[name] for one in found])) for name in METRICS}


def remarks(arms: Sequence[Arm], data: Dataset, split: str) -> list[str]:
    """What a reader has to know before believing the numbers."""
    lines, scored = [], set(data.patients())
    if split == "dev" and not all(run.recipe.get("final") for arm in arms for run in arm.runs):
        lines.append("each run kept the epoch that was best on dev: a choice made here is to be reported on val")
    for arm in arms:
        for run in arm.runs:
            seen = run.trained_on() & scored
            if seen and run.data_names() & set(data.name.split("+")):
                lines.append(f"CAUTION: {run.name} was trained on {len(seen)} of these patients")
        if arm.seeds != arms[0].seeds:
            lines.append(f"{arm.name} has seeds {', '.join(map(str, arm.seeds))}, {arms[0].name} "
                         f"{', '.join(map(str, arms[0].seeds))}")
    return lines


def score_table(document: Document) -> list[tuple[str, ...]]:
    """Header and a line for each arm: what it scores."""
    structures = document["structures"] if len(document["structures"]) > 1 else []
    header = ("arm", "seeds", "mean Dice [95 %]", "of single seeds", *structures,
              *(f"{kind} {metric}" for kind in ("micro", "macro") for metric in ("Dice", "IoU", "recall", "precision")))
    return [header, *((row["name"], str(len(row["seeds"])), interval(row["dice"]), spread(row["dice_by_seed"], 3),
                       *(f"{row['structures'][s].value:.3f}" for s in structures),
                       *(f"{row[kind][m]:.3f}" for kind in ("micro", "macro") for m in METRICS))
                      for row in document["arms"])]


def difference_table(document: Document) -> list[tuple[str, ...]]:
    """Header and a line for each arm but the baseline: how it differs."""
    header = ("arm", f"minus {document['baseline']} [95 %]", "of single seeds", "over seeds too", "Wilcoxon p (Holm)",
              "permutation p (Holm)", "rank-biserial", "d_z", f"not worse by {document['margin']:g}")
    lines: list[tuple[str, ...]] = [header]
    for row in document["arms"][1:]:
        a = row["against"]
        verdict = {True: "shown", False: "not shown", None: "-"}[a["non_inferior"]]
        too = a["over_seeds_too"]
        lines.append((row["name"], interval(a["difference"], "+"), spread(a["difference_by_seed"], 4, "+"),
                      "-" if too is None or too.low != too.low else f"[{too.low:+.4f}, {too.high:+.4f}]",
                      f"{p_value(a['difference'].p)} ({p_value(a['wilcoxon_holm'])})",
                      f"{p_value(a['permutation_p'])} ({p_value(a['permutation_holm'])})",
                      decimal(a["rank_biserial"]), decimal(a["d_z"]),
                      verdict if a["non_inferior"] is None else f"{verdict} (bound {a['bound']:+.4f})"))
    return lines


def interval(found: Any, sign: str = "") -> str:
    if found.value != found.value:
        return "-"
    text = f"{found.value:{sign}.4f}"
    return text if found.low != found.low else f"{text} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def spread(values: Sequence[float], digits: int, sign: str = "") -> str:
    if len(values) < 2:
        return "-"
    return f"{min(values):{sign}.{digits}f} to {max(values):{sign}.{digits}f}"


def p_value(p: float) -> str:
    return "-" if p != p else f"{p:.2g}" if p >= 0.001 else f"{p:.1e}"


def decimal(value: float) -> str:
    return "-" if value != value else f"{value:+.2f}"


def how(document: Document) -> str:
    """How the tables are to be read, as sentences."""
    tests = len(document["arms"]) - 1
    return (f"Dice on {document['data']}, split {document['split']}: {document['patients']} patients, "
            f"{document['cases']} cases; students in FP32 without test-time augmentation. A patient's Dice is the mean "
            "over structures, cases and the arm's seeds; intervals are 95 % bootstrap intervals over patients. Micro "
            "pools the pixels of all cases, macro averages the cases; of several structures the mean. Differences are "
            "paired by patient; `over seeds too` draws seeds as well as patients (by the seeds that both arms have). "
            f"Wilcoxon's signed ranks and sign-flip permutation of the mean, two-sided, each corrected by Holm for the "
            f"{tests} comparison{'s' if tests != 1 else ''}; effect sizes are the matched-pairs rank-biserial "
            f"correlation and Cohen's d_z. Not worse by {document['margin']:g}: the one-sided 97.5 % bound (Student's "
            f"t) of the difference lies above -{document['margin']:g}.")


def markdown(document: Document, title: str = "# Comparison") -> str:
    """The page."""
    parts = [title, how(document), table(score_table(document))]
    if len(document["arms"]) > 1:
        parts.append(table(difference_table(document)))
    parts += [f"**{note}**" for note in document["notes"]]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |"
                     for line in (rows[0], ["---"] * len(rows[0]), *rows[1:])) + "\n"


def picture(path: Path, document: Document) -> Path:
    """Left: mean Dice of each arm with its interval, a dot a seed. Right: the difference to the baseline with its
    interval, a dot a patient, and the margin as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = document["arms"]
    figure = Figure(figsize=(11, 1.5 + 0.35 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    for y, row in enumerate(rows):
        bar(left, y, row["dice"])
        left.plot(row["dice_by_seed"], [y] * len(row["seeds"]), ".", color="black", alpha=0.5, markersize=4)
        if row["against"]:
            gap = np.mean(row["patient_dice"], axis=0) - np.mean(rows[0]["patient_dice"], axis=0)
            right.plot(gap, [y] * len(gap), ".", color="grey", alpha=0.4, markersize=3)
            bar(right, y, row["against"]["difference"])
    right.axvline(0, color="black", linewidth=1)
    right.axvline(-document["margin"], color="black", linestyle="--", linewidth=1)
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.invert_yaxis()
    left.set(xlabel=f"mean Dice, split {document['split']} (dots: seeds)")
    right.set(xlabel=f"minus {document['baseline']} (dots: patients; dashed: -{document['margin']:g})")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return save(figure, path)


def bar(axes: Any, y: int, found: Any) -> None:
    ends = np.maximum(np.nan_to_num([[found.value - found.low], [found.high - found.value]]), 0)
    axes.errorbar([found.value], [y], xerr=ends, fmt="o", capsize=3, color="tab:blue")
