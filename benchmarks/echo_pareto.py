"""Echo without data: from one hospital's teacher to students of every size that saw none of its clips, in one command.

    python benchmarks/echo_pareto.py --work runs/echo --out benchmarks/results [--teacher deeplabv3:CHECKPOINT]

The published roles on the echo phantom: the teacher is trained on `other` clips (EchoNet-Dynamic's part), each student
sees only what the teacher says of `train` clips (EchoNet-Synthetic's part; their labels are thrown away, and its best
epoch is chosen by the teacher's masks too), and both are tested on `other` clips that neither has seen. The "real data"
arm distils from `other` clips instead. Two trainings at a time, one thread each: hours, with the defaults.
Killed, it goes on where it was. Writes echo_pareto.json, .md and .png. The clip is the unit of every interval.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import echo_common as echo
from common import Target, cell, markdown_table, target
from echo_crew import TEACHER, Crew, Step, distillation, prediction, targets, train_teacher
from students import shown

from edgeseg.container import open_bundle
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.measure.bench import Bench, allowed_threads, measure
from edgeseg.measure.judge_score import rank_agreement
from edgeseg.measure.rows import RowSpec
from edgeseg.measure.statistics import Difference, bootstrap_interval, paired_difference
from edgeseg.measure.turns import Job, write_frames
from edgeseg.readers import open_data
from edgeseg.report.figures import save
from edgeseg.runtime.backends import model_file

SIZES = ("s41", "31", "41", "11", "21", "s31", "s21", "s11")
"""As `echo_common.spec_of` reads them."""
JUDGE_CLIPS = ("phantom:echo?n=150&seed=9", "phantom:echo?n=150&seed=9&domain=other")
"""Other hearts than those of the teacher, the students and the test."""
REAL = "other-"
"""Before the name of a student of the "real data" arm."""
FRAMES = 32
"""Consecutive frames that latency is measured on."""


def recipes_of(given: argparse.Namespace, base: Recipe, crew: Crew) -> dict[str, Recipe]:
    """Name -> recipe of every student; clips, teacher and targets are there afterwards."""
    arms = {"": ("train", given.train, given.sizes), REAL: ("other", given.other_train, given.real)}
    recipes, specs = {}, {}
    for prefix, (arm, source, sizes) in arms.items():
        specs[arm] = echo.without_labels(source, given.work / "clips" / arm)
        recipes |= {prefix + size: base.changed({"data": (specs[arm],), "spec": echo.spec_of(size),
                                                 "teacher": f"targets:{given.work / 'targets' / arm}"})
                    for size in sizes}
    for name, recipe in recipes.items():
        distillation(given, name, recipe)  # a run begun otherwise is better found now
    train_teacher(given, crew)
    crew.run(targets(given, arm, given.teacher, spec) for arm, spec in specs.items())
    return recipes


def export(given: argparse.Namespace, name: str) -> Step | None:
    """Unlabelled clips admit nothing: both precisions are scored by echo_speed.py on labelled ones."""
    out = given.work / f"{name}.edgeseg"
    if out.exists() and out.stat().st_mtime >= (given.work / name / "run.json").stat().st_mtime:
        return None
    small = ("--calibration-frames", "8", "--seconds", "0.05") if given.quick else ("--seconds", "0.5")
    return Step(f"export-{name}", ("export", given.work / name, "--out", out, "--force", *small))


def train_judge(given: argparse.Namespace, crew: Crew) -> None:
    """`given.judge` names one afterwards."""
    if given.judge is None:
        given.judge = given.work / "judge"
        if not given.judge.exists():
            crew.run([Step("train-judge", ("train-judge", given.judge, *given.judge_clips))])


def latencies(given: argparse.Namespace, names: list[str]) -> Bench:
    """The INT8 step of each bundle in OpenVINO, all in turns, on consecutive frames of a test clip."""
    print("bench    the INT8 steps in turns", flush=True)
    case, threads = open_data(given.other).select("val").refs[0].load(), allowed_threads(given.threads)
    frames = list(case.frames[:FRAMES])
    with tempfile.TemporaryDirectory(prefix="edgeseg-echo-") as scratch:
        specs = []
        for name in names:
            bundle = open_bundle(given.work / f"{name}.edgeseg")
            canvases = [bundle.preprocessing.to_canvas(f[None], case.spacing)[0] for f in frames]
            stored = write_frames(Path(scratch) / f"{name}.npz", frames, [case.spacing] * len(frames), canvases)
            path = bundle.file(model_file("openvino", "int8"))
            specs.append(RowSpec(name, "student", Job("network", str(path), str(stored), "openvino", "int8", threads)))
        bench = measure(specs, given.seconds, 50.0, together=given.quick)
    bench.frames, bench.about = len(frames), {"threads": threads}
    return bench


def over_the_line(scores: dict[str, Any], costs: dict[str, Any], name: str, sizes: list[str]) -> Difference | None:
    """Dice of a member minus that of the published family's Pareto line at the same MACs, paired by clip."""
    line: list[str] = []
    for size in sorted(sizes, key=lambda s: costs[s]["macs"]):
        if not line or np.mean(scores[size]["Dice"]) > np.mean(scores[line[-1]]["Dice"]):
            line.append(size)
    macs, at = [costs[s]["macs"] for s in line], costs[name]["macs"]
    if not line or at < macs[0]:
        return None
    weights = [np.interp(at, macs, [float(s == other) for other in line]) for s in line]
    published = sum(w * np.asarray(scores[s]["Dice"]) for w, s in zip(weights, line, strict=True))
    return paired_difference(scores[name]["Dice"], list(published))


