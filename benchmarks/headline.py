"""The headline: nnU-Net's accuracy at a thousand images a second on two cores, and what it costs to get there.

    python benchmarks/headline.py --bundle cine --synthetic cine-synthetic --teacher-labelled BUNDLE \
        --teacher nnunet:FOLDER --data acdc:DIR --recipe benchmarks/recipes/cine.toml \
        --baseline benchmarks/recipes/cine_undistilled.toml --work runs/headline

Trains what is not trained yet (both recipes, three seeds each; the runs stay in --work), evaluates everything on split
`val`, which no choice has looked at, and times nnU-Net's own predictor with a full-width plan beside the bundle, files
to masks. Writes headline.json and headline.md. The patient is the unit of every interval. Frames and networks are timed
by frame_speed.py, changed scans scored by robustness.py. `--quick` proves that the script runs, nothing else.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import Target, cell, evaluate_teacher, labels_folder, markdown_table, provenance, run_step, target
from students import add_options, make, settle, shown

from edgeseg.container import Bundle, open_bundle
from edgeseg.distill.pipeline import Pipeline, measure_pipeline
from edgeseg.distill.recipe import Recipe
from edgeseg.errors import EdgesegError
from edgeseg.measure.bench import allowed_threads
from edgeseg.measure.document import write_json, write_text
from edgeseg.measure.environment import describe
from edgeseg.measure.evaluate import Evaluation, evaluate_bundle
from edgeseg.measure.statistics import Difference, bootstrap_interval, paired_difference
from edgeseg.readers import open_data

FULL_WIDTH = (32, 64, 128, 256, 512, 512)
"""nnU-Net's default features of a 2D network of six stages: 20.6 M parameters."""
VOLUMES = "phantom:cine?n=4&seed=3"
"""Whole volumes for files to masks, 9 to 12 slices each; what is in the pixels costs nothing."""
STUDENT, MIRRORED = "student INT8", "teacher mirror"
EF, RV_EF, MEGABYTE = "LV EF %", "RV EF %", 1e6


def evaluations(given: argparse.Namespace) -> dict[str, Evaluation]:
    """Role -> evaluation on val: the INT8 students in OpenVINO, and the teacher's full pipeline."""
    bundles = {STUDENT: given.bundle, "student FP32": given.bundle, "synthetic INT8": given.synthetic,
               "teacher-labelled INT8": given.teacher_labelled}
    found = {}
    for role, bundle in bundles.items():
        if bundle:
            say(f"evaluate {role}")
            precision = role.split()[-1].lower()
            found[role] = evaluate_bundle(bundle, given.data, given.split, given.split_file, precision)
    for tta in given.tta:
        folder = labels_folder(given.work / "teacher-labels", given.teacher, given.data, tta)
        say(f"predict  teacher, {tta}")
        split = [] if given.split_file is None else ["--split-file", given.split_file]
        run_step("predict", given.teacher, "--data", given.data, "--split", given.split, *split, "--tta", tta,
                 "--cache", folder)
    return found | evaluate_teacher(given, given.work / "teacher-labels", found[STUDENT].scheme)


def twins(given: argparse.Namespace, base: Recipe) -> dict[str, Any]:
    """Dice of the distilled students and of those without distillation, seed by seed (FP32, PyTorch, val), and the
    paired difference of each patient's mean over seeds."""
    plain = settle(argparse.Namespace(**vars(given) | {"recipe": given.baseline}))
    plain = plain.changed({"kd_weight": 0.0})
    recipes = {f"{arm}-{seed}": replace(recipe, seed=seed)
               for seed in range(given.seeds) for arm, recipe in (("distilled", base), ("plain", plain))}
    runs = make(given.work, recipes, "--score", *(["--quick"] if given.quick else []))
    dice = {name: read_dice(run.folder / "score.json") for name, run in runs.items()}
    patients = sorted(dice["distilled-0"])
    arms = {arm: np.array([[dice[f"{arm}-{s}"][p] for p in patients] for s in range(given.seeds)])
            for arm in ("distilled", "plain")}
    gain = paired_difference(list(arms["distilled"].mean(0)), list(arms["plain"].mean(0)))
    return {"gain": gain, "by_seed": {arm: list(values.mean(1)) for arm, values in arms.items()},
            "gain_by_seed": list((arms["distilled"] - arms["plain"]).mean(1)),
            "dev": {name: run.metrics["dev"]["dice"] for name, run in runs.items()},
            "recipes": {"distilled": shown(base), "plain": shown(plain)}}


