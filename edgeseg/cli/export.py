"""edgeseg export: run -> bundle."""

from pathlib import Path
from typing import Annotated

import typer

Opt = typer.Option


def export(
    run: Annotated[Path | None, typer.Argument(help="run folder (default: the latest in runs/)")] = None,
    int8: Annotated[bool, Opt("--int8/--no-int8", help="also quantise for both runtimes")] = True,
    out: Annotated[Path | None, Opt(help="bundle folder (default: RUN.edgeseg)")] = None,
    calibration_frames: Annotated[int, Opt(help="training frames that set the INT8 scales")] = 100,
    seed: Annotated[int, Opt(help="which training frames")] = 0,
    force: Annotated[bool, Opt("--force", help="replace the bundle that is there")] = False,
    as_json: Annotated[bool, Opt("--json", help="print the manifest as one JSON line at the end")] = False,
) -> None:
    """Turn a run into a bundle: ONNX and OpenVINO IR, FP32 and INT8, each checked against the trained student."""
    from edgeseg.bundle.export import export_bundle, file_rows
    from edgeseg.container import open_bundle
    from edgeseg.distill.run import Run, latest_run

    bundle = open_bundle(export_bundle(Run.open(run or latest_run()), out, int8, calibration_frames, seed, force,
                                       lambda line: typer.echo(f"export   {line} ...", err=as_json)))
    if as_json:
        typer.echo(bundle.manifest.model_dump_json())
        return
    measured = bundle.manifest.measured
    rows = [("file", "size", "max |dlogit|", "labels as torch"), *file_rows(measured.checks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("         " + "   ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    typer.echo(f"bundle   {bundle.path} (checked on {measured.frames} frames of {measured.frames_from})")
    typer.echo(f"next     edgeseg bench {bundle.path} --device cpu")
