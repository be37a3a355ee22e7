"""Arguments and options that several commands read."""

from pathlib import Path
from typing import Annotated

import typer

from edgeseg.errors import EdgesegError


def bundle_path(text: str) -> Path:
    """A bundle argument: a path, or the name of a shipped bundle; the text itself, as Path("./cine") is "cine"."""
    from edgeseg.container import locate

    return locate(text)


def recipe_path(text: str) -> Path:
    """A recipe file, or a shipped one by the name that it has in the repository."""
    from edgeseg.shipped import recipe

    return recipe(text)


BUNDLE = "bundle folder or zip, or a shipped bundle's name"
BundleArg = Annotated[Path, typer.Argument(metavar="BUNDLE", parser=bundle_path, help=BUNDLE)]
BundleOrLatest = Annotated[Path | None, typer.Argument(metavar="BUNDLE", parser=bundle_path,
                                                       help=f"{BUNDLE} (default: the latest in runs/)")]
CalibrationOption = Annotated[Path | None, typer.Option(parser=recipe_path, metavar="FILE",
                                                        help="calibration recipe, as calibration/cine.toml")]


def whole_numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,2` as (1, 2)."""
    try:
        return tuple(int(word) for word in text.split(",")) if text else ()
    except ValueError:
        raise EdgesegError(f"{option} {text}: write whole numbers, as 1,2") from None


def stream_count(text: str | None) -> int | None:
    """None: not asked for; 0: auto."""
    if text is None or text == "auto":
        return None if text is None else 0
    if (count := whole_numbers(text, "--streams")) and len(count) == 1 and count[0] > 0:
        return count[0]
    raise EdgesegError(f"--streams {text}: write auto or a number above 0")