def read_dice(path: Path) -> dict[str, float]:
    return json.loads(path.read_text())["mean"]


def against_teacher(found: dict[str, Evaluation]) -> dict[str, Difference]:
    """Paired differences INT8 student - teacher with mirroring: Dice, HD95 in mm, absolute errors of EF in points."""
    result, read = {}, {"mean Dice": Evaluation.patient_dice, "HD95 mm": hd95}
    for name, values in (read | {f"{n}: absolute error": partial(ef_errors, name=n) for n in (EF, RV_EF)}).items():
        left, right = values(found[STUDENT]), values(found[MIRRORED])
        both = sorted(p for p in left.keys() & right.keys() if np.isfinite([left[p], right[p]]).all())
        result[name] = paired_difference([left[p] for p in both], [right[p] for p in both])
    return result


def hd95(evaluation: Evaluation) -> dict[str, float]:
    return evaluation.patient_values("hd95_mm")


def ef_errors(evaluation: Evaluation, name: str = EF) -> dict[str, float]:
    return {r.patient: abs(r.difference) for r in evaluation.read_outs() if r.name == name}


def full_width_pipeline(given: argparse.Namespace, bundle: Bundle) -> Pipeline:
    """nnU-Net's own predictor with a full-width 2d plan (random weights: timing does not look at them), one fold,
    beside `edgeseg predict`, files to masks, in turns."""
    say("pipeline full-width nnU-Net against the bundle, files to masks")
    cases = [ref.load() for ref in open_data(VOLUMES).refs if ref.phase == "ED"][: given.volumes]
    with tempfile.TemporaryDirectory(prefix="edgeseg-headline-") as scratch:
        folder = Path(scratch) / "full_width"
        run_step("random-folder", folder, "--features", ",".join(map(str, given.features)), "--size", str(given.size))
        return measure_pipeline(folder, bundle, allowed_threads(given.threads), given.repeats, given.starts,
                                lambda what, _: say(f"  {what}"), cases)


def targets(given: argparse.Namespace, found: dict[str, Evaluation], paired: dict[str, Difference],
            pipeline: Pipeline | None, bundle: Bundle) -> list[Target]:
    dice = {role: bootstrap_interval(list(e.patient_dice().values())) for role, e in found.items()}
    rows = [target("mean Dice, INT8 student", dice[STUDENT], ">=", given.dice),
            target("mean Dice, INT8 student - teacher with mirroring", paired["mean Dice"], ">=", -0.005),
            target("LV EF mean absolute error, student - teacher, points", paired[f"{EF}: absolute error"], "<=", 0.5),
            target(f"HD95, student - teacher, mm ({paired['HD95 mm'].n} patients without a missing structure)",
                   paired["HD95 mm"], "<=", 0.5),
            Target("INT8 weights, MB", bundle.file("model.int8.bin").stat().st_size / MEGABYTE, "<=", 1)]
    rows += [target(f"mean Dice, data-free ({role})", dice[role], ">=", 0.80)
             for role in ("synthetic INT8", "teacher-labelled INT8") if role in dice]
    if pipeline:
        mirrored = next(r for r in pipeline.rows if r.mirrored)
        if mirrored.faster:
            rows.append(target("files to masks, times as fast as nnU-Net full width, mirrored", mirrored.faster, ">=",
                               500))
    return rows


def dice_table(found: dict[str, Evaluation]) -> str:
    rows = []
    for role, evaluation in found.items():
        summary = evaluation.summary()
        table, clinical = summary["structures"], summary["clinical"]
        rows.append([role, *(cell(table[s]["all"]["dice"], 3) for s in ("mean", *evaluation.scheme.foreground)),
                     cell(table["mean"]["all"]["hd95_mm"], 1),
                     *(cell(clinical[name].mae, 1) if name in clinical else "-" for name in (EF, RV_EF))])
    foreground = next(iter(found.values())).scheme.foreground
    return markdown_table(["network", "mean Dice", *foreground, "HD95 mm", "LV EF MAE", "RV EF MAE"], rows)