def targets_of(gaps: dict[str, Difference], over: dict[str, Difference | None], agreement: Any) -> list[Target]:
    rows = [target(f"Dice of ({s[0]},{s[1]}) - teacher", gaps[s], ">=", -0.02) if s in gaps
            else Target(f"Dice of ({s[0]},{s[1]}) - teacher", None, ">=", -0.02) for s in ("31", "41")]
    rows += [target(f"Dice of {name} - published family at equal MACs", gap, ">=", 0.0)
             for name, gap in over.items() if gap is not None]
    if agreement is not None:
        rows.append(target("rank agreement of judge and Dice (Spearman)", agreement, ">=", 0.8))
    return rows


def table(document: dict[str, Any], gaps: dict[str, Difference], bench: Bench | None) -> str:
    ms = {r.name: r.network.p50_ms for r in bench.rows} if bench else {}
    lines = []
    for name, values in document["scores"].items():
        cost, judged = document["costs"][name], document["judge"] or {"scores": {}}
        lines.append([
            name, f"{cost['parameters'] / 1e6:.3f}", f"{cost['macs'] / 1e9:.3f}",
            f"{ms[name]:.2f}" if ms.get(name) else "-",
            *(cell(bootstrap_interval(values[k]), 3) for k in ("Dice", "IoU", "Dice at 80/255", "IoU at 80/255")),
            f"{np.mean(judged['scores'][name]):.3f}" if name in judged["scores"] else "-",
            cell(gaps[name], 3) if name in gaps else ""])
    return markdown_table(["network", "parameters, M", "GMAC a frame", "INT8 step, ms", "Dice", "IoU", "Dice at 80/255",
                           "IoU at 80/255", "judge", "Dice - teacher"], lines)


