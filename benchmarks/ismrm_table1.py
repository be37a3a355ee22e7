"""ISMRM 2024 #2094, Table 1: speed and Dice of the teacher and of a student of each expansion ratio.

    python benchmarks/ismrm_table1.py --data acdc:DIR --teacher nnunet:FOLDER --recipe benchmarks/recipes/X.toml \
        --work runs/tables --out benchmarks/results

Every student is trained by the same recipe but for its expansion ratio, exported, and scored on split `val` (which no
choice has looked at) in FP32 and INT8; all are timed in one interleaved run. The patient is the unit of every interval.
Writes ismrm_table1.json, .md and .png. What --work holds already is not made again.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Target, cell, evaluate_teacher, markdown_table, noted, provenance
from students import LABELS, make, parser_of, schedule, settle, shown, unnamed

from edgeseg.container import Bundle, open_bundle
from edgeseg.distill.against import torch_job
from edgeseg.distill.run import Run
from edgeseg.errors import EdgesegError
from edgeseg.measure.bench import Bench, allowed_threads, golden_frames, measure
from edgeseg.measure.document import write_json, write_text
from edgeseg.measure.evaluate import Evaluation, evaluate_bundle
from edgeseg.measure.rows import Row, RowSpec
from edgeseg.measure.statistics import Difference, Interval, paired_difference
from edgeseg.measure.turns import Job, write_frames
from edgeseg.readers import open_data
from edgeseg.report.figures import Point, dice_versus_cost

EXPANSIONS = (1, 2, 4, 6, 8)
TARGET = 10.0
"""Images per second: the abstract's bar for real time, 100 ms an image."""
TEACHER, TEACHER_TORCH = "teacher OpenVINO FP32", "teacher PyTorch FP32"


def student(expansion: int, precision: str) -> str:
    return f"student t={expansion} {precision.upper()}"


def evaluate_all(given: argparse.Namespace, bundles: dict[int, Bundle]) -> dict[str, Evaluation]:
    """`teacher mirror`, `student t=4 INT8` ... -> its evaluation on val."""
    found = evaluate_teacher(given, given.work / LABELS, next(iter(bundles.values())).scheme)
    for expansion, bundle in bundles.items():
        for precision in ("fp32", "int8"):
            name = student(expansion, precision)
            print(f"evaluate {name}", flush=True)
            found[name] = evaluate_bundle(bundle.path, given.data, given.split, given.split_file, precision)
    return found


def time_all(given: argparse.Namespace, bundles: dict[int, Bundle], run: Run) -> Bench:
    """Every student in FP32 and INT8 and the teacher's network, in turns, on the bundles' phantom frames."""
    print("bench    all of them in turns", flush=True)
    threads, bundle = allowed_threads(given.threads), next(iter(bundles.values()))  # one grid: the teacher's
    with tempfile.TemporaryDirectory(prefix="edgeseg-table1-") as scratch:
        frames, spacings = golden_frames(bundle.file("golden.npz"))
        canvases = [bundle.preprocessing.to_canvas(f[None], s)[0] for f, s in zip(frames, spacings, strict=True)]
        stored = str(write_frames(Path(scratch) / "frames.npz", frames, spacings, canvases))
        specs = []
        if (run.folder / "teacher.onnx").exists():  # a 3D teacher has none
            torch = torch_job("torch-teacher", Path(given.teacher.partition(":")[2]), threads)
            specs = [RowSpec(TEACHER, "teacher", Job("network", str(run.folder / "teacher.onnx"), stored,
                                                     threads=threads)),
                     RowSpec(TEACHER_TORCH, "teacher", Job(**{**torch.__dict__, "frames": stored}))]
        teachers = tuple(s.name for s in specs)
        specs += [RowSpec(student(expansion, precision), "student",
                          Job("bundle", str(b.path), stored, "openvino", precision, threads), teachers)
                  for expansion, b in bundles.items() for precision in ("fp32", "int8")]
        bench = measure(specs, given.seconds, TARGET, given.seed, together=given.quick)
    bench.frames, bench.about = len(frames), {"threads": threads, "seed": given.seed}
    return bench


