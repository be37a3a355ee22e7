"""The main job's numbers: Dice of distilled and undistilled students and of their teacher, speed, start-up.

    python benchmarks/main_job.py --bundle kd.edgeseg --baseline w0.edgeseg --data acdc:DIR \
        --teacher nnunet:FOLDER --run runs/kd --out benchmarks/results

Writes main_job.json, main_job.md and main_job.png. All figures are on split `val`, which no choice has looked at.
The patient is the unit of every interval. `--quick` uses tiny settings: it proves that the script runs, nothing else.
"""

import argparse
import json
import statistics as plain_statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import (
    Target,
    cell,
    evaluate_teacher,
    how_trained,
    labels_folder,
    markdown_table,
    minutes,
    noted,
    provenance,
    reading,
    run_step,
    target,
)

from edgeseg.container import open_bundle
from edgeseg.distill.against import against_rows
from edgeseg.errors import EdgesegError
from edgeseg.measure.bench import Bench, RowSpec, bench_bundle
from edgeseg.measure.document import write_json, write_text
from edgeseg.measure.evaluate import Evaluation, evaluate_bundle
from edgeseg.measure.statistics import Difference, bootstrap_interval, paired_difference
from edgeseg.measure.turns import Job
from edgeseg.readers import open_data
from edgeseg.report.bench import FullBench
from edgeseg.report.bench_text import HEADER, remarks, table_rows
from edgeseg.report.figures import Point, dice_versus_cost

FULL_WIDTH = (32, 64, 128, 256, 512, 512)
"""nnU-Net's default features of a 2D network of six stages: 20.6 M parameters."""
FULL_ROW = "full-width nnU-Net OpenVINO FP32"
DISTILLATION = ("kd_weight", "temperature", "teacher", "targets", "tta", "own_layers")
"""All that the recipes of the distilled and the undistilled student may differ in."""
MAIN = "student OpenVINO INT8"
COMBINATIONS = (("openvino", "int8"), ("openvino", "fp32"), ("onnxruntime", "int8"), ("onnxruntime", "fp32"))
PAIRS = (("distilled openvino int8", "undistilled openvino int8"),
         ("distilled openvino fp32", "undistilled openvino fp32"),
         ("distilled openvino int8", "distilled openvino fp32"),
         ("distilled onnxruntime int8", "distilled onnxruntime fp32"),
         ("distilled openvino int8", "teacher mirror"))


def evaluate_students(given: argparse.Namespace) -> dict[str, Evaluation]:
    """`distilled openvino int8` ... -> its evaluation."""
    found = {}
    for role, bundle, backends in (("distilled", given.bundle, ("openvino", "onnxruntime")),
                                   ("undistilled", given.baseline, ("openvino",))):
        for backend, precision in COMBINATIONS:
            if bundle and backend in backends and f"model.{precision}.onnx" in open_bundle(bundle).files:
                name = f"{role} {backend} {precision}"
                say(f"evaluate {name}")
                found[name] = evaluate_bundle(bundle, given.data, given.split, given.split_file, precision, backend)
    return found


def predict_teacher(given: argparse.Namespace) -> None:
    """The label maps of the teacher's own full pipeline, with and without mirroring, into `given.cache`."""
    split = [] if given.split_file is None else ["--split-file", given.split_file]
    for tta in given.tta:
        folder = labels_folder(given.cache, given.teacher, given.data, tta)
        say(f"predict  teacher, {tta} (label maps in {folder})")
        run_step("predict", given.teacher, "--data", given.data, "--split", given.split, *split, "--tta", tta,
                 "--cache", folder)


def differences(evaluations: dict[str, Evaluation], seed: int) -> dict[str, Difference]:
    """Paired difference of the patients' mean Dice for each of PAIRS whose two sides were evaluated."""
    found = {}
    for a, b in PAIRS:
        if a in evaluations and b in evaluations:
            left, right = evaluations[a].patient_dice(), evaluations[b].patient_dice()
            both = sorted(left.keys() & right.keys())
            found[f"{a} - {b}"] = paired_difference([left[p] for p in both], [right[p] for p in both], seed=seed)
    return found


def measure_speed(given: argparse.Namespace) -> tuple[Bench, dict[str, Any]]:
    """Students, the given teacher's network and a full-width one with random weights, in one interleaved run."""
    say("bench    students, the teacher's network and a full-width one, in turns")
    with tempfile.TemporaryDirectory(prefix="edgeseg-main-job-") as scratch:
        network = Path(scratch) / "full_width_random.onnx"
        features = ",".join(map(str, given.features))
        about = json.loads(run_step("random-network", network, "--features", features, "--size", str(given.size))
                           .splitlines()[-1])
        row = RowSpec(FULL_ROW, "teacher", Job("network", str(network), ""))
        own = against_rows(str(given.run / "teacher.onnx"), given.bundle, 1, Path(scratch)) if given.run else []
        counts = [given.threads] if given.threads else []
        return bench_bundle(given.bundle, [*own, row], counts, given.seconds, seed=given.seed), about


