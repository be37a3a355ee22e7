"""Contrastive distillation: which scale and which loss help a small student, on two tasks, with tests that hold.

    python benchmarks/contrastive_ablation.py ct --real slices:DIR --work runs/contrastive-ct --jobs 2
    python benchmarks/contrastive_ablation.py acdc --data acdc:DIR --work runs/contrastive-acdc --jobs 2

A multi-task teacher is trained (or named), then every arm of benchmarks/recipes/contrastive_TASK.toml with every seed,
by one schedule. Arms are chosen on split dev; val is reported. --student S2 or mobilenetv2 trains the arms that --arms
names into another student. Writes contrastive_TASK.json, .md and .png (contrastive_TASK_STUDENT.* for another one).
What --work holds already is not made again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, Target, cell, markdown_table, minutes, provenance
from contrastive_claims import LARGE, NONE, encoder_strongest, new_default, over_seeds, patients_of, small_beats_large
from students import absolute, shown, tiny_phantom

from edgeseg import child
from edgeseg.cli.sweep import Shown
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.distill.scores import kept_scores
from edgeseg.distill.sweep import Sweep
from edgeseg.distill.sweep_jobs import run_sweep
from edgeseg.errors import EdgesegError
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.environment import describe
from edgeseg.readers import Dataset, open_data
from edgeseg.report import compare as report

STUDENTS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "S1": ({}, {}),
    "S2": ({"spec": {"widths": [32, 64, 128]}}, {}),
    "mobilenetv2": ({"student": "mobilenetv2", "spec": {}},
                    {"pools.1": "stages.1", "bottleneck": "stages.4", "decoder.0": "decoder.0"})}
"""Changes of the base recipe, and the student's modules in place of the U-Net's: 1/4, the lowest, the highest."""
REAL_TARGET = 0.70
QUICK = {"epochs": 1, "validate_every": 1, "batch_size": 4, "precision": "32-true", "size": (32, 32),
         "spacing": (6.0, 6.0), "spec": {"widths": [4, 8, 8]}}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("ct", "acdc"))
    parser.add_argument("--data", help="default: the sweep's (phantom:ct); acdc: acdc:DIR")
    parser.add_argument("--teacher", help="multitask:FOLDER (default: one is trained into --work)")
    parser.add_argument("--teacher-width", type=int, default=16, help="channels of its first level (published: 64)")
    parser.add_argument("--teacher-epochs", type=int, default=40)
    parser.add_argument("--sweep", type=Path, help="default: recipes/contrastive_TASK.toml")
    parser.add_argument("--student", choices=tuple(STUDENTS), default="S1")
    parser.add_argument("--arms", nargs="+", help=f"of the sweep; {NONE!r} is always there (default: all)")
    parser.add_argument("--real", help="ct: slices:DIR of real patients, scored too and mixed in, all but one patient")
    parser.add_argument("--mix", nargs="*", help="arms to mix real slices into (default: 'none' and the best on dev; "
                                                 "without a name: no arm)")
    parser.add_argument("--margin", type=float, default=0.02)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/contrastive"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="tiny settings: proves that the script runs, nothing else")
    return parser.parse_args(arguments)


def settle(given: argparse.Namespace) -> Sweep:
    """The sweep of this call, without its teacher."""
    check_out(given.out)
    check_out(given.work)
    given.work = given.work.resolve()
    sweep = Sweep.load(given.sweep or HERE / "recipes" / f"contrastive_{given.task}.toml")
    changes, paths = STUDENTS[given.student]
    arms = {name: arm | moved(arm, paths) for name, arm in sweep.arms.items()}
    if given.quick:
        given.arms, given.teacher_width, given.teacher_epochs = given.arms or [NONE, "encoder supervised"], 4, 1
        changes = changes | QUICK
        sweep = replace(sweep, seeds=sweep.seeds[:1])
        if given.task == "acdc":
            given.data = given.data or f"acdc:{tiny_phantom(given.work / 'quick-data')}"
        else:
            given.data = given.data or "phantom:ct?n=4"
    if given.task == "acdc" and not given.data:
        raise EdgesegError("where is ACDC? --data acdc:DIR")
    if given.student != "S1":
        arms.pop(LARGE, None)
    if wrong := [a for a in given.arms or () if a not in arms]:
        raise EdgesegError(f"no arm {wrong[0]!r} in the sweep: there are {', '.join(arms)}")
    kept = {NONE, *(given.arms or arms)}
    data = (absolute(given.data),) if given.data else None
    return replace(sweep, arms={k: v for k, v in arms.items() if k in kept}).changed(changes | {"data": data})


def moved(arm: dict[str, Any], paths: dict[str, str]) -> dict[str, Any]:
    """The arm's feature tables with the student's modules renamed."""
    tables = [t | {"student": paths.get(t["student"], t["student"])} for t in arm.get("features", ())]
    return {"features": tables} if tables else {}


def teacher_of(given: argparse.Namespace, base: Recipe) -> str:
    """The teacher that was named, or one that `edgeseg train-teacher multitask` has made in --work."""
    if given.teacher:
        return absolute(given.teacher)
    folder = given.work / "teacher"
    if not (folder / "teacher.safetensors").exists():
        options = ["--out", folder, "--width", given.teacher_width, "--size", *base.size, "--spacing", *base.spacing,
                   "--epochs", given.teacher_epochs, "--batch-size", base.batch_size, "--threads", given.jobs,
                   *(["--hu-window", *base.hu_window] if base.hu_window else []),
                   *([] if base.mirror else ["--no-mirror"]),
                   *(["--split-file", base.split_file] if base.split_file else []),
                   *(["--resume"] if (folder / "recipe.toml").exists() else [])]
        command = [*child.command("edgeseg"), "train-teacher", "multitask", *(f"--data={d}" for d in base.data),
                   *map(str, options)]
        if code := subprocess.run(command, env=child.environment(), check=False).returncode:
            raise EdgesegError(f"the teacher was not finished (code {code}); the same command goes on with it")
    return f"multitask:{folder}"


def trained(sweep: Sweep, out: Path, jobs: int) -> list[report.Arm]:
    """Every run of the sweep, made where it was not there, as arms."""
    with Shown() as shown_rows:
        rows = run_sweep(sweep.runs(), out, jobs, on_look=shown_rows)
    if failed := [r for r in rows if r.state == "failed"]:
        raise EdgesegError(f"{failed[0].planned.name}: {failed[0].why} ({len(failed)} of {len(rows)} runs failed)")
    return report.arms_of([Run.open(out / r.planned.name) for r in sorted(
        rows, key=lambda r: list(sweep.arms).index(r.planned.arm))])


def scored(arms: Sequence[report.Arm], cases: Dataset, folder: Path) -> list[report.Arm]:
    once = replace(cases, refs=tuple(replace(r, load=cache(r.load)) for r in cases.refs))  # not again for every run
    return [replace(a, scores=tuple(kept_scores(run, once, folder) for run in a.runs)) for a in arms]


def mixed(given: argparse.Namespace, sweep: Sweep, real: Dataset, names: Sequence[str]
          ) -> dict[str, list[list[float]]]:
    """Arm -> Dice of each real patient who was left out, by seed; the others' slices mixed in half and half."""
    found: dict[str, list[list[float]]] = {name: [] for name in names}
    for number, patient in enumerate(real.patients()):
        file = given.work / f"mixed-{given.student}-without-{number}.json"
        fold = without(replace(sweep, arms={n: sweep.arms[n] for n in names}), real, patient, file)
        left_out = replace(real, refs=tuple(r for r in real.refs if r.patient == patient))
        for arm in scored(trained(fold, file.with_suffix(""), given.jobs), left_out, given.work / "scores"):
            found[arm.name].append(arm.dice.mean(axis=(1, 2)).tolist())
    return found


