"""edgeseg predict: bundle + images -> masks."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgeseg.cli.options import BundleOrLatest, stream_count

if TYPE_CHECKING:
    from edgeseg.runtime.predict import Predicted

Opt = typer.Option


def predict(
    images: Annotated[list[Path], Opt("--images", "-i", help="NIfTI or DICOM files or folders; repeat for several")],
    masks: Annotated[Path, Opt("--masks", "-o", help="folder for the masks (or one file for one image)")],
    bundle: BundleOrLatest = None,
    backend: Annotated[str, Opt(help="openvino or onnxruntime")] = "openvino",
    precision: Annotated[str, Opt(help="auto, int8 or fp32")] = "auto",
    threads: Annotated[int | None, Opt(help="default: physical cores, at most the container's quota")] = None,
    streams: Annotated[str | None, Opt(
        help="for archives: so many networks at once, auto or a number (OpenVINO only)")] = None,
    overlay: Annotated[bool, Opt("--overlay", help="also write CASE.png, the labels drawn over the slices")] = False,
    form: Annotated[str, Opt("--format", help="nifti; or of DICOM images: dicom-seg, a DICOM segmentation (SEG) for "
                                              "each phase, or dicom-labelmap, the newer and smaller kind")] = "nifti",
    as_json: Annotated[bool, Opt("--json", help="print the results as one JSON line at the end")] = False,
) -> None:
    """Segment NIfTI images as nnUNetv2_predict does: masks of the same geometry and name, 4D cine included.

    Of DICOM files (found by content, in all folders below) each series becomes a NIfTI mask that lies over it, or with
    --format dicom-seg what `edgeseg serve dicom` makes of it: frames are then segmented one by one, as in every server,
    and not with the intensity statistics of their volume.
    """
    from edgeseg.container import latest_bundle
    from edgeseg.errors import EdgesegError
    from edgeseg.measure.document import one_line
    from edgeseg.runtime.predict import predict as run_predict
    from edgeseg.runtime.predict import predict_segs
    from edgeseg.runtime.segmenter import Segmenter
    from edgeseg.runtime.throughput import Throughput

    kinds: dict[str, Literal["BINARY", "LABELMAP"]] = {"dicom-seg": "BINARY", "dicom-labelmap": "LABELMAP"}
    if form != "nifti" and form not in kinds:
        raise EdgesegError(f"--format {form}: choose one of nifti, {', '.join(kinds)}")
    if overlay and form != "nifti":
        raise EdgesegError(f"--overlay: leave it out with --format {form}")
    count, path = stream_count(streams), bundle or latest_bundle()
    if count is not None and backend != "openvino":
        raise EdgesegError(f"--streams {streams}: only OpenVINO has streams: leave out --backend {backend}")
    segmenter = Segmenter(path, backend, precision, threads) if count is None else Throughput(
        path, precision, count or "auto", threads)
    typer.echo(f"predict  {segmenter.bundle.path.name}: {segmenter.backend} {segmenter.precision}, "
               f"{segmenter.threads} thread(s)", err=as_json)
    done = 0
    notes: list[str] = []

    def progress(result: "Predicted", total: int) -> None:
        nonlocal done
        done += 1
        if result.error and total == 1:
            return  # what the command ends with says it
        said = f"{result.frames} frames in {result.seconds:.2f} s" if not result.error else f"failed: {result.error}"
        typer.echo(f"         {done}/{total} {result.case}: {said}", err=as_json or bool(result.error))

    def note(line: str) -> None:
        notes.append(line)
        typer.echo(f"         {line}", err=True)

    if form == "nifti":
        results = run_predict(segmenter, images, masks, overlay, progress, note)
    else:
        results = predict_segs(segmenter, images, masks, kinds[form], progress, note)
    failed = [r for r in results if r.error]
    if as_json:
        typer.echo(one_line({"backend": segmenter.backend, "precision": segmenter.precision, "cases": results,
                             "notes": notes}))
    if failed:
        raise EdgesegError(failed[0].error if len(results) == 1 else
                           f"{len(failed)} of {len(results)} cases failed, each is named above")
    typer.echo(f"masks    {masks}", err=as_json)
