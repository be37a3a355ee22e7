"""edgeseg calibrate: how much the INT8 files depend on the frames that calibrated them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.cli.options import CalibrationOption, recipe_path

if TYPE_CHECKING:
    from edgeseg.bundle.stability import Stability

Opt = typer.Option


def calibrate(
    run: Annotated[Path | None, typer.Argument(help="run folder (default: the latest in runs/)")] = None,
    stability: Annotated[int, Opt(help="how many resampled sets of frames to quantise with")] = 5,
    calibration: CalibrationOption = None,
    compare: Annotated[Path | None, Opt(parser=recipe_path, metavar="FILE",
                                        help="another recipe to hold against it")] = None,
    split: Annotated[str, Opt(help="labelled cases to score on: dev chooses, val only reports")] = "dev",
    threads: Annotated[int | None, Opt(help="CPU threads (default: what affinity and quota allow)")] = None,
    out: Annotated[Path | None, Opt(help="folder for stability.json")] = None,
    as_json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Quantise a run with several resampled sets of calibration frames and report the spread of Dice."""
    from edgeseg.bundle.recipe import CalibrationRecipe
    from edgeseg.bundle.stability import measure_stability
    from edgeseg.distill.run import Run, latest_run
    from edgeseg.measure.document import check_out, one_line, write_json

    check_out(out)
    recipe = CalibrationRecipe.load(calibration) if calibration else CalibrationRecipe()
    other = CalibrationRecipe.load(compare) if compare else None
    result = measure_stability(Run.open(run or latest_run()), recipe, stability, split, other, threads,
                               lambda line: typer.echo(f"calibrate  {line}", err=as_json))
    show(result)
    if out:
        typer.echo(f"wrote    {write_json(out / 'stability.json', result.document())}")
    if as_json:
        typer.echo(one_line(result.document()))


def show(result: "Stability") -> None:
    """A row a recipe and runtime, and what has to be said under them."""
    from edgeseg.cli.table import show as show_rows

    typer.echo(f"{result.run}: mean Dice on {result.patients} {result.split} patients of {result.data}")
    show_rows(table_rows(result))
    for backend in result.fp32:
        if result.others and (found := result.difference(backend)):
            ends = f" [{found.low:+.4f}, {found.high:+.4f}]" if found.n > 1 else ""
            names = f"{result.others.recipe.name} minus {result.own.recipe.name}"
            typer.echo(f"{names}, {backend}: {found.value:+.4f}{ends}, {found.n} patient(s)")
    for note in result.notes():
        typer.echo(f"note     {note}")


def table_rows(result: "Stability") -> list[tuple[str, ...]]:
    """FP32, then lowest, mean and highest of the sets, their spread, and the share of frames that two sets share."""
    from edgeseg.bundle.stability import mean

    rows: list[tuple[str, ...]] = [("recipe", "runtime", "FP32", "INT8 low", "mean", "high", "spread", "shared")]
    for sets in filter(None, (result.own, result.others)):
        for backend, fp32 in result.fp32.items():
            dice = sets.dice(backend)
            values = (mean(fp32), min(dice), sum(dice) / len(dice), max(dice), sets.spread(backend))
            rows.append((sets.recipe.name, backend, *(f"{v:.4f}" for v in values), f"{100 * sets.overlap:.0f} %"))
    return rows
