"""Bundle: a folder, or a zip of it, whose hashes are checked before anything in it is read.

    NAME.edgeseg/
      manifest.json    `manifest.Manifest`     SHA256SUMS    every other file, exactly those that are there
      model.fp32.onnx  model.fp32.xml/.bin     model.int8.onnx  model.int8.xml/.bin (without --no-int8)
      frames/PROTOCOL/{fp32,int8}.{onnx,xml,bin}             (one folder for each --frame)
      golden.npz       metadata.json  MODEL_CARD.md  LICENSE

Needs only the standard library, numpy and pydantic. Hashes detect accidents, not intent.
"""

import hashlib
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edgeseg import shipped
from edgeseg.archive import Archive, is_safe
from edgeseg.errors import EdgesegError
from edgeseg.labels import LabelScheme
from edgeseg.manifest import Manifest, preprocessing_of
from edgeseg.preprocess import Preprocessing

SUFFIX = shipped.SUFFIX
MANIFEST = "manifest.json"
METADATA = "metadata.json"
SUMS = "SHA256SUMS"
SUM_LINE = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\\]+)")


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every hash was right when it was opened. `files` are the names that it holds.

    Keep the Bundle, not only its `path`: of a zip that is a temporary folder, gone when the Bundle is.
    """

    path: Path
    manifest: Manifest
    files: frozenset[str]

    @cached_property
    def preprocessing(self) -> Preprocessing:
        return preprocessing_of(self.manifest.preprocessing)

    @cached_property
    def scheme(self) -> LabelScheme:
        return LabelScheme(self.manifest.labels.names, self.manifest.labels.values)

    def file(self, name: str) -> Path:
        """Path of a file of the bundle; EdgesegError when it has none of that name."""
        if name not in self.files:
            raise EdgesegError(f"{self.path}: this bundle has no {name}; it holds {', '.join(sorted(self.files))}")
        return self.path / name


def locate(bundle: Path | str) -> Path:
    """Where a bundle is that a person named: what lies at that path, or else the shipped bundle of that name.

    Raises:
        EdgesegError: neither; or a folder that is no bundle has the name of a shipped one, which it hides.
    """
    path = Path(bundle)
    if not path.exists():
        return shipped.find(str(bundle))
    if str(bundle) in shipped.names() and path.is_dir() and not (path / SUMS).is_file():
        raise EdgesegError(f"{bundle}: this folder is no bundle, and a path goes before the shipped bundle of its "
                           f"name: start elsewhere, rename the folder, or name {shipped.find(str(bundle))}")
    return path


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle folder, a zip that `edgeseg bundle pack` made, or a shipped bundle by its name (`locate`): every
    hash first, then the manifest.

    A zip is unpacked into a temporary folder, the `path` of the Bundle, which is removed with the Bundle.

    Raises:
        EdgesegError: no bundle, a changed, missing or extra file, a link, a name that leaves the folder, a manifest
            that this version cannot read, or one that names what is not there.
    """
    folder = locate(path)
    if folder.is_file():
        return open_packed(folder)
    if not folder.is_dir():
        raise EdgesegError(f"{folder}: no bundle: name a folder or zip that `edgeseg export` made")
    if folder.is_symlink():
        folder = folder.resolve()
    sums = read_sums(folder)
    present = list_files(folder)
    compare_names(folder, sums, present)
    for name, digest in sums.items():
        if sha256(folder / name) != digest:
            raise EdgesegError(f"{folder / name}: changed since the bundle was made: copy the bundle again")
    bundle = Bundle(folder, Manifest.read(folder / MANIFEST), frozenset(present))
    check_parts(bundle)
    return bundle


def open_packed(path: Path) -> Bundle:
    holder = tempfile.mkdtemp(prefix="edgeseg-")
    try:
        name = path.name.removesuffix(".zip").removesuffix(SUFFIX) + SUFFIX
        bundle = extract(path, Path(holder, name))
    except BaseException:
        shutil.rmtree(holder, ignore_errors=True)
        raise
    weakref.finalize(bundle, shutil.rmtree, holder, ignore_errors=True)  # also at the end of the process
    return bundle


