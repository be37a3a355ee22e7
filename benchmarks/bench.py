"""The bench itself, measured: what it costs, whether it repeats, and every number that an integrator quotes from it.

    python benchmarks/bench.py --bundle cine.edgeseg [--run runs/cine] [--teacher nnunet:FOLDER]

One full bench with one thread and with all (rows, first frames, a whole exam, ceilings, the teacher's own pipeline),
the rows without torch in two equal runs, paced streams of INT8 at 50 frames a second by itself, beside busy processes
and under a quota, and openvino's benchmark_app beside FP32 and INT8. On a machine that does nothing else.
"""

import argparse
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from common import HERE, Target, markdown_table, provenance

from edgeseg.container import Bundle, open_bundle
from edgeseg.errors import EdgesegError
from edgeseg.measure.bench import BLOCK_SECONDS, Bench, allowed_threads, bench_bundle, measure, stored_frames
from edgeseg.measure.cross_check import TOLERANCE, CrossCheck, cross_check
from edgeseg.measure.document import check_out, write_json, write_text
from edgeseg.measure.environment import Watch, is_busy
from edgeseg.measure.paced import Paced, measure_paced
from edgeseg.measure.rows import RowSpec
from edgeseg.measure.turns import Job
from edgeseg.report.bench import FullBench, Wanted, extra_rows, full_bench
from edgeseg.report.bench_parts import paced as paced_line
from edgeseg.report.bench_text import markdown, pictures

RATE = 50.0
STREAMS: dict[str, dict[str, Any]] = {"alone": {}, "beside 2 busy processes": {"stress": 2},
                                      "held to 1 CPU": {"quota": 1.0},
                                      "held to half a CPU": {"quota": 0.5}}


def say(text: str) -> None:
    print(text, flush=True)


def harness(seconds: float, frames: str) -> tuple[float, int]:
    """Microseconds of a call of nothing, everything around it included, and the number of calls."""
    found = measure([RowSpec("harness", "harness", Job("empty", "", frames))], seconds, math.inf).rows[0]
    blocks = found.blocks["network"]
    return 1e6 * len(blocks) * min(seconds, BLOCK_SECONDS) / found.network.n, found.network.n


def disagreement(first: Bench, again: Bench) -> dict[str, tuple[float, float, float]]:
    """Pair of rows -> its ratio in each of two runs, and by which share the second differs."""
    found = {}
    for row in first.rows:
        for other, ratio in row.speed_up.items():
            second = again.row(row.name).speed_up[other]
            if ratio.n and second.n:
                found[f"{row.name} / {other}"] = (ratio.value, second.value, abs(second.value / ratio.value - 1))
    return found


def streams(bundle: Bundle, threads: int, seconds: float, frames: str) -> dict[str, Paced]:
    """A paced stream of the INT8 student in each of STREAMS that this system allows."""
    found = {}
    for name, options in STREAMS.items():
        try:
            job = Job("bundle", str(bundle.path), frames, "openvino", "int8", threads)
            found[name] = measure_paced(job, RATE, seconds, **options)
            say(f"{name}: {found[name].missed} of {found[name].frames} missed")
        except EdgesegError as error:
            say(f"{name}: {error}")
    return found


def checks(bundle: Bundle, counts: tuple[int, ...], repeats: int, seconds: float) -> list[CrossCheck]:
    found = []
    for precision in ("fp32", "int8"):
        for count in counts:
            found.append(cross_check(bundle, precision, count, repeats, seconds))
            say(f"benchmark_app {precision} {count}: ours / theirs {found[-1].ratio.value:.3f}")
    return found


def targets(overhead: tuple[float, int], apart: dict[str, tuple[float, float, float]], paced: dict[str, Paced],
            checked: list[CrossCheck]) -> list[Target]:
    alone = paced.get("alone")
    worst = max((v for *_, v in apart.values()), default=None)
    return [Target("harness around an empty call, us", overhead[0], "<=", 20, n=overhead[1]),
            Target("worst difference of a paired ratio between two runs", worst, "<=", 0.05, n=len(apart)),
            Target(f"INT8 at {RATE:g} frames/s, deadlines missed", alone and float(alone.missed), "<=", 0,
                   n=alone and alone.frames),
            *(Target(f"{c.precision.upper()}, {c.threads} thread(s): ours / benchmark_app, distance from 1",
                     abs(c.ratio.value - 1), "<=", TOLERANCE, n=c.ratio.n) for c in checked)]