def without(sweep: Sweep, real: Dataset, patient: str, file: Path) -> Sweep:
    """The sweep with every real patient but one among the training patients; its split goes into `file`."""
    phantom = open_data(sweep.base.data[0])
    split = {s: list(phantom.select(s).patients()) for s in ("train", "dev", "val")}
    split["train"] += [p for p in real.patients() if p != patient]
    write_text(file, json.dumps({**split, "val": [*split["val"], patient]}))
    return sweep.changed({"data": (f"{sweep.base.data[0]}:0.5", f"{real.spec}:0.5"), "split_file": str(file)})


def page(document: dict[str, Any], target: Target) -> str:
    quick = "**A quick run with tiny settings: these numbers mean nothing.**\n\n" if document["quick"] else ""
    base, spent = document["recipe"], [m for m in document["minutes"].values() if m is not None]
    changed = " with changes" if document["changed_files"] else ""
    text = (f"# Contrastive distillation: {document['task']}, student {document['student']}\n\n{quick}"
            f"`{document['command']}`, commit {document['commit']}{changed}, seeds "
            f"{', '.join(map(str, document['seeds']))}; {document['machine']['cpu']}.\n\n"
            f"CPU form: multi-task U-Net teacher of width {document['teacher']['width']} "
            f"({document['teacher']['parameters'] / 1e6:.2f} M parameters; published: 64, 43.24 M; dev Dice "
            f"{document['teacher']['dev']:.3f}; it saw all training patients, students {base['fraction']:.0%} of them, "
            f"drawn by seed), {base['size'][0]}x{base['size'][1]} pixels, {base['epochs']} epochs, "
            f"batches of {base['batch_size']}, AdamW with one cycle up to {base['learning_rate']:g}, the same for all "
            f"arms; {min(spent):.1f} to {max(spent):.1f} wall minutes a run with one thread. The figure shows val.\n\n")
    text += "\n".join(report.markdown(document[split], title) for split, title in (
        ("val", "## Val"), ("dev", "## Dev, on which arms are chosen")))
    for claim in document["claims"]:
        over = {name: f"[{i.low:+.4f}, {i.high:+.4f}]" for name, i in claim["over_seeds_too"].items()}
        rows = [[name, cell(c.difference), over.get(name, ""), report.p_value(c.permutation_holm),
                 report.p_value(c.wilcoxon_holm)]
                for name, c in claim["tests"].items()]
        text += f"\n## {claim['claim'][0].upper()}{claim['claim'][1:]}?\n\n**{claim['verdict']}.** {claim['where']}\n"
        if rows:
            head = ["pair", "difference [95 %]", "over seeds too", "permutation p, Holm", "Wilcoxon p, Holm"]
            text += "\n" + markdown_table(head, rows)
    if real := document["real"]:
        text += (f"\n## Real slices of {real['patients']} patients, whom no network saw\n\n"
                 + report.table(report.score_table(real)) + "\n"
                 + markdown_table(["target", "value", "interval", "limit", "verdict"], [target.line()]))
    if document["mixed"]:
        rows = [[name, *(f"{np.mean(v):.3f} ({min(v):.3f} to {max(v):.3f})" for v in values), f"{np.mean(values):.3f}"]
                for name, values in document["mixed"].items()]
        head = ["arm", *(f"patient {k + 1} left out" for k in range(len(rows[0]) - 2)), "mean"]
        text += ("\n### The other patient's slices mixed in, half and half\n\nMean (range) of the seeds.\n\n"
                 + markdown_table(head, rows))
    arms = [[name, f"{document['parameters'][name]:,}",
             ", ".join(f"{k} {v}" for k, v in arm.items() if k != "features"),
             "; ".join(f"{t['scale']}: {t['teacher']} to {t['student']}, {t['kind']}, weight {t.get('weight', 0.1):g}, "
                       f"tau {t.get('tau', 0.1):g}" for t in arm.get("features", ()))]
            for name, arm in document["changes"].items()]
    return text + "\n## Arms\n\n" + markdown_table(["arm", "parameters", "changes", "features"], arms)


