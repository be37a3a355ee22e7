"""edgeseg sweep: one sweep file -> a run for every arm, grid value and seed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeseg.cli.options import recipe_path
from edgeseg.errors import EdgesegError

if TYPE_CHECKING:
    from edgeseg.distill.sweep_jobs import Progress

Opt = typer.Option
HEADER = ("run", "state", "epoch", "dev Dice", "left")


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP", parser=recipe_path,
                                         help="TOML file: base recipe, seeds, [[arms]], [grid]")],
    out: Annotated[Path, Opt(help="folder of the runs; what it holds already is not made again")],
    data: Annotated[list[str] | None, Opt(help="acdc:DIR, ...: in place of the base recipe's; repeat to merge")] = None,
    teacher: Annotated[str | None, Opt(help="multitask:FOLDER, ...: in place of the base recipe's")] = None,
    jobs: Annotated[int, Opt(min=1, help="runs at a time; dealt to the GPUs in CUDA_VISIBLE_DEVICES")] = 1,
    threads: Annotated[int, Opt(min=1, help="torch threads a run")] = 1,
    trust_checkpoint: Annotated[bool, Opt(help="unpickle a teacher checkpoint that needs it: it can run code")] = False,
) -> None:
    """Train every arm of an ablation with one schedule, budget and data. Given again, it goes on with what is there."""
    from edgeseg.cli.signals import first_one_ends
    from edgeseg.distill.sweep import Sweep
    from edgeseg.distill.sweep_jobs import run_sweep
    from edgeseg.errors import Interrupted
    from edgeseg.measure.document import check_out

    check_out(out)
    wanted = Sweep.load(file).changed({"data": tuple(data) if data else None, "teacher": teacher})
    with first_one_ends(), Shown() as shown:
        try:
            rows = run_sweep(wanted.runs(), out, jobs, threads, trust_checkpoint, shown)
        except KeyboardInterrupt:
            raise Interrupted(f"{out}: interrupted; the same command goes on with it") from None
    failed = [r for r in rows if r.state == "failed"]
    for row in failed:
        typer.echo(f"failed   {row.planned.name}: {row.why}", err=True)
    typer.echo(f"sweep    {out}: {len(rows) - len(failed)} of {len(rows)} runs finished")
    if failed:
        raise EdgesegError(f"{len(failed)} of {len(rows)} runs failed (what each said: {out}/.sweep/NAME.log); "
                           "the same command tries them again")
    typer.echo(f"next     edgeseg compare '{out}/{rows[0].planned.arm}'-s* '{out}'/*")


class Shown:
    """The progress of all runs: a live table on a terminal, else a line when a run begins, ends or has a new dev Dice.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        console = Console()
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.said: dict[str, tuple[Any, ...]] = {}

    def __call__(self, rows: "list[Progress]") -> None:
        if self.live:
            self.live.update(table(rows), refresh=True)
            return
        for row in rows:
            news = (row.state, row.dice)
            if news != self.said.setdefault(row.planned.name, ("waiting", None)):
                self.said[row.planned.name] = news
                typer.echo(line(row, rows))

    def __enter__(self) -> "Shown":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.live:
            self.live.stop()


def cells(row: "Progress") -> tuple[str, ...]:
    left = "" if row.left is None or row.state == "done" else f"{row.left / 60:.1f} min"
    return (row.planned.name, row.state, f"{row.epoch}/{row.epochs}", "" if row.dice is None else f"{row.dice:.4f}",
            left)


def line(row: "Progress", rows: "list[Progress]") -> str:
    name, state, epoch, dice, left = cells(row)
    ended = sum(r.state in ("done", "failed") for r in rows)
    parts = [f"epoch {epoch}", f"dev Dice {dice}" if dice else "", f"{left} left" if left else "",
             f"({ended} of {len(rows)} runs ended)" if state in ("done", "failed") else ""]
    return f"{state:<10}{name}  " + "  ".join(p for p in parts if p)


def table(rows: "list[Progress]") -> Any:
    from rich.table import Table

    made = Table(box=None, padding=(0, 2, 0, 0))
    for name in HEADER:
        made.add_column(name, no_wrap=True)
    colours = {"done": "green", "failed": "red", "training": "bold", "preparing": "bold"}
    for row in rows:
        made.add_row(*cells(row), style=colours.get(row.state, "dim"))
    return made