def extract(path: Path, folder: Path) -> Bundle:
    """Unpack the zip `path` into `folder`, which is empty or not there, and open it; errors name the zip.

    Nothing is written before the zip's directory was checked and found to list the files of SHA256SUMS.
    """
    with Archive(path) as archive:
        if SUMS not in archive.names:
            raise EdgesegError(f"{path}: no bundle (it has no {SUMS}): `edgeseg bundle pack` makes one")
        compare_names(path, parse_sums(path / SUMS, archive.read(SUMS)), archive.names)
        folder.mkdir(exist_ok=True)
        archive.extract(folder)
    try:
        return open_bundle(folder)
    except EdgesegError as error:
        raise EdgesegError(str(error).replace(str(folder), str(path))) from None


def compare_names(where: Path, sums: dict[str, str], present: Set[str]) -> None:
    """Refuse a bundle that does not hold exactly the files that its SHA256SUMS lists."""
    if missing := sorted(set(sums) - present):
        raise EdgesegError(f"{where / missing[0]}: missing, but {SUMS} lists it: copy the bundle again")
    if extra := sorted(present - set(sums) - {SUMS}):
        raise EdgesegError(f"{where / extra[0]}: does not belong to this bundle ({SUMS} does not list it): remove it")
    if MANIFEST not in sums:
        raise EdgesegError(f"{where}: the bundle has no {MANIFEST}: copy it again")


def check_parts(bundle: Bundle) -> None:
    """Refuse an IR without its weights, and a frame protocol whose name is no folder of the bundle."""
    for name in sorted(bundle.files):
        if name.endswith(".xml") and (weights := name.removesuffix(".xml") + ".bin") not in bundle.files:
            raise EdgesegError(f"{bundle.path / weights}: missing, and {name} is nothing without it: export again")
    for protocol in bundle.manifest.frames:
        if not any(re.fullmatch(rf"frames/{re.escape(protocol.name)}/[^/]+", name) for name in bundle.files):
            raise EdgesegError(f"{bundle.path / MANIFEST}: names the frame protocol {protocol.name!r}, of which the "
                               "bundle has no file: export again")


def write_sums(folder: Path) -> None:
    """Write SHA256SUMS over every other file of `folder` (the format of `sha256sum`, sorted by name)."""
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(list_files(folder) - {SUMS})]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """File name -> hash.

    Raises:
        EdgesegError: no SHA256SUMS, a malformed line, a name twice, or a name that leaves the folder.
    """
    path = folder / SUMS
    if path.is_symlink() or not path.is_file():
        raise EdgesegError(f"{folder}: no bundle (it has no {SUMS}): name a folder that `edgeseg export` made")
    return parse_sums(path, path.read_bytes())


def parse_sums(path: Path, content: bytes) -> dict[str, str]:
    """`content` of SHA256SUMS -> file name -> hash; errors (see `read_sums`) name `path`."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise EdgesegError(f"{path}: damaged: copy the bundle again") from None
    sums: dict[str, str] = {}
    for line in text.removesuffix("\n").split("\n"):  # not splitlines: it takes other characters for line ends too
        match = SUM_LINE.fullmatch(line)
        if not match or match[2] in sums or not text.endswith("\n"):
            raise EdgesegError(f"{path}: damaged (line {line[:80]!r}): copy the bundle again")
        if not is_safe(match[2]):
            raise EdgesegError(f"{path}: the name {match[2]!r} leaves the bundle: do not use this bundle")
        sums[match[2]] = match[1]
    return sums


def list_files(folder: Path) -> set[str]:
    """Names of all files below `folder`, with forward slashes; EdgesegError for a link or anything but a file."""
    found = set()
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(parent, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise EdgesegError(f"{path}: a bundle holds plain files only, no links: do not use this bundle")
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in files}
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def latest_bundle(root: Path = Path("runs")) -> Path:
    """The bundle below `root` that was made last.

    Raises:
        EdgesegError: there is none.
    """
    found = sorted(root.glob(f"*{SUFFIX}/{MANIFEST}"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise EdgesegError(f"no bundle in {root}/: `edgeseg export` makes one, or name a bundle folder")
    return found[-1].parent
