"""The build's one step of its own: a wheel carries the shipped bundles with their licences, their sheets and the
recipes as package data (edgeseg/shipped.py finds them). Everything else is in pyproject.toml."""

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError

ROOT = Path(__file__).resolve().parent
RECIPES = ("calibration/*.toml", "calibration/*.sheet.json", "benchmarks/recipes/*.toml")


def shipped_files() -> Iterator[Path]:
    for pattern in RECIPES:
        yield from sorted(ROOT.glob(pattern))
    for bundle in sorted((ROOT / "export").glob("*.edgeseg")):
        yield from bundle_files(bundle)


def bundle_files(bundle: Path) -> Iterator[Path]:
    """SHA256SUMS and what it lists: a damaged bundle ends the build here, not at every user."""
    sums = bundle / "SHA256SUMS"
    if not sums.is_file():
        raise BaseError(f"{bundle}: has no SHA256SUMS: no bundle, take it out of export/")
    yield sums
    for line in sums.read_text("utf-8").splitlines():
        digest, _, name = line.partition("  ")
        file = bundle / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise BaseError(f"{file}: missing or changed since the bundle was made: restore it")
        yield file


class BuildWithShipped(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # found in the checkout, where they are
            return
        target = Path(self.build_lib, "edgeseg", "_shipped")
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build: a bundle refuses files that are not its own
        target.mkdir(parents=True)
        for file in shipped_files():
            copy = target / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


setup(cmdclass={"build_py": BuildWithShipped})