def plot(path: Path, document: dict[str, Any], bench: Bench | None) -> None:
    """Dice against MACs and against the latency of the INT8 step; plain axes. Dashed: the teacher."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("GMAC a frame", {n: c["macs"] / 1e9 for n, c in document["costs"].items()})]
    if bench:
        panels.append(("INT8 step in OpenVINO, ms", {r.name: r.network.p50_ms for r in bench.rows}))
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (label, costs) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for k, name in enumerate(sorted(document["scores"], key=lambda n: costs.get(n, 0))):
            dice = bootstrap_interval(document["scores"][name]["Dice"])
            if name == TEACHER:
                axes.axhline(dice.value, color="grey", linestyle="--", label=TEACHER)
            elif costs.get(name):
                marker = "s" if name.startswith(REAL) else "^" if name.startswith("s") else "o"
                error = None if np.isnan(dice.low) else [[dice.value - dice.low], [dice.high - dice.value]]
                axes.errorbar(costs[name], dice.value, error, fmt=marker, capsize=3)
                axes.annotate(name, (costs[name], dice.value), xytext=(4, (4, -11)[k % 2]),  # neighbours lie close
                              textcoords="offset points", fontsize=8)
        axes.set(xlabel=label, ylabel="Dice, mean over clips", xlim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = echo.parser_of(__doc__)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="default: %(default)s")
    parser.add_argument("--real", nargs="*", default=("31",), help="sizes of the 'real data' arm")
    parser.add_argument("--judge", help="open_clip model that scores masks without labels: a folder, hf-hub:NAME, or "
                                        "none (default: a small one, trained on --judge-clips)")
    parser.add_argument("--judge-clips", nargs="+", default=JUDGE_CLIPS, help="default: %(default)s")
    parser.add_argument("--no-latency", action="store_true", help="leave export and timing out")
    parser.add_argument("--threads", type=int, help="of the timed step")
    parser.add_argument("--seconds", type=float, default=10.0, help="counted time of each timed step")
    given = parser.parse_args(arguments)
    if given.quick:
        given.seconds, given.threads, given.judge = 0.2, 1, given.judge or "none"
    allowed_threads(given.threads)
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    base = echo.settle(given)
    with Crew(given.work, given.jobs) as crew:
        recipes = recipes_of(given, base, crew)
        names = list(recipes)
        crew.run(distillation(given, name, recipe) for name, recipe in recipes.items())
        if not given.no_latency:
            crew.run(export(given, name) for name in names)
        networks = {TEACHER: given.teacher} | {name: given.work / name for name in names}
        crew.run(prediction(given, n, network, given.other, "val") for n, network in networks.items())
        judged, judging = given.work / "judge.json", given.judge != "none"
        if judging:
            train_judge(given, crew)
            crew.run([Step("judge", ("judge", given.judge, given.other, "val", judged,
                                     *(given.work / "predictions" / n for n in networks)))])
    runs = {name: Run.open(given.work / name) for name in names}
    test = open_data(given.other).select("val")
    scores = echo.score(echo.predicted(given, networks), test)
    costs = {n: json.loads((given.work / "predictions" / n / "cost.json").read_text()) for n in networks}
    gaps = {n: paired_difference(scores[n]["Dice"], scores[TEACHER]["Dice"]) for n in names}
    published = [s for s in given.sizes if not s.startswith("s")]
    over = {s: over_the_line(scores, costs, s, published) for s in given.sizes if s.startswith("s")}
    judge = json.loads(judged.read_text()) if judging else None
    members = [n for n in names if len(names) > 2]
    agreement = rank_agreement(*(np.array([values[n] for n in members]) for values in (
        judge["scores"], {n: scores[n]["Dice"] for n in names}))) if judge and members else None
    bench = None if given.no_latency else latencies(given, names)
    rows = targets_of(gaps, over, agreement)
    document = {
        **echo.started(given, "echo_pareto"), "recipe": shown(base), "test": f"{test.name}, split val",
        "clips": len(test), "costs": costs, "scores": scores,
        "minus_teacher": gaps, "over_published_line": over, "judge": judge, "judge_agreement": agreement,
        "training": {n: {k: r.metrics.get(k) for k in ("dev", "seconds", "machine")} for n, r in runs.items()},
        "bench": bench.document() if bench else None,
    }
    busy = " Busy while timing: do not quote the times." if bench and bench.load["busy"] else ""
    text = (f"{table(document, gaps, bench)}\nPhantom figures: means over {len(test)} unseen clips of {test.name} (all "
            "frames of a clip first), 95 % bootstrap intervals over clips, differences paired by clip. Students saw "
            f"the teacher's soft masks of `train` clips and no label; those whose names begin with `{REAL}` saw "
            f"its masks of `other` clips. Masks are the stored probabilities above 1/2, or above the published 80/255."
            f"{busy}")
    echo.finish(given, "echo_pareto", "Echo: sizes of student", document, [text], rows)
    plot(given.out / "echo_pareto.png", document, bench)


if __name__ == "__main__":
    echo.run_main(main, "echo_pareto")
