"""Modules of this package as processes of their own: a runtime or torch that must not share a process with the rest."""

import os
import subprocess
import sys
from pathlib import Path

from edgeseg.errors import EdgesegError

PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def command(module: str) -> list[str]:
    """-P keeps the current folder off the import path."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This process's, in which this package is found even when it is not installed."""
    paths = [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_module(module: str, *arguments: str, question: str = "",
               timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run `module` to its end, `question` on its standard input, its output as text.

    Raises:
        EdgesegError: no end after `timeout` s.
    """
    try:
        return subprocess.run([*command(module), *arguments], input=question, capture_output=True, text=True,
                              errors="replace", env=environment(), timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise EdgesegError(f"{module}: no answer for {timeout:.0f} s") from None


def last_words(code: int, said: str) -> str:
    """How a process ended, and the last thing that it said."""
    lines = said.strip().splitlines()
    return f"the measuring process ended with code {code}" + (f": {lines[-1].strip()}" if lines else "")