def twin_table(pair: dict[str, Any]) -> str:
    rows = [[str(s), f"{a:.4f}", f"{b:.4f}", f"{g:+.4f}"] for s, (a, b, g) in
            enumerate(zip(pair["by_seed"]["distilled"], pair["by_seed"]["plain"], pair["gain_by_seed"], strict=True))]
    rows.append(["mean", *(f"{np.mean(pair['by_seed'][arm]):.4f}" for arm in ("distilled", "plain")),
                 cell(pair["gain"], 4)])
    return markdown_table(["seed", "distilled", "without", "gain"], rows)


def page(document: dict[str, Any], found: dict[str, Evaluation], rows: list[Target], pair: dict[str, Any]) -> str:
    differences = [[name, cell(d, 3), f"{d.p:.2g}", str(d.n)] for name, d in document["against_teacher"].items()]
    gain = (f"## Gain over the same student without distillation\n\nMean Dice on val, FP32 in PyTorch, "
            f"{len(pair['gain_by_seed'])} seeds; the gain's interval is over {pair['gain'].n} patients, of each "
            f"patient's mean over seeds (Wilcoxon's p {pair['gain'].p:.2g}).\n\n{twin_table(pair)}\n")
    return "\n".join([
        "# Headline", "",
        *(["**A quick run with tiny settings: these numbers mean nothing.**", ""] if document["quick"] else []),
        f"`{document['command']}`, commit {document['commit']}"
        f"{' with changes' if document['changed_files'] else ''}; bundle `{document['bundle']}`"
        f"{', fitted on train and dev' if document['final'] else ''}.", "",
        markdown_table(["number to reach", "measured", "95 %", "limit", ""], [t.line() for t in rows]),
        f"## On {document['data']}, split {document['split']}", "",
        "Means over patients with 95 % bootstrap intervals; EF errors in points.", "", dice_table(found),
        "## INT8 student - teacher with mirroring, paired", "",
        markdown_table(["value", "difference", "p", "patients"], differences), gain])


def say(line: str) -> None:
    print(line, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--bundle", help="the headline's bundle: a path or a shipped name")
    parser.add_argument("--synthetic", help="the bundle that saw phantom labels only")
    parser.add_argument("--teacher-labelled", help="the bundle that saw phantoms labelled by the teacher only")
    parser.add_argument("--baseline", type=Path, help="recipe of the student without distillation (default: --recipe)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dice", type=float, default=0.90, help="mean Dice to reach: 0.90, with a full teacher 0.91")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    given.features, given.size, given.repeats, given.starts, given.tta = FULL_WIDTH, 192, 5, 1, ("mirror", "none")
    given.volumes = 2
    if given.quick:
        given.features, given.size, given.repeats, given.starts = (4, 8, 8, 8), 64, 1, 0
        given.seeds, given.threads, given.tta, given.volumes = 1, 1, ("mirror",), 1
    given.baseline = given.baseline or given.recipe
    return given


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    base = settle(given)
    pair = twins(given, base)
    if not given.bundle:  # a try-out: the bundle of the first student
        make(given.work, {"distilled-0": base}, "--export", *(["--quick"] if given.quick else []))
        given.bundle = str(given.work / "distilled-0.edgeseg")
    bundle = open_bundle(given.bundle)
    found = evaluations(given)
    pipeline = full_width_pipeline(given, bundle)
    paired = against_teacher(found)
    rows = targets(given, found, paired, pipeline, bundle)
    document = {
        "schema": "edgeseg.headline/1", "quick": given.quick, **provenance(), "bundle": bundle.path.name,
        "final": bool(bundle.manifest.distillation.get("final")),
        "data": open_data(given.data, given.split_file).name, "split": given.split, "machine": describe(),
        "targets": [t.document() for t in rows], "against_teacher": paired, "twins": pair, "pipeline": pipeline,
        "evaluations": {role: e.summary() for role, e in found.items()},
        "patient_dice": {role: list(e.patient_dice().values()) for role, e in found.items()},  # no ids
        "notes": {role: e.notes for role, e in found.items() if e.notes},
    }
    write_json(given.out / "headline.json", document)
    write_text(given.out / "headline.md", page(document, found, rows, pair))
    for row in rows:
        say("  ".join(part for part in row.line() if part))
    say(f"wrote    {given.out / 'headline.md'}")


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"headline: {error}")
