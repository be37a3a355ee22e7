"""edgeseg bench: how fast a bundle is on this CPU, next to its teacher, and whether that is fast enough."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.errors import EdgesegError, GateFailed, Interrupted

if TYPE_CHECKING:
    from edgeseg.measure.bench import Bench
    from edgeseg.measure.latency import Latency
    from edgeseg.measure.statistics import Interval

Opt = typer.Option


def bench(
    bundle: Annotated[Path | None, typer.Argument(help="NAME.edgeseg (default: the latest in runs/)")] = None,
    device: Annotated[str, Opt(help="cpu")] = "cpu",
    target: Annotated[float, Opt(help="images per second to reach")] = 10.0,
    strict: Annotated[bool, Opt("--strict", help="exit code 3 when the target is missed")] = False,
    against: Annotated[Path | None, Opt(help="the teacher's network: a run folder or an .onnx file")] = None,
    threads: Annotated[int | None, Opt(help="threads of every row (default: what affinity and quota allow)")] = None,
    seconds: Annotated[float, Opt(help="counted time of each row, network and end to end")] = 5.0,
    seed: Annotated[int, Opt(help="of the order of turns and of the bootstrap")] = 0,
    out: Annotated[Path | None, Opt(help="folder for bench.json, bench.md and bench.png")] = None,
    json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Measure latency in every runtime and precision, in turns, each row in its own process, on phantom frames."""
    if device != "cpu":
        raise EdgesegError(f"--device {device}: there is no such device here, edgeseg measures on cpu")
    # A polite kill ends the run as Ctrl-C does: with what was measured so far.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from edgeseg.cli.progress import Progress
        from edgeseg.container import latest_bundle
        from edgeseg.measure.bench import bench_bundle
        from edgeseg.measure.document import check_out, one_line

        check_out(out)
        with Progress("starting") as progress:
            result = bench_bundle(bundle or latest_bundle(), against, threads, seconds, target, seed=seed,
                                  on_block=lambda block, total: progress(f"{block.row}, {block.mode}", total))
    except KeyboardInterrupt:
        raise Interrupted("bench: interrupted before the first measurement: nothing was written") from None
    finally:
        signal.signal(signal.SIGTERM, before)
    show(result)
    if out:
        typer.echo("wrote    " + ", ".join(str(p) for p in write(result, out)))
    if json:
        typer.echo(one_line(result.document()))
    if not result.complete:
        raise typer.Exit(Interrupted.exit_code)
    if strict and not result.target_met:
        raise GateFailed(f"{result.default_row} does not reach {target:g} images per second")


HEADER = ("row", "part", "p50 ms", "p90 ms", "p99 ms", "images/s", "calls")


def table_rows(result: "Bench") -> list[tuple[str, ...]]:
    """The table as text: two lines for a row that has an end-to-end path, one for a bare network."""
    lines = []
    for row in result.rows:
        name = row.name.removeprefix("student ") + (" FAILED" if row.failed else "")
        size = "x".join(str(n) for n in row.shape[1:])
        lines.append((name, f"net {size}", *numbers(row.network), str(row.network.n)))
        if row.end_to_end:
            lines.append(("", "end to end", *numbers(row.end_to_end), str(row.end_to_end.n)))
    return lines


def numbers(latency: "Latency") -> tuple[str, ...]:
    """p50, p90, p99 in ms and images per second; a dash for a percentile with too few calls."""
    times = tuple("-" if v is None else f"{v:.2f}" for v in (latency.p50_ms, latency.p90_ms, latency.p99_ms))
    return (*times, "-" if latency.images_per_second is None else f"{latency.images_per_second:.1f}")


def remarks(result: "Bench") -> list[str]:
    """What has to be said under the table."""
    machine, load = result.machine, result.load
    lines = [f"network  {row.name.removeprefix('student ')} is {times(r)} times as fast as "
             f"{other.removeprefix('student ')}" for row in result.rows for other, r in row.speed_up.items() if r.n]
    lines += [f"machine  {machine['cpu']}, {machine['cpus_affinity']} CPUs"
             + (f", quota {machine['cpu_quota']:g}" if machine["cpu_quota"] else "")
             + f", {result.about.get('threads')} thread(s) a row"]
    if result.about.get("against") is None and not any(r.role == "teacher" for r in result.rows):
        lines.append("teacher  not given (--against RUN)")
    if load["busy"]:
        lines.append(f"BUSY     others used {percent(load['others_before'])} of the CPUs before and "
                     f"{percent(load['others_during'])} during the run: do not quote these numbers")
    lines += [f"FAILED   {row.name}: {row.failed}" for row in result.rows if row.failed]
    if not result.complete:
        lines.append("INCOMPLETE  the run was ended early: what stands above is what was measured until then")
    met = {True: "reached", False: "MISSED", None: "not measured"}[result.target_met]
    lines.append(f"target   {result.target:g} images/s end to end, {result.default_row}: {met}")
    return lines


def times(ratio: "Interval") -> str:
    """`20.31 [19.80, 20.90]`; one block has no interval."""
    return f"{ratio.value:.2f}" + (f" [{ratio.low:.2f}, {ratio.high:.2f}]" if ratio.n > 1 else "")


def percent(share: float | None) -> str:
    return "an unknown share" if share is None else f"{100 * share:.0f} %"


def show(result: "Bench") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, table = Console(), Table(box=None, padding=(0, 2, 0, 0))  # 80 columns hold it
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("row", "part") else "right", no_wrap=True)
    for line in table_rows(result):
        table.add_row(*map(escape, line))
    console.print(table)
    for remark in remarks(result):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def write(result: "Bench", out: Path) -> list[Path]:
    """bench.json, bench.md and bench.png in `out`."""
    from edgeseg.measure.document import write_json, write_text
    from edgeseg.report.figures import latency_histograms

    shown = {f"{row.name}, {mode.replace('_', ' ')}": result.latencies[row.name, mode]
             for row in result.rows for mode in ("network", "end_to_end") if (row.name, mode) in result.latencies}
    return [write_json(out / "bench.json", result.document()), write_text(out / "bench.md", markdown(result)),
            latency_histograms(out / "bench.png", shown, result.target)]


def markdown(result: "Bench") -> str:
    lines = [HEADER, tuple("---" for _ in HEADER), *table_rows(result)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n\n".join(remarks(result)) + "\n"
