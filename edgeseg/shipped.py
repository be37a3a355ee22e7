"""What edgeseg ships: bundles by name, and the recipes, wherever this edgeseg is installed.

In a wheel they are package data below edgeseg/_shipped (setup.py puts them there); in a checkout, and in an editable
install of one, they lie where git has them. In both: export/NAME.edgeseg, calibration/*.toml and the sheets of the
bundles as calibration/NAME.sheet.json, benchmarks/recipes/*.toml.
"""

from pathlib import Path

from edgeseg.errors import EdgesegError

PACKAGE = Path(__file__).resolve().parent
SUFFIX = ".edgeseg"


def root() -> Path:
    """The folder that holds export/, calibration/ and benchmarks/recipes/."""
    packaged = PACKAGE / "_shipped"
    return packaged if packaged.is_dir() else PACKAGE.parent


def names() -> tuple[str, ...]:
    """Names of the shipped bundles; none when this edgeseg came without."""
    found = (root() / "export").glob(f"*{SUFFIX}")
    return tuple(sorted(p.name.removesuffix(SUFFIX) for p in found if p.is_dir() and not p.name.startswith(".")))


def find(name: str) -> Path:
    """Folder of the shipped bundle `name`, not opened yet.

    Raises:
        EdgesegError: there is none of that name; it lists those that there are.
    """
    if name not in (known := names()):
        raise EdgesegError(f"{name}: no such bundle: name a folder or zip that `edgeseg export` made, or a shipped "
                           f"bundle ({', '.join(known) or 'there is none in this installation'})")
    return root() / "export" / f"{name}{SUFFIX}"


def recipe(path: Path | str) -> Path:
    """`path` if it exists; else the shipped file of that name, as calibration/cine.toml; else `path`, for others to
    refuse."""
    given = Path(path)
    shipped = root() / given
    return shipped if not given.exists() and ".." not in given.parts and shipped.is_file() else given
