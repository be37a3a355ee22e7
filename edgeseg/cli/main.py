"""The `edgeseg` command: a thin file per command, errors as one line."""

import errno
import sys

import typer

from edgeseg.cli import bench, distill, evaluate, export, predict
from edgeseg.errors import EdgesegError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Distil a segmentation teacher into an INT8 student, prove it on this CPU, ship one torch-free bundle.",
)
app.command()(distill.distill)
app.command()(export.export)
app.command()(bench.bench)
app.command()(predict.predict)
app.command()(evaluate.evaluate)


def main() -> None:
    """Run the command line; bad input ends in one line and exit code 2, a missed gate in 3."""
    try:
        app()
    except EdgesegError as error:
        fail(str(error), error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT, errno.EDQUOT):
            raise
        fail(f"{error.filename or 'output'}: {error.strerror}", 2)


def fail(message: str, code: int) -> None:
    print("edgeseg: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