def measure_startup(runs: int = 5) -> dict[str, Any]:
    """Wall time of `edgeseg --help` in s (median) and whether `import edgeseg` brings torch along."""
    say("start-up edgeseg --help")
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import sys; from edgeseg.cli.main import main; "
                        "sys.argv = ['edgeseg', '--help']; main()"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    check = "import edgeseg, sys; print(any(m in sys.modules for m in ('torch', 'nncf', 'onnx', 'lightning')))"
    heavy = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout.strip()
    return {"help_seconds": plain_statistics.median(seconds), "help_runs": seconds, "import_is_light": heavy == "False"}


def targets(evaluations: dict[str, Evaluation], paired: dict[str, Difference], bench: Bench, startup: dict[str, Any],
            training: dict[str, Any], seed: int) -> list[Target]:
    """The numbers that the main job has to reach, with what was measured."""
    found = []
    for precision in ("fp32", "int8"):
        if (one := evaluations.get(f"distilled openvino {precision}")) is not None:
            dice = bootstrap_interval(list(one.patient_dice().values()), seed=seed)
            found.append(target(f"mean Dice of the distilled student, {precision.upper()} OpenVINO", dice, ">=", 0.89))
    for backend in ("openvino", "onnxruntime"):
        difference = paired.get(f"distilled {backend} int8 - distilled {backend} fp32")
        if difference is not None:
            found.append(Target(f"|mean Dice INT8 - FP32|, {backend}", abs(difference.value), "<=", 0.01,
                                n=difference.n))
    speed = next((r.speed_up.get(FULL_ROW) for r in bench.rows if r.name == MAIN), None)
    if speed is not None:
        found.append(target("INT8 student, times as fast as the full-width network in FP32", speed, ">=", 20))
    found.append(Target("training on this CPU, minutes", minutes(training), "<=", 45))
    found.append(Target("edgeseg --help, s", startup["help_seconds"], "<=", 0.6, n=len(startup["help_runs"])))
    found.append(Target("import edgeseg without torch (1 = yes)", float(startup["import_is_light"]), ">=", 1))
    return found