def targets(bench: Bench) -> list[Target]:
    """A raw frame to its label map, one at a time: the median of each student."""
    return [Target(f"{r.name}, images/s on this CPU", r.images_per_second, ">=", TARGET,
                   n=(r.end_to_end or r.network).n) for r in bench.rows if r.role == "student"]


def behind(evaluations: dict[str, Evaluation], seed: int) -> dict[str, Difference]:
    """Mean Dice of each student minus that of the first teacher row, paired by patient."""
    teacher, *others = evaluations
    best = evaluations[teacher].patient_dice()
    found = {}
    for name in others:
        if name.startswith("student"):
            own = evaluations[name].patient_dice()
            both = sorted(own.keys() & best.keys())
            found[name] = paired_difference([own[p] for p in both], [best[p] for p in both], seed=seed)
    return found


def table(evaluations: dict[str, Evaluation], gaps: dict[str, Difference], bench: Bench, costs: dict[str, Any],
          seed: int) -> str:
    rows = {r.name: r for r in bench.rows}
    structures = next(iter(evaluations.values())).scheme.foreground
    lines = []
    for name, evaluation in evaluations.items():
        dice = evaluation.summary(seed)["structures"]
        lines.append([name, *size(costs[name]), *speed(name, rows, costs),
                      *(cell(dice[s]["all"]["dice"], 3) for s in (*structures, "mean")),
                      cell(gaps[name], 3) if name in gaps else ""])
    return markdown_table(["network", "parameters, M", "MMAC", "network, ms", "frame to labels, ms", "images/s",
                           "times as fast as the teacher's network", *structures, "mean Dice",
                           f"minus {next(iter(evaluations))}"], lines)


def size(cost: dict[str, Any]) -> tuple[str, str]:
    return f"{cost['parameters'] / 1e6:.3f}", f"{cost['macs'] / 1e6:.0f}" if "macs" in cost else "-"


def speed(name: str, rows: dict[str, Row], costs: dict[str, Any]) -> tuple[str, str, str, str]:
    """ms of the network, ms of a frame, images per second, ratio to the teacher's network in OpenVINO."""
    if name.startswith("teacher"):
        if TEACHER not in rows or (ms := rows[TEACHER].network.p50_ms) is None:
            return "-", "-", "-", "-"
        count = passes(name, costs)
        return f"{count} x {ms:.2f}", "-", f"{1000 / (count * ms):.1f}", "-"
    row = rows[name]
    whole = row.end_to_end or row.network
    ratio: Interval | None = row.speed_up.get(TEACHER)
    return (number(row.network.p50_ms), number(whole.p50_ms), number(row.images_per_second, 0),
            cell(ratio, 1) if ratio else "-")


def passes(teacher: str, costs: dict[str, Any]) -> int:
    """Of the network for one window: folds x mirrorings x rotations."""
    return costs[teacher]["passes"][teacher.removeprefix("teacher ")]


def number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def page(document: dict[str, Any], results: str, numbers: list[Target], training: str, bench: Bench) -> str:
    quick = "**A quick run with tiny settings: these numbers mean nothing.**\n\n" if document["quick"] else ""
    machine, rows = document["machine"], {r.name: r for r in bench.rows}
    torch = (f" In eager PyTorch one pass of the teacher's network takes {number(rows[TEACHER_TORCH].network.p50_ms)} "
             "ms." if TEACHER_TORCH in rows else "")
    return (f"# ISMRM 2024 #2094, Table 1\n\n{quick}`{document['command']}`, commit {document['commit']}"
            f"{' with changes' if document['changed_files'] else ''}, seed {document['seed']}; {machine['cpu']}, "
            f"{machine['cpus_affinity']} CPUs, {bench.about['threads']} thread(s) a row"
            + (", **busy while timing: do not quote the times**" if bench.load["busy"] else "") + ".\n\n" + results
            + f"\nDice on {document['data']}, split {document['split']}: mean over patients with 95 % bootstrap "
            "intervals over patients, differences paired by patient; no student has test-time augmentation. Times are "
            "medians of single images on the bundles' phantom frames, all rows in turns in one run; students and the "
            "teacher's network in OpenVINO. A teacher row counts passes of its network on one window, and nothing "
            "else: nnU-Net cuts larger images into several windows and resamples, so its rate is an upper limit. "
            "(mirror+rotate: the abstract's test-time augmentation; mirror: nnU-Net's own.)" + torch + "\n\n"
            + markdown_table(["number to reach", "measured", "95 %", "limit", ""], [t.line() for t in numbers])
            + f"\n{training}\n" + noted(document["notes"])
            + "\nThe abstract's own numbers are in a picture that could not be read: nothing is compared to them.\n")


