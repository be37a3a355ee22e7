"""What a contrastive training step costs: time and memory of the arms of the CT sweep, times those of labels alone.

    python benchmarks/contrastive_cost.py [--student S2] [--threads 1] [--seconds 60]

Each arm is a process of its own that makes real training steps on the same batches, augmented before; the processes
take turns in blocks. The teacher has random weights, which cost what trained ones do. On a machine that does nothing
else. Writes contrastive_cost.json and .md (contrastive_cost_STUDENT.* for another student than S1).
"""

import argparse
import math
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, Target, cell, markdown_table, provenance, target
from contrastive_ablation import QUICK, STUDENTS, moved
from contrastive_claims import NONE

from edgeseg.distill.sweep import Planned, Sweep
from edgeseg.errors import EdgesegError
from edgeseg.measure import environment
from edgeseg.measure.bench import allowed_threads
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.statistics import Interval, bootstrap_interval, ratio_interval
from edgeseg.measure.turns import Job, Turns, Worker, started, take_turns

KL, ALL = "layer-wise KL", ("all supervised", "all instance")
ROWS, QUICK_ROWS = (NONE, KL, *ALL), (NONE, ALL[0])
TIME, MEMORY = 2.0, 1.5
"""Limits: times the plain step's."""
TEACHER_WIDTH, BATCHES, PATIENTS = 16, 8, 4
BLOCK, DISCARD = 2.0, 2
"""Seconds of a turn, and steps at its start that pay for the caches the others filled."""
MODE = "step"


@dataclass(frozen=True)
class Row:
    """One arm. Ratios are to the row of labels alone and to the layer-wise KL, block by block of the same round.

    Attributes:
        ms: median over blocks of their medians. peak_mb: largest resident set of the process over all steps;
            start_mb: before the first step. about: what the process said of itself.
    """

    name: str
    ms: Interval
    medians_ms: tuple[float, ...]
    steps: int
    times_plain: Interval
    times_kl: Interval
    peak_mb: float | None
    start_mb: float | None
    about: dict[str, Any]

    @property
    def grown_mb(self) -> float | None:
        return None if self.peak_mb is None or self.start_mb is None else self.peak_mb - self.start_mb


def settle(given: argparse.Namespace) -> Sweep:
    """The sweep with the rows' arms (a quick run: two), for the student that is asked for."""
    changes, paths = STUDENTS[given.student]
    sweep = Sweep.load(HERE / "recipes" / "contrastive_ct.toml")
    arms = {name: sweep.arms[name] | moved(sweep.arms[name], paths) for name in (QUICK_ROWS if given.quick else ROWS)}
    return replace(sweep, seeds=sweep.seeds[:1], arms=arms).changed((QUICK if given.quick else {}) | changes)


def prepare(sweep: Sweep, folder: Path, quick: bool) -> list[Planned]:
    """A teacher with random weights and the batches into `folder`; the recipe of each row, which names that teacher.

    A quick run does not augment: that alone imports nnU-Net.
    """
    import torch
    from safetensors.torch import save_file

    from edgeseg.distill.cache import Preparation
    from edgeseg.distill.samples import EpochSampler, SliceDataset
    from edgeseg.preprocess import Preprocessing, ct_window
    from edgeseg.teachers.multitask import WEIGHTS, build_network, write_record

    base, data = sweep.base, sweep.base.dataset()
    low, high = base.hu_window
    grid = Preprocessing((base.size[0], base.size[1]), (base.spacing[0], base.spacing[1]), (ct_window(low, high),))
    teacher, width = folder / "teacher", 4 if quick else TEACHER_WIDTH
    teacher.mkdir()
    write_record(teacher, "multitask", width, data.scheme, grid, "none: random weights", {"dev": {"dice": 0.0}},
                 base.mirror_axes)
    torch.manual_seed(0)
    network = build_network("multitask", 1, len(data.scheme.names), width, grid.size)
    save_file(network.state_dict(), teacher / WEIGHTS)

    few = data.select("train").refs[: 1 if quick else PATIENTS]
    cache = Preparation(replace(data, refs=few), data.scheme, grid).run(folder / "cases", say=lambda _: None)
    samples = SliceDataset(cache, grid.size, 0, base.mirror_axes, augment=not quick)
    keys = list(EpochSampler(len(samples), base.batch_size, 0))[: BATCHES * base.batch_size]
    found = [samples[key] for key in keys]
    np.savez(folder / "batches.npz", **{
        f"{key}_{i // base.batch_size}": np.stack([s[key].numpy() for s in found[i : i + base.batch_size]])
        for i in range(0, len(found), base.batch_size) for key in ("image", "labels")})
    planned = sweep.changed({"teacher": f"multitask:{teacher}"}).runs()
    for run in planned:
        write_text(folder / f"{run.arm}.toml", run.recipe.to_toml())
    return planned