def distillations(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """`distilled`, `undistilled` -> how that student was trained.

    Raises:
        EdgesegError: they differ in more than the distillation, so that their difference would not be that of it.
    """
    found = {role: open_bundle(bundle).manifest.distillation
             for role, bundle in (("distilled", given.bundle), ("undistilled", given.baseline)) if bundle}
    first, last = found["distilled"], found.get("undistilled", found["distilled"])
    other = sorted(k for k in first.keys() | last.keys() if k not in DISTILLATION and first.get(k) != last.get(k))
    if other:
        raise EdgesegError(f"{given.baseline}: was trained with {other[0]} = {last.get(other[0])}, {given.bundle} with "
                           f"{first.get(other[0])}: compare students that differ only in their distillation")
    return found


def read_training(run: Path | None) -> dict[str, Any]:
    """What the run says about its training (empty without a run)."""
    if run is None or not (run / "run.json").is_file():
        return {}
    record = json.loads((run / "run.json").read_text())
    return {"seconds": record["metrics"].get("seconds"), "dev": record["metrics"].get("dev"),
            "machine": record["metrics"].get("machine"),
            "seed": record["recipe"].get("seed"), "epochs": record["recipe"].get("epochs")}


def dice_table(evaluations: dict[str, Evaluation], seed: int) -> str:
    rows = []
    for name, evaluation in evaluations.items():
        table = evaluation.summary(seed)["structures"]
        cells = [cell(table[s]["all"]["dice"], 3) for s in ("mean", *evaluation.scheme.foreground)]
        rows.append([name, *cells, cell(table["mean"]["all"]["hd95_mm"], 1), str(table["mean"]["all"]["dice"].n)])
    structures = next(iter(evaluations.values())).scheme.foreground
    return markdown_table(["network", "mean Dice", *structures, "HD95 mm", "patients"], rows)


def clinical_table(evaluations: dict[str, Evaluation], seed: int) -> str:
    rows = []
    for name, evaluation in evaluations.items():
        for read_out, found in evaluation.summary(seed)["clinical"].items():
            limits = f"{found.limits[0]:.1f} to {found.limits[1]:.1f}"
            rows.append([name, read_out, cell(found.bias, 1), limits, cell(found.mae, 1), str(found.n)])
    return markdown_table(["network", "read-out", "bias", "limits of agreement", "mean |difference|", "n"], rows)


def report(document: dict[str, Any], evaluations: dict[str, Evaluation], paired: dict[str, Difference], bench: Bench,
           numbers: list[Target], seed: int) -> str:
    """The Markdown page."""
    pairs = [[name, cell(d), "-" if d.p != d.p else f"{d.p:.2g}", str(d.n)] for name, d in paired.items()]
    quick = "**A quick run with tiny settings: these numbers mean nothing.**\n\n" if document["quick"] else ""
    return (f"# Main job\n\n{quick}`{document['command']}`, commit {document['commit']}"
            f"{' with changes' if document['changed_files'] else ''}, seed {seed}.\n\n"
            + markdown_table(["number to reach", "measured", "95 %", "limit", ""], [t.line() for t in numbers])
            + "\n" + how_trained(document["distillation"]["distilled"], document["reading"], document["training"])
            + "\n" + noted(document["notes"])
            + f"\n## Dice on {document['data']}, split {document['split']}\n\n"
            "Mean over patients of each patient's mean over structures and phases, with 95 % bootstrap intervals over "
            "patients.\n\n"
            + dice_table(evaluations, seed) + "\nPaired differences of mean Dice (Wilcoxon's p):\n\n"
            + markdown_table(["pair", "difference", "p", "patients"], pairs)
            + "\n## What a clinician reads from the masks\n\n" + clinical_table(evaluations, seed)
            + "\n## Speed\n\n" + markdown_table(HEADER, table_rows(bench)) + "\n"
            + "\n\n".join(remarks(FullBench(bench))) + "\n")


def plot(path: Path, evaluations: dict[str, Evaluation], bench: Bench, seed: int) -> None:
    """Dice against the network's latency: students on both runtimes, and the teacher (its network alone, timed)."""
    rows = {"distilled openvino fp32": "student OpenVINO FP32", "distilled openvino int8": MAIN,
            "distilled onnxruntime fp32": "student ONNX Runtime FP32",
            "distilled onnxruntime int8": "student ONNX Runtime INT8", "teacher none": "teacher OpenVINO FP32"}
    points = []
    for name, evaluation in evaluations.items():
        ms = next((r.network.p50_ms for r in bench.rows if r.name == rows.get(name)), None)
        if ms is not None:
            dice = bootstrap_interval(list(evaluation.patient_dice().values()), seed=seed)
            points.append(Point(name, ms, dice.value, dice.low, dice.high))
    dice_versus_cost(path, points, "mean Dice and 95 % interval over patients")


def say(line: str) -> None:
    print(line, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="the distilled student's bundle")
    parser.add_argument("--baseline", type=Path, help="the bundle of the same student without distillation (W = 0)")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--split-file", type=Path)
    parser.add_argument("--teacher", help="nnunet:FOLDER")
    parser.add_argument("--run", type=Path, help="the distilled run (teacher.onnx, training time)")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "results")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "edgeseg-main-job")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=30.0, help="counted time of each row of the bench")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="tiny settings, for the tests")
    given = parser.parse_args(arguments)
    given.features, given.size, given.tta = FULL_WIDTH, 192, ("mirror", "none")
    if given.quick:
        given.features, given.size, given.tta, given.seconds = (4, 8), 32, ("none",), 0.05
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    bundle, trained = open_bundle(given.bundle), distillations(given)
    evaluations = evaluate_students(given)
    if given.teacher:
        predict_teacher(given)
        evaluations |= evaluate_teacher(given, given.cache, bundle.scheme)
    paired = differences(evaluations, given.seed)
    bench, full_width = measure_speed(given)
    startup, training = measure_startup(1 if given.quick else 5), read_training(given.run)
    numbers = targets(evaluations, paired, bench, startup, training, given.seed)
    document = {
        "schema": "edgeseg.main_job/1", "quick": given.quick, **provenance(), "seed": given.seed,
        "data": open_data(given.data, given.split_file).name, "split": given.split,
        "distillation": trained, "reading": reading(trained["distilled"], bundle.manifest.teacher),
        "notes": {name: e.notes for name, e in evaluations.items()},
        "machine": bench.machine, "load": bench.load, "training": training, "targets": [t.document() for t in numbers],
        "evaluations": {name: e.summary(given.seed) for name, e in evaluations.items()},
        "patient_dice": {name: list(e.patient_dice().values()) for name, e in evaluations.items()},  # no ids
        "paired_differences": paired, "full_width_network": full_width, "bench": bench.document(), "startup": startup,
    }
    write_json(given.out / "main_job.json", document)
    write_text(given.out / "main_job.md", report(document, evaluations, paired, bench, numbers, given.seed))
    plot(given.out / "main_job.png", evaluations, bench, given.seed)
    for name, evaluation in evaluations.items():
        for note in evaluation.notes:
            say(f"note     {name}: {note}")
    for line in (t.line() for t in numbers):
        say("  ".join(part for part in line if part))
    say(f"wrote    {given.out / 'main_job.md'}")


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"main_job: {error}")
