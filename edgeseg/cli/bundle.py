"""edgeseg bundle: look at bundles, check them, and pack them into one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from edgeseg.cli.options import BundleArg
from edgeseg.cli.table import say, show

if TYPE_CHECKING:
    from edgeseg.container import Bundle
    from edgeseg.manifest import Manifest, Scores

Arg, Opt = typer.Argument, typer.Option
app = typer.Typer(no_args_is_help=True, help="Look at bundles, check them, pack them into one file.")

Json = Annotated[bool, Opt("--json", help="print the result as one JSON line at the end")]
Force = Annotated[bool, Opt("--force", help="replace the bundle that is there")]


@app.command("list")
def list_bundles(root: Annotated[Path | None, Arg(help="folder with bundles, or one bundle (default: what is shipped "
                                                       "with edgeseg)")] = None, as_json: Json = False) -> None:
    """The shipped bundles, by the name that every command takes; or, with ROOT, every bundle in that folder.

    Of each: task, mean Dice, where INT8 is admitted, size, licence; of damaged ones the reason.
    """
    from edgeseg import shipped
    from edgeseg.measure.document import one_line

    rows = ([summary(path, path.name) for path in bundles_in(root)] if root else
            [summary(shipped.find(name), name) for name in shipped.names()])
    if as_json:
        typer.echo(one_line(rows))
        return
    if not rows:
        say(f"no bundle in {root}" if root else "no bundle is shipped with this installation: `edgeseg bundle list "
            "FOLDER` shows those of a folder")
        return
    good = [(r["name"], r["task"], r["dice_text"], r["int8"], f"{r['bytes'] / 1e6:.1f} MB", r["licence"])
            for r in rows if not r["error"]]
    if good:
        show([("bundle", "task", "mean Dice [95 %]", "INT8 admitted", "size", "licence"), *good], indent=2)
    for r in rows:
        if r["error"]:
            say(f"damaged  {r['error']}")


@app.command()
def inspect(bundle: BundleArg, as_json: Json = False) -> None:
    """What the manifest of a bundle says, for a person."""
    from edgeseg.container import open_bundle
    from edgeseg.measure.document import one_line

    opened = open_bundle(bundle)
    if as_json:
        typer.echo(one_line({"bundle": bundle, "files": sizes(opened), "manifest": opened.manifest.model_dump()}))
        return
    show_manifest(opened)


@app.command()
def verify(bundle: BundleArg, as_json: Json = False) -> None:
    """Check the hash of every file (`edgeseg verify` replays the golden frames as well)."""
    from edgeseg.container import SUMS, open_bundle
    from edgeseg.measure.document import one_line

    files = sizes(open_bundle(bundle))
    count = len(files) - 1  # SHA256SUMS holds the others' hashes
    if as_json:
        typer.echo(one_line({"bundle": bundle, "files": count, "bytes": sum(files.values())}))
        return
    say(f"bundle   {bundle}: {count} files, each as {SUMS} has it (accidents show, intent does not)")


@app.command()
def pack(bundle: BundleArg, out: Annotated[Path, Arg(metavar="ZIP", help="file to write")], force: Force = False,
         as_json: Json = False) -> None:
    """Write a bundle as one zip file, which every command takes in place of the folder."""
    from edgeseg.bundle.pack import pack as write
    from edgeseg.container import sha256
    from edgeseg.measure.document import one_line

    write(bundle, out, force)
    size, digest = out.stat().st_size, sha256(out)
    if as_json:
        typer.echo(one_line({"zip": out, "bytes": size, "sha256": digest}))
        return
    say(f"packed   {out}: {size / 1e6:.2f} MB, SHA-256 {digest}")


@app.command()
def unpack(packed: Annotated[Path, Arg(metavar="ZIP", help="file that `pack` made")],
           folder: Annotated[Path, Arg(metavar="FOLDER", help="bundle folder to write")], force: Force = False,
           as_json: Json = False) -> None:
    """Unpack a zip into a bundle folder once everything in it was checked."""
    from edgeseg.bundle.pack import unpack as write
    from edgeseg.measure.document import one_line

    files = sizes(write(packed, folder, force))
    if as_json:
        typer.echo(one_line({"bundle": folder, "files": len(files) - 1, "bytes": sum(files.values())}))
        return
    say(f"bundle   {folder}: {len(files) - 1} files, every hash right")


def bundles_in(root: Path) -> list[Path]:
    """Bundle folders and packed bundles (NAME.edgeseg, NAME.edgeseg.zip) in `root`, or `root` itself if it is one."""
    from edgeseg.container import SUFFIX, SUMS
    from edgeseg.errors import EdgesegError

    if root.is_file() or (root / SUMS).is_file():
        return [root]
    if not root.is_dir():
        raise EdgesegError(f"{root}: no such folder: name one that holds bundles")
    found = [p for pattern in (f"*{SUFFIX}", f"*{SUFFIX}.zip") for p in root.glob(pattern) if p.name[0] != "."]
    return sorted(found)


def summary(path: Path, name: str) -> dict[str, Any]:
    """What `list` says of the bundle at `path`; `error` is why it cannot be opened, or None."""
    from edgeseg.container import open_bundle
    from edgeseg.errors import EdgesegError

    try:
        bundle = open_bundle(path)
    except EdgesegError as error:
        return {"path": path, "name": name, "error": str(error)}
    except OSError as error:  # others' bundles: one that may not be read is no reason to show none
        return {"path": path, "name": name, "error": f"{error.filename or path}: {error.strerror}"}
    m, best = bundle.manifest, shown_score(bundle.manifest)
    return {"path": path, "name": name, "error": None, "bytes": sum(sizes(bundle).values()),
            "int8": int8_state(bundle), "task": m.task, "licence": m.licences.get("weights", "not stated"),
            "data": m.data.name, "dice": best.model_dump() if best else None, "dice_text": dice_text(m, best)}


def dice_text(m: "Manifest", found: "Scores | None") -> str:
    """`0.906 [0.887, 0.920] (acdc val, n 20, openvino int8)`."""
    if found is None:
        return "not measured"
    e = found.dice["mean"]
    ends = f" [{e.low:.3f}, {e.high:.3f}]" if e.low is not None and e.high is not None else ""
    return f"{e.value:.3f}{ends} ({m.data.name} {found.split}, n {e.n}, {found.backend} {found.precision})"


def sizes(bundle: "Bundle") -> dict[str, int]:
    return {name: bundle.file(name).stat().st_size for name in sorted(bundle.files)}


def int8_state(bundle: "Bundle") -> str:
    """The runtimes whose INT8 is admitted, or why there is none."""
    from edgeseg.manifest import BackendName

    if not any(".int8." in name for name in bundle.files):
        return "no INT8"
    found = bundle.manifest.measured.admission
    if found is None:
        return "not tested"
    return ", ".join(b for b in get_args(BackendName) if found.admitted(b, "int8")) or "none"


def shown_score(m: "Manifest") -> "Scores | None":
    """The score that one number stands for: val before dev; INT8 where it is admitted, otherwise FP32."""
    found = [s for s in m.measured.scores if "mean" in s.dice]
    admitted = m.measured.admission.admitted if m.measured.admission else lambda *_: False

    def rank(s: "Scores") -> tuple[bool, bool, bool]:
        wanted = s.precision == "int8" and admitted(s.backend, "int8")
        return s.split == "val", wanted, s.precision == "fp32"

    return max(found, key=rank, default=None)


def show_manifest(bundle: "Bundle") -> None:
    from edgeseg.bundle import card

    m = bundle.manifest
    files = sizes(bundle)
    say(f"bundle   {m.name}: {m.task} ({m.intended_use} use)")
    say(f"licence  {m.licences.get('weights', 'not stated')}; data {m.data.name} ({m.data.licence})")
    say(f"student  {m.student.get('family', 'unknown')}, teacher {m.teacher.get('folder', 'none')}")
    say(f"size     {sum(files.values()) / 1e6:.2f} MB in {len(files)} files; made with "
        f"{', '.join(f'{k} {v}' for k, v in m.versions.items()) or 'unknown versions'}")
    for title, text in (("INPUT AND OUTPUT", card.input_and_output(m)), ("CALIBRATION", card.calibration(m)),
                        ("DICE", card.dice(m)), ("ADMISSION", card.admission(m)),
                        ("SPEED", card.speed(m.measured.speeds)), ("STREAMS", card.frames(m)),
                        ("FILES", card.files(m))):
        say(f"\n{title}\n{text}")
