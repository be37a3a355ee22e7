"""Tables and lines of text in a terminal."""

from collections.abc import Sequence

import typer


def show(rows: Sequence[Sequence[str]], indent: int = 9) -> None:
    """Print rows in columns; 9 is where the text behind a line's first word begins."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say(" " * indent + "   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def say(text: str) -> None:
    """Print what may come from a manifest: whoever wrote it must not reach the terminal's control characters."""
    typer.echo("".join(c if c.isprintable() or c == "\n" else "?" for c in text))
