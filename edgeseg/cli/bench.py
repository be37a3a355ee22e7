"""edgeseg bench: how fast a bundle is on this CPU, next to its teacher, and whether that is fast enough."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.cli.options import BundleOrLatest, stream_count, whole_numbers
from edgeseg.cli.signals import first_one_ends
from edgeseg.errors import EdgesegError, GateFailed, Interrupted

if TYPE_CHECKING:
    from edgeseg.report.bench import FullBench

Opt = typer.Option


def bench(
    bundle: BundleOrLatest = None,
    device: Annotated[str, Opt(help="cpu")] = "cpu",
    target: Annotated[float, Opt(help="images per second to reach")] = 10.0,
    strict: Annotated[bool, Opt("--strict", help="exit code 3 when the target is missed")] = False,
    against: Annotated[list[str] | None, Opt(
        help="RUN (its student in PyTorch, its teacher's network), X.onnx, nnunet:MODEL_FOLDER; repeatable")] = None,
    threads: Annotated[str, Opt(
        help="threads of every row, or several counts: 1,2 (default: what affinity and quota allow)")] = "",
    seconds: Annotated[float, Opt(help="counted time of each row, network and end to end")] = 5.0,
    rate: Annotated[float | None, Opt(help="also a paced stream: frames a second, as 10, 25 or 50")] = None,
    rate_seconds: Annotated[float, Opt(help="length of the paced stream in s")] = 60.0,
    stress: Annotated[int, Opt(help="busy processes beside the paced stream, on the same CPUs")] = 0,
    quota: Annotated[float | None, Opt(help="CPUs that the paced stream may use, by a cgroup of its own")] = None,
    streams: Annotated[str | None, Opt(help="also a whole exam, files to masks: auto or a number of streams")] = None,
    starts: Annotated[int, Opt(help="warm starts of each row for the time to its first mask, 0 for none")] = 3,
    ceilings: Annotated[bool, Opt(help="what this CPU could do at best, and the five costliest layers")] = True,
    cross_check: Annotated[bool, Opt("--cross-check", help="the same network in openvino's benchmark_app")] = False,
    seed: Annotated[int, Opt(help="of the order in which rows take turns")] = 0,
    out: Annotated[Path | None, Opt(help="folder for bench.json, bench.md and pictures")] = None,
    json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Measure latency in every runtime and precision, in turns, each row in its own process, on phantom frames."""
    if device != "cpu":
        raise EdgesegError(f"--device {device}: there is no such device here, edgeseg measures on cpu")
    with first_one_ends():
        try:
            from edgeseg.cli.progress import Progress
            from edgeseg.container import latest_bundle
            from edgeseg.measure.document import check_out, one_line
            from edgeseg.report.bench import Wanted, full_bench

            check_out(out)
            wanted = Wanted(tuple(against or ()), whole_numbers(threads, "--threads"), seconds, target, seed, rate,
                            rate_seconds, stress, quota, stream_count(streams), starts, ceilings, cross_check)
            with Progress("starting") as progress:
                result = full_bench(bundle or latest_bundle(), wanted, progress)
        except KeyboardInterrupt:
            raise Interrupted("bench: interrupted before the first measurement: nothing was written") from None
        show(result)
        if out:
            typer.echo("wrote    " + ", ".join(str(p) for p in write(result, out)))
        if json:
            typer.echo(one_line(result.document()))
    end(result, strict)


def end(result: "FullBench", strict: bool) -> None:
    """The exit code: 130 interrupted, 3 a strict target missed, 2 something failed or could not be judged."""
    rows = result.rows
    if result.interrupted:
        raise typer.Exit(Interrupted.exit_code)
    if strict and rows.target_met is False:
        raise GateFailed(f"{rows.default_row} does not reach {rows.target:g} images per second")
    if result.failures:
        raise EdgesegError(f"not everything was measured: {result.failures[0]}")
    if strict and rows.target_met is None:
        raise EdgesegError(f"{rows.default_row}: too few calls to say whether it reaches {rows.target:g} images per "
                           "second: raise --seconds")


def show(result: "FullBench") -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from edgeseg.report.bench_text import TABLES, remarks

    console = Console()
    for header, lines in TABLES.items():
        table = Table(box=None, padding=(0, 2, 0, 0))  # 80 columns hold it
        for name in header:
            table.add_column(name, justify="left" if name in ("row", "part") else "right", no_wrap=True)
        for line in lines(result.rows):
            table.add_row(*map(escape, line))
        console.print(table)
    for remark in remarks(result):
        console.print(remark, markup=False, highlight=False, soft_wrap=True)


def write(result: "FullBench", out: Path) -> list[Path]:
    """bench.json, bench.md and the pictures in `out`."""
    from edgeseg.measure.document import write_json, write_text
    from edgeseg.report.bench_text import markdown, pictures

    return [write_json(out / "bench.json", result.document()), write_text(out / "bench.md", markdown(result)),
            *pictures(result, out)]
