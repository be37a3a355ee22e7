"""edgeseg clips: bundle + ultrasound clips -> masks, ED and ES, EF, overlay videos."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.cli.options import BundleOrLatest
from edgeseg.errors import EdgesegError

if TYPE_CHECKING:
    from edgeseg.report.clips import ClipReading

Opt = typer.Option


def clips(
    images: Annotated[list[Path], Opt("--images", "-i", help="AVI, MP4 or multi-frame DICOM files, or folders")],
    out: Annotated[Path, Opt("--out", "-o", help="folder for what is written")],
    bundle: BundleOrLatest = None,
    backend: Annotated[str, Opt(help="openvino or onnxruntime")] = "openvino",
    precision: Annotated[str, Opt(help="auto, int8 or fp32")] = "auto",
    threads: Annotated[int | None, Opt(help="default: physical cores, at most the container's quota")] = None,
    pictures: Annotated[bool, Opt(help="write NAME.mp4 and NAME.png")] = True,
    as_json: Annotated[bool, Opt("--json", help="print the results as one JSON line at the end")] = False,
) -> None:
    """Read ultrasound clips as a stream: masks, ED and ES, ejection fraction, overlay video, EchoNet's size.csv."""
    from edgeseg.container import latest_bundle
    from edgeseg.measure.document import one_line
    from edgeseg.readers import open_data
    from edgeseg.report.clips import read_clips
    from edgeseg.runtime.stream import Stream

    if out.exists() and not out.is_dir():
        raise EdgesegError(f"{out}: is a file, not a folder: choose another -o")
    refs = [(ref.id, ref.load) for path in images for ref in open_data(f"video:{path}").refs]
    if len({name for name, _ in refs}) < len(refs):
        raise EdgesegError("two clips have one name: read them into folders of their own, one -i at a time")
    stream = Stream(bundle or latest_bundle(), backend, precision, threads)
    typer.echo(f"clips    {stream.bundle.path.name}: {stream.backend} {stream.precision}, {len(refs)} clip(s)",
               err=as_json)

    def say(found: "ClipReading") -> None:
        text = f"failed: {found.error}" if found.error else (
            f"{found.row()[1]} frames at {found.fps:.4g}/s, ED {list(found.phases.ed)}, ES {list(found.phases.es)}, "
            f"EF {found.ef:.0f} %" + (f", {len(found.flagged)} frames flagged: {found.flagged[0][1]}" if found.flagged
                                      else ""))
        typer.echo(f"         {found.name}: {text}", err=as_json or bool(found.error))
        for note in found.notes:
            typer.echo(f"         {found.name}: note: {note}", err=True)

    results = read_clips(stream, refs, out, pictures, say)
    if as_json:
        typer.echo(one_line([{"clip": r.name, "fps": r.fps, "ed": r.phases.ed, "es": r.phases.es, "ef": r.ef,
                              "flagged": r.flagged, "notes": r.notes, "error": r.error} for r in results]))
    if failed := [r for r in results if r.error]:
        raise EdgesegError(failed[0].error if len(results) == 1 else
                           f"{len(failed)} of {len(results)} clips failed, each is named above")
    typer.echo(f"wrote    {out}", err=as_json)