def plot(path: Path, evaluations: dict[str, Evaluation], bench: Bench, costs: dict[str, Any], seed: int) -> None:
    """Dice against the latency of the network (the teacher's: all passes of one window) and against parameters."""
    ms = {r.name: r.network.p50_ms for r in bench.rows}
    if (one := ms.get(TEACHER)) is not None:
        ms |= {name: passes(name, costs) * one for name in evaluations if name.startswith("teacher")}
    points = []
    for name, evaluation in evaluations.items():
        if ms.get(name) is not None:
            dice = evaluation.summary(seed)["structures"]["mean"]["all"]["dice"]
            points.append(Point(name, ms[name], dice.value, dice.low, dice.high, costs[name]["parameters"]))
    dice_versus_cost(path, points, "mean Dice and 95 % interval over patients")


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--expansions", type=int, nargs="+", help=f"default: {EXPANSIONS}; 4 with --quick")
    parser.add_argument("--tta", nargs="+", choices=("mirror+rotate", "mirror", "none"), help="of the teacher's rows")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=10.0, help="counted time of each row of the bench")
    given = parser.parse_args(arguments)
    given.expansions = given.expansions or ((4,) if given.quick else EXPANSIONS)
    given.tta = given.tta or (("mirror", "none") if given.quick else ("mirror+rotate", "mirror", "none"))
    if given.quick:
        given.seconds, given.threads = 0.2, 1
    allowed_threads(given.threads)  # better now than after the trainings
    recipe = settle(given)
    given.seed = recipe.seed
    names = {t: f"expansion-{t}" for t in given.expansions}
    runs = make(given.work, {n: recipe.changed({"expansion": t}) for t, n in names.items()}, "--export",
                "--predict", *given.tta, *(["--quick"] if given.quick else []))
    bundles = {t: open_bundle(given.work / f"{n}.edgeseg") for t, n in names.items()}
    evaluations = evaluate_all(given, bundles)
    bench = time_all(given, bundles, runs[names[given.expansions[0]]])
    found = {t: json.loads((given.work / n / "cost.json").read_text()) for t, n in names.items()}
    costs = {f"teacher {tta}": found[given.expansions[0]]["teacher"] for tta in given.tta}
    costs |= {student(t, p): c["student"] for t, c in found.items() for p in ("fp32", "int8")}
    data, numbers, gaps = open_data(given.data, given.split_file), targets(bench), behind(evaluations, given.seed)
    results = table(evaluations, gaps, bench, costs, given.seed)
    cases, training = {r.id for r in data.refs}, (f"W = {recipe.kd_weight:g}, T = {recipe.temperature:g}. "
                                                  + schedule(recipe, runs))
    document = {
        "schema": "edgeseg.ismrm_table1/1", "quick": given.quick, **provenance(), "seed": given.seed,
        "data": data.name, "split": given.split, "recipe": shown(recipe), "machine": bench.machine, "load": bench.load,
        "targets": [t.document() for t in numbers], "costs": costs,
        "notes": {name: unnamed(e.notes, cases) for name, e in evaluations.items()},
        "training": {n: {k: r.metrics.get(k) for k in ("dev", "seconds", "machine")} for n, r in runs.items()},
        "evaluations": {name: e.summary(given.seed) for name, e in evaluations.items()},
        "patient_dice": {name: list(e.patient_dice().values()) for name, e in evaluations.items()},
        "minus_teacher": gaps, "bench": bench.document(),
    }
    write_json(given.out / "ismrm_table1.json", document)
    write_text(given.out / "ismrm_table1.md", page(document, results, numbers, training, bench))
    plot(given.out / "ismrm_table1.png", evaluations, bench, costs, given.seed)
    for t in numbers:
        print("  ".join(part for part in t.line() if part))
    print(f"wrote    {given.out / 'ismrm_table1.md'}")


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"ismrm_table1: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
