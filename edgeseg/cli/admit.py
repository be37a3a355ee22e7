"""edgeseg admit: the gates of a bundle once more, on any labelled data."""

from pathlib import Path
from typing import Annotated

import typer

from edgeseg.cli.options import BundleArg, recipe_path

Opt = typer.Option


def admit(
    bundle: BundleArg,
    data: Annotated[str, Opt(help="labelled: acdc:DIR, mnms:DIR, nnunet:DIR, phantom:cine")],
    split: Annotated[str, Opt(help="dev chooses; val, train or all only report")] = "dev",
    split_file: Annotated[Path | None, Opt(help="JSON with train/dev/val patients")] = None,
    calibration: Annotated[Path | None, Opt(parser=recipe_path, metavar="FILE",
                                            help="recipe with other limits than the bundle's")] = None,
    seconds: Annotated[float, Opt(help="of timing a row")] = 2.0,
    threads: Annotated[int | None, Opt(help="CPU threads (default: what affinity and quota allow)")] = None,
    strict: Annotated[bool, Opt("--strict", help="exit with 3 when a gate is missed")] = False,
    as_json: Annotated[bool, Opt("--json", help="the last line of stdout is one JSON document")] = False,
) -> None:
    """Repeat the admission of a bundle's INT8 (and bf16) on labelled data and on this CPU. Changes nothing."""
    from edgeseg.bundle.admit import admit_bundle
    from edgeseg.bundle.card import gate_rows
    from edgeseg.bundle.recipe import CalibrationRecipe
    from edgeseg.cli.export import verdict
    from edgeseg.cli.table import show

    limits = CalibrationRecipe.load(calibration).limits if calibration else None
    found = admit_bundle(bundle, data, split, split_file, limits, seconds, threads,
                         lambda line: typer.echo(f"admit    {line} ...", err=as_json))
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        for note in found.notes:
            typer.echo(f"note     {note}")
        typer.echo(f"{found.admission.data} {found.admission.split}, {found.admission.patients} patients")
        show(gate_rows(found.admission.gates))
    verdict([g for g in found.admission.gates if not g.passed], strict)
