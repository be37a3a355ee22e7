"""edgeseg export: run -> bundle, which ends with admission."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeseg.cli.options import CalibrationOption
from edgeseg.errors import EdgesegError, GateFailed

if TYPE_CHECKING:
    from edgeseg.manifest import Gate

Opt = typer.Option


def export(
    run: Annotated[Path | None, typer.Argument(help="run folder (default: the latest in runs/)")] = None,
    int8: Annotated[bool, Opt("--int8/--no-int8", help="also quantise for both runtimes")] = True,
    out: Annotated[Path | None, Opt(help="bundle folder (default: RUN.edgeseg)")] = None,
    calibration: CalibrationOption = None,
    calibration_frames: Annotated[int | None, Opt(help="frames that set the INT8 scales")] = None,
    seed: Annotated[int | None, Opt(help="which frames")] = None,
    keep_ids: Annotated[bool, Opt("--keep-ids", help="ids of the frames in the sheet, not salted hashes")] = False,
    frame: Annotated[list[str] | None, Opt(help="frame graph for a protocol, as 256x216@1.40625; repeat")] = None,
    frame_precision: Annotated[str, Opt(help="of --frame: fp32,int8; int8 alone makes a small bundle")] = "fp32,int8",
    dtype: Annotated[str, Opt(help="pixels of --frame: uint8, int16, uint16, float32")] = "uint16",
    back: Annotated[str, Opt(help="from the small grid: logits (linear, then arg-max) or labels (nearest)")] = "logits",
    seconds: Annotated[float, Opt(help="of timing a row of the speed gate")] = 2.0,
    golden_from: Annotated[str | None, Opt(help="data set whose images become the golden frames")] = None,
    i_may_share_these: Annotated[bool, Opt("--i-may-share-these", help="with --golden-from")] = False,
    strict: Annotated[bool, Opt("--strict", help="exit with 3 when a gate is missed")] = False,
    force: Annotated[bool, Opt("--force", help="replace the bundle that is there")] = False,
    as_json: Annotated[bool, Opt("--json", help="print the manifest as one JSON line at the end")] = False,
) -> None:
    """Turn a run into a bundle: FP32 and INT8 for both runtimes, checked against the student, admitted on dev."""
    from dataclasses import replace

    from edgeseg.bundle.card import gate_rows
    from edgeseg.bundle.export import export_bundle, file_rows
    from edgeseg.bundle.graph import parse_protocol
    from edgeseg.bundle.recipe import CalibrationRecipe
    from edgeseg.cli.table import show
    from edgeseg.container import open_bundle
    from edgeseg.distill.run import Run, latest_run
    from edgeseg.runtime.backends import PRECISIONS

    if golden_from and not i_may_share_these:
        raise EdgesegError(f"--golden-from {golden_from}: puts images of this data into the bundle; if you may share "
                           "them, add --i-may-share-these")
    recipe = CalibrationRecipe.load(calibration) if calibration else CalibrationRecipe()
    recipe = replace(recipe, frames=recipe.frames if calibration_frames is None else calibration_frames,
                     seed=recipe.seed if seed is None else seed, keep_ids=keep_ids or recipe.keep_ids)
    protocols = tuple(parse_protocol(text, dtype, back) for text in frame or ())
    precisions = tuple(p for p in PRECISIONS if p in frame_precision.split(","))
    if not precisions or set(frame_precision.split(",")) - set(precisions):
        raise EdgesegError(f"--frame-precision {frame_precision}: choose fp32, int8 or fp32,int8")
    bundle = open_bundle(export_bundle(Run.open(run or latest_run()), out, int8, recipe, protocols, precisions, force,
                                       seconds, golden_from or "",
                                       lambda line: typer.echo(f"export   {line} ...", err=as_json)))
    measured = bundle.manifest.measured
    missed = [g for g in measured.admission.gates if not g.passed] if measured.admission else []
    if as_json:
        typer.echo(bundle.manifest.model_dump_json())
    else:
        show([("file", "size", "max |dlogit|", "labels as torch"), *file_rows(measured.checks)])
        if measured.admission:
            typer.echo(f"admission on {measured.admission.split}, {measured.admission.patients} patients")
            show(gate_rows(measured.admission.gates))
        else:
            typer.echo("admission  not possible: the data has no labelled dev cases, so FP32 stays the default")
        typer.echo(f"bundle   {bundle.path} (checked on {measured.frames} frames of {measured.frames_from})")
        typer.echo(f"next     edgeseg bench {bundle.path} --device cpu")
    if strict and int8 and not measured.admission:
        raise GateFailed("INT8 was not admitted: the data has no labelled dev cases to judge it on")
    verdict(missed, strict)


def verdict(missed: Sequence["Gate"], strict: bool) -> None:
    """Say which gates were missed; with `strict` that ends in exit code 3."""
    if not missed:
        return
    text = "; ".join(f"{g.subject}: {g.name} {number(g)} (limit {g.relation} {g.limit:g})" for g in missed)
    if strict:
        raise GateFailed(f"{len(missed)} gate(s) missed: {text}")
    typer.echo(f"caution  {len(missed)} gate(s) missed: {text}", err=True)


def number(gate: "Gate") -> str:
    """The tested number, `-` where the interval has no such end."""
    found = {"value": gate.estimate.value, "low": gate.estimate.low, "high": gate.estimate.high}[gate.tested]
    return "-" if found is None else f"{found:.4g}"
