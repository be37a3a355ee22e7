"""edgeseg evaluate: bundle + labelled data -> Dice, HD95, volumes, EF, mass, with intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeseg.cli.options import BundleOrLatest

if TYPE_CHECKING:
    from edgeseg.measure.evaluate import Evaluation
    from edgeseg.measure.statistics import Interval

Opt = typer.Option


def evaluate(
    bundle: BundleOrLatest = None,
    data: Annotated[str, Opt(help="acdc:DIR, mnms:DIR, nnunet:DIR, phantom:cine")] = "phantom:cine?n=30&seed=0",
    split: Annotated[str, Opt(help="train, dev, val, or all")] = "val",
    split_file: Annotated[Path | None, Opt(help="JSON with train/dev/val patients")] = None,
    precision: Annotated[str, Opt(help="auto, int8 or fp32")] = "auto",
    backend: Annotated[str, Opt(help="openvino or onnxruntime")] = "openvino",
    threads: Annotated[int | None, Opt(help="CPU threads (default: what affinity and quota allow)")] = None,
    seed: Annotated[int, Opt(help="of the bootstrap")] = 0,
    out: Annotated[Path | None, Opt(help="folder for cases.csv, patients.csv and evaluation.json")] = None,
    json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Compare a bundle's masks with manual labels, per structure and phase, and what a clinician reads from them."""
    from edgeseg.cli.progress import Progress
    from edgeseg.container import latest_bundle
    from edgeseg.measure.document import check_out, one_line
    from edgeseg.measure.evaluate import evaluate_bundle

    check_out(out)
    path = bundle or latest_bundle()
    with Progress("cases") as progress:
        result = evaluate_bundle(path, data, split, split_file, precision, backend, threads,
                                 lambda case, total: progress(case.id, total))
    show(result, seed)
    if out:
        typer.echo("wrote    " + ", ".join(str(p) for p in result.write(out, seed)))
    if json:
        typer.echo(one_line(result.document(seed)))


def show(result: "Evaluation", seed: int) -> None:
    """The summary as tables on stdout."""
    from rich.console import Console

    console, summary = Console(), result.summary(seed)
    console.print(f"{result.about.get('bundle', '')}: {summary['cases']} cases of {summary['patients']} patients, "
                  "mean over patients [95 % interval]")
    table = new_table("structure", "phase", "Dice", "HD95 mm", "n", "no HD95")
    for structure, phases in summary["structures"].items():
        for phase, cell in phases.items():
            table.add_row(structure, phase, text(cell["dice"], 3), text(cell["hd95_mm"], 1), str(cell["dice"].n),
                          str(cell["undefined"] or ""))
    console.print(table)
    if summary["clinical"]:
        console.print()
        table = new_table("read-out", "bias", "limits of agreement", "mean |difference|", "n")
        for name, found in summary["clinical"].items():
            limits = f"{found.limits[0]:.1f} to {found.limits[1]:.1f}"
            table.add_row(name, text(found.bias, 1), limits, text(found.mae, 1), str(found.n))
        console.print(table)
    for note in result.notes:
        console.print(f"note     {note}", markup=False)


def new_table(*names: str) -> Any:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True)
    return table


def text(interval: "Interval", digits: int) -> str:
    """`0.912 [0.890, 0.931]`; a dash for what is not defined."""
    if interval.value != interval.value:
        return "-"
    value = f"{interval.value:.{digits}f}"
    if interval.low != interval.low:
        return value
    return f"{value} \\[{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