def measure(planned: list[Planned], folder: Path, threads: int, seconds: float) -> tuple[list[Row], dict[str, Any]]:
    """The rows, and how busy others kept the machine."""
    before, length = environment.load_before(), block_seconds(seconds)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
    with ExitStack() as stack:
        workers = {run.arm: stack.enter_context(started(Job(
            run.arm, str(folder / f"{run.arm}.toml"), str(folder / "batches.npz"), "torch", run.recipe.precision,
            threads, "contrastive_cost_worker"))) for run in planned}
        start, own = environment.snapshot(), time.process_time()
        taken = take_turns(workers, math.ceil(seconds / length), length, DISCARD)
        own = time.process_time() - own + sum(b.cpu_s for b in taken.blocks)
        others = {"before": before, "during": environment.foreign_share(start, environment.snapshot(), own)}
    if taken.failed:
        raise EdgesegError("; ".join(f"{name}: {why}" for name, why in taken.failed.items()))
    if taken.interrupted:
        raise KeyboardInterrupt
    rows = [row(name, workers[name], taken) for name in workers]
    return rows, {"others": others, "busy": environment.is_busy(*others.values())}


def block_seconds(seconds: float) -> float:
    """Two blocks at least: one has no interval."""
    return min(seconds / 2, BLOCK)


def row(name: str, worker: Worker, taken: Turns) -> Row:
    medians = {n: tuple(float(np.median(b.ms)) for b in taken.of(n, MODE)) for n in (name, NONE, KL)}
    blocks, about = taken.of(name, MODE), dict(worker.ready["runtime"])
    peaks = [b.peak_rss_mb for b in blocks if b.peak_rss_mb is not None]
    return Row(name, bootstrap_interval(medians[name], np.median), medians[name], sum(len(b.ms) for b in blocks),
               ratio_interval(medians[name], medians[NONE]),
               ratio_interval(medians[name] if medians[KL] else (), medians[KL]),  # a quick run has no such row
               max(peaks, default=None), about.pop("rss_mb"), about)


