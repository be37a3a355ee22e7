"""The `edgeseg` command: a thin file per command, errors as one line."""

import errno
import io
import signal
import sys
from typing import Annotated

import typer

from edgeseg import __version__
from edgeseg.cli import (
    admit,
    bench,
    bundle,
    calibrate,
    clips,
    compare,
    distill,
    evaluate,
    export,
    judge,
    predict,
    search,
    serve,
    sweep,
    targets,
    train_teacher,
    verify,
)
from edgeseg.errors import EdgesegError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil a segmentation teacher into an INT8 student, prove it on this CPU, ship one torch-free bundle.",
)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeseg {__version__}")
        raise typer.Exit


@app.callback()
def options(version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True,
                                                  help="Show the version and exit.")] = False) -> None:
    """Options of `edgeseg` itself."""


app.command()(distill.distill)
app.command()(search.search)
app.command()(sweep.sweep)
app.command()(targets.targets)
app.command()(train_teacher.train_teacher)
app.command()(calibrate.calibrate)
app.command()(export.export)
app.command()(admit.admit)
app.command()(bench.bench)
app.command()(verify.verify)
app.command()(predict.predict)
app.command()(clips.clips)
app.command()(evaluate.evaluate)
app.command()(compare.compare)
app.command()(judge.judge)
app.add_typer(serve.app, name="serve")
app.add_typer(bundle.app, name="bundle")


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2, a missed gate in 3."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # through a pipe (`| tee log`) progress is seen as it is made too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: temporary folders, which hold images, go
    try:
        app()
    except EdgesegError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        # of a disk that fills up while a file is written the system names none
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail(f"{error.filename or 'output'}: {error.strerror or error}", 2)


def fail(message: str, code: int) -> None:
    print("edgeseg: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
