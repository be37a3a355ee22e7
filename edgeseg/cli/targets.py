"""edgeseg targets: teachers + data -> stored soft masks that others can distil from."""

from pathlib import Path
from typing import Annotated

import typer

Opt = typer.Option


def targets(
    teacher: Annotated[list[str], Opt(help="nnunet:MODEL_FOLDER, deeplabv3:CHECKPOINT, multitask:FOLDER; repeat to "
                                           "fuse")],
    data: Annotated[list[str], Opt(help="echonet:DIR, acdc:DIR, video:FILE, ...; repeat to merge")],
    out: Annotated[Path, Opt(help="folder to write; the same command goes on with an interrupted one")],
    weight: Annotated[list[float] | None, Opt(help="weight of each teacher (default: equal)")] = None,
    split: Annotated[list[str] | None, Opt(help="train, dev, val; repeat (default: train and dev)")] = None,
    split_file: Annotated[Path | None, Opt(help="JSON with train/dev/val patients")] = None,
    tta: Annotated[str, Opt(help="test-time augmentation of an nnU-Net: none, mirror, mirror+rotate")] = "none",
    trust_checkpoint: Annotated[bool, Opt(help="unpickle a checkpoint that needs it: it can run code")] = False,
) -> None:
    """Store what teachers say of every frame: `edgeseg distill --targets OUT` then needs neither them nor a label."""
    from dataclasses import replace

    from edgeseg.distill.targets import make_targets
    from edgeseg.readers import merge, open_data
    from edgeseg.teachers import open_teacher

    dataset = merge([open_data(spec, split_file) for spec in data])
    wanted = replace(dataset, refs=tuple(r for r in dataset.refs if r.split in (split or ("train", "dev"))))
    make_targets([open_teacher(spec, trust=trust_checkpoint) for spec in teacher], wanted, out, weight or (), tta,
                 say=typer.echo)
    typer.echo(f"next     edgeseg distill --targets {out} --data {data[0]}")