def quotient(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def targets(rows: dict[str, Row]) -> list[Target]:
    plain = rows[NONE]
    return [t for name in ALL if name in rows for t in (
        target(f"{name}: time of a step, times the plain step's", rows[name].times_plain, "<=", TIME),
        Target(f"{name}: peak memory, times the plain step's", quotient(rows[name].peak_mb, plain.peak_mb), "<=",
               MEMORY))]


def shown(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def page(document: dict[str, Any], rows: dict[str, Row], goals: list[Target]) -> str:
    others, plain, kl, base = document["load"]["others"], rows[NONE], rows.get(KL), document["recipe"]
    shares = ", ".join(f"{when} {'unknown' if s is None else f'{100 * s:.0f} %'}" for when, s in others.items())
    times = [[r.name, str(r.steps), cell(r.ms, 1), cell(r.times_plain, 3), cell(r.times_kl, 3)] for r in rows.values()]
    memory = [[r.name, shown(r.peak_mb), shown(quotient(r.peak_mb, plain.peak_mb), 3),
               shown(quotient(r.peak_mb, kl and kl.peak_mb), 3), shown(r.start_mb), shown(r.grown_mb),
               shown(quotient(r.grown_mb, plain.grown_mb), 2)] for r in rows.values()]
    sizes = [[r.name, *(f"{r.about[f'{k}_parameters']:,}" for k in ("student", "head", "teacher"))]
             for r in rows.values()]
    return "\n".join([
        f"# Cost of a contrastive training step: student {document['student']}", "",
        *(["**A quick run with tiny settings: these numbers mean nothing.**", ""] if document["quick"] else []),
        f"Commit {document['commit']}{' with uncommitted changes' if document['changed_files'] else ''}, "
        f"`{document['command']}`; {document['machine']['cpu']}, {document['threads']} torch thread(s) a process, "
        f"{plain.about['precision']}; others used of these CPUs: {shares}"
        + (", **busy while timing**" if document["load"]["busy"] else "") + ".", "",
        markdown_table(["what", "value", "95 %", "limit", "verdict"], [t.line() for t in goals]),
        f"The plain step is that of the arm `{NONE}`: labels alone, with no teacher in its process. `{KL}` runs the "
        "teacher on every batch too, without features; the ratio to it is what the features cost beside the teacher.",
        "", f"A step: the training module's own (forward passes, losses), backward, optimiser and schedule, on "
        f"{plain.about['batches']} prepared batches of {base['batch_size']} augmented slices of {base['data']} "
        f"({base['size'][0]}x{base['size'][1]} at {base['spacing'][0]:g} mm) kept in memory: reading and augmentation "
        "cost all arms the same and are left out. The multi-task teacher of width "
        f"{document['teacher_width']} has random weights, which cost what trained ones do.", "", "## Time", "",
        markdown_table(["arm", "steps", "ms, median of blocks", "times plain", f"times {KL}"], times),
        f"The arms took turns: {len(plain.medians_ms)} rounds of a block each, {document['block_seconds']:g} s of "
        f"counted steps after {DISCARD} that are not, in an order drawn anew each round. Ratios are geometric means of "
        "those of blocks of one round; 95 % bootstrap intervals over blocks.", "", "## Memory", "",
        markdown_table(["arm", "peak, MB", "times plain", f"times {KL}", "before the first step, MB", "grown, MB",
                        "times plain"], memory),
        "Resident set of each arm's process, libraries included. The peak is over the steps alone (that of the set-up "
        "is forgotten before the first); grown is the peak less what the process had before its first step, when the "
        "teacher was loaded and the features had tried both networks once.", "",
        "## Parameters", "", markdown_table(["arm", "student", "projection heads", "teacher"], sizes)])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=tuple(STUDENTS), default="S1")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--seconds", type=float, help="of counted steps of each arm (default: 60)")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="tiny settings: proves that the script runs, nothing else")
    given = parser.parse_args(arguments)
    check_out(given.out)
    seconds = given.seconds if given.seconds is not None else (0.1 if given.quick else 60.0)
    if not (math.isfinite(seconds) and seconds > 0):
        raise EdgesegError(f"--seconds {seconds:g}: the time of an arm is more than 0")
    sweep, threads = settle(given), allowed_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        planned = prepare(sweep, Path(folder), given.quick)
        found, load = measure(planned, Path(folder), threads, seconds)
    rows = {r.name: r for r in found}
    goals, base = targets(rows), sweep.base
    document = {
        "schema": "edgeseg.contrastive-cost/1", "quick": given.quick, **provenance(), "student": given.student,
        "threads": threads, "seconds": seconds, "block_seconds": block_seconds(seconds), "load": load,
        "machine": environment.describe(), "teacher_width": 4 if given.quick else TEACHER_WIDTH, "plain": NONE,
        "recipe": {"data": ", ".join(base.data), "size": base.size, "spacing": base.spacing,
                   "batch_size": base.batch_size},
        "rows": [{**r.__dict__, "grown_mb": r.grown_mb, "peak_times_plain": quotient(r.peak_mb, rows[NONE].peak_mb),
                  "grown_times_plain": quotient(r.grown_mb, rows[NONE].grown_mb)} for r in found],
        "targets": [t.document() for t in goals]}
    name = "contrastive_cost" + ("" if given.student == "S1" else f"_{given.student}")
    write_json(given.out / f"{name}.json", document)
    write_text(given.out / f"{name}.md", page(document, rows, goals))
    for goal in goals:
        print("   ".join(goal.line()))
    print(f"wrote    {given.out / name}.md")


if __name__ == "__main__":
    try:
        main()
    except EdgesegError as error:
        sys.exit(f"contrastive_cost: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