def page(result: FullBench, document: dict[str, Any], rows: list[Target], apart: dict[str, Any],
         paced: dict[str, Paced], checked: list[CrossCheck]) -> str:
    ratios = [(name, f"{a:.3f}", f"{b:.3f}", f"{100 * off:.1f} %") for name, (a, b, off) in apart.items()]
    compared = [(c.precision.upper(), str(c.threads), f"{sorted(c.ours_ms)[len(c.ours_ms) // 2]:.3f}",
                 f"{sorted(c.theirs_ms)[len(c.theirs_ms) // 2]:.3f}", f"{c.ratio.value:.3f} [{c.ratio.low:.3f}, "
                 f"{c.ratio.high:.3f}]", c.why_not or "agrees") for c in checked]
    lines = [line.removeprefix("paced    ") for found in paced.values() for line in paced_line(found, result.rows)]
    return "\n".join([
        "# Bench", "", f"Commit {document['commit']}"
        f"{' with uncommitted changes' if document['changed_files'] else ''}, "
        f"`{document['command']}`; bundle `{result.rows.about['bundle']}`"
        + (", **busy while timing**" if document["busy"] else "") + ".", "",
        markdown_table(("what", "value", "95 %", "limit", "verdict"), [t.line() for t in rows]),
        "## One full bench", "", markdown(result),
        "## Paced streams of INT8", "", *(f"- {line}" for line in lines), "",
        f"## Two equal runs in a row ({document['repeat_seconds']:g} s a row), ratio of the networks' speeds", "",
        markdown_table(("rows", "first", "second", "apart"), ratios),
        "## Against benchmark_app", "",
        markdown_table(("network", "threads", "ours ms", "theirs ms", "ours / theirs", "verdict"), compared)])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--run", help="the bundle's run: its student in PyTorch")
    parser.add_argument("--teacher", help="nnunet:FOLDER")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row and mode")
    parser.add_argument("--repeat-seconds", type=float, default=20.0, help="of each row and mode in the two equal runs")
    parser.add_argument("--paced-seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--quick", action="store_true", help="tiny settings: proves that the script runs, nothing else")
    given = parser.parse_args()
    check_out(given.out)
    most = allowed_threads(None)
    counts = tuple(sorted({1, most}))
    wanted = Wanted(tuple(filter(None, (given.run, given.teacher))), counts, given.seconds, seed=given.seed, streams=0)
    if given.quick:
        given.paced_seconds, given.seconds, given.repeat_seconds = 0.2, 0.05, 0.05
        wanted = replace(wanted, seconds=0.05, streams=None, starts=1, against=wanted.against[:1])
    bundle = open_bundle(given.bundle)
    with tempfile.TemporaryDirectory(prefix="edgeseg-bench-") as scratch:
        frames = stored_frames(bundle, Path(scratch))
        overhead = harness(given.seconds, frames)
        say(f"harness: {overhead[0]:.2f} us a call")
        result = full_bench(given.bundle, wanted, lambda text, total: None)
        say("the rows twice")
        extra = [row for row in extra_rows(wanted.against, bundle, most, Path(scratch)) if row.job.backend != "torch"]
        twice = [bench_bundle(given.bundle, extra, [most], given.repeat_seconds, seed=given.seed + i) for i in (1, 2)]
        with Watch() as watch:
            paced = streams(bundle, most, given.paced_seconds, frames)
    others = {"paced streams": watch.others}
    with Watch() as watch:
        checked = checks(bundle, (most,), 1, 0.5) if given.quick else checks(bundle, counts, 5, 2.0)
    others["benchmark_app"] = watch.others
    apart = disagreement(*twice)
    rows = targets(overhead, apart, paced, checked)
    busy = result.busy or any(b.load["busy"] for b in twice) or is_busy(*others.values())
    document = {"schema": "edgeseg.bench-numbers/1", **provenance(), "busy": busy, "others": others,
                "repeat_seconds": given.repeat_seconds,
                "targets": [t.document() for t in rows], "bench": result.document(),
                "twice": [b.document() for b in twice], "paced": paced, "benchmark_app": checked}
    write_json(given.out / "bench.json", document)
    write_text(given.out / "bench.md", page(result, document, rows, apart, paced, checked))
    pictures(result, given.out)
    for t in rows:
        say("   ".join(t.line()))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgesegError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