def main(arguments: list[str] | None = None) -> None:
    given = parse(arguments)
    sweep = settle(given)
    data = [open_data(d, Path(sweep.base.split_file) if sweep.base.split_file else None) for d in sweep.base.data]
    real = open_data(absolute(given.real)) if given.real else None
    sweep = sweep.changed({"teacher": teacher_of(given, sweep.base)})
    arms = trained(sweep, given.work / given.student, given.jobs)
    by_split = {s: scored(arms, data[0].select(s), given.work / "scores") for s in ("dev", "val")}
    dev, val = ({a.name: a for a in found} for found in by_split.values())
    candidates = [n for n in dev if n not in (NONE, LARGE)]
    best = max(candidates, key=lambda n: patients_of(dev[n]).mean()) if candidates else None
    claims = [claim | {"where": where, "over_seeds_too": over_seeds(on, claim["tests"])} for claim, on, where in (
        (encoder_strongest(val, given.margin), val, "On val."),
        (small_beats_large(val, best, given.margin), val, f"On val, {best}, which is best on dev."),
        (new_default(dev, best, given.margin), dev, "On dev, both tests below 0.05 after correction."))]
    on_real = scored(arms, real, given.work / "scores") if real else []
    chosen = {a.name: a for a in on_real}.get(best or NONE)
    value = float(patients_of(chosen).mean()) if chosen else None
    target = Target(f"Dice on real slices, {best}, phantom alone", value, ">=", REAL_TARGET)
    mix = [n for n in (NONE, best) if n] if given.mix is None else given.mix
    from edgeseg.students.cost import count_parameters

    document = {
        "schema": "edgeseg.contrastive/1", "quick": given.quick, **provenance(), "task": given.task,
        "student": given.student, "seeds": sweep.seeds, "machine": describe(), "best_on_dev": best,
        "recipe": shown(sweep.base), "changes": sweep.arms,
        "teacher": teacher_about(sweep.base.teacher, arms[0].runs[0].teacher),
        **{s: report.compare(found, data[0].select(s), s, given.margin) for s, found in by_split.items()},
        "claims": claims, "real": report.compare(on_real, real, "all", given.margin) if real else None,
        "targets": [target.document()] if real else [],
        "mixed": mixed(given, sweep, real, mix) if real and mix else {},
        "parameters": {a.name: count_parameters(a.runs[0].student()) for a in arms},
        "minutes": {r.name: minutes(r.metrics) for a in arms for r in a.runs}}
    name = f"contrastive_{given.task}" + ("" if given.student == "S1" else f"_{given.student}")
    write_json(given.out / f"{name}.json", document)
    write_text(given.out / f"{name}.md", page(document, target))
    report.picture(given.out / f"{name}.png", document["val"])
    for claim in claims:
        print(f"{claim['claim']}: {claim['verdict']}")
    print(f"wrote    {given.out / name}.md")


def teacher_about(spec: str, provenance_of: dict[str, Any]) -> dict[str, Any]:
    """Width, parameters and dev Dice of the teacher."""
    record = json.loads((Path(spec.partition(":")[2]) / "teacher.json").read_text())
    return {"width": record["network"]["width"], "kind": record["network"]["kind"],
            "parameters": provenance_of["parameters"], "dev": record["training"]["dev"]["dice"]}


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"contrastive_ablation: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
