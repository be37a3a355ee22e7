"""edgeseg train-teacher: a teacher for those who have labelled clips and no checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from edgeseg.errors import EdgesegError

Opt = typer.Option


def train_teacher(
    network: Annotated[str, typer.Argument(help="deeplabv3")],
    data: Annotated[list[str], Opt(help="echonet:DIR, camus:DIR, phantom:echo, ...; repeat to merge")],
    out: Annotated[Path, Opt(help="folder; the teacher is then deeplabv3:OUT/deeplabv3.safetensors")],
    frames: Annotated[str, Opt(help="traced (ED and ES, as EchoNet-Dynamic) or all (labelled ones)")] = "traced",
    split_file: Annotated[str | None, Opt(help="JSON with train/dev/val patients")] = None,
    epochs: Annotated[int, Opt(help="passes over the frames")] = 20,
    batch_size: Annotated[int, Opt(help="frames a step")] = 20,
    learning_rate: Annotated[float, Opt(help="peak learning rate of AdamW")] = 1e-3,
    seed: Annotated[int, Opt(help="one seed gives one result on one machine")] = 0,
    resume: Annotated[bool, Opt("--resume", help="go on with an interrupted training in OUT")] = False,
    threads: Annotated[int | None, Opt(help="torch threads")] = None,
) -> None:
    """Train a DeepLabv3 on labelled ultrasound clips."""
    from edgeseg.distill.machine import Machine
    from edgeseg.distill.recipe import Recipe
    from edgeseg.distill.train_teacher import train_teacher as run_training

    if network != "deeplabv3":
        raise EdgesegError(f"{network}: deeplabv3 is trained here; nnU-Net's teachers come from nnUNetv2_train")
    if frames not in ("traced", "all"):
        raise EdgesegError(f"--frames {frames}: choose traced or all")
    recipe = Recipe(data=tuple(data), split_file=split_file or "", teacher="none", kd_weight=0.0, epochs=epochs,
                    batch_size=batch_size, learning_rate=learning_rate, seed=seed)
    path = run_training(recipe, out, frames == "traced", resume, Machine(threads=threads), typer.echo)
    typer.echo(f"next     edgeseg targets --teacher deeplabv3:{path} --data DATA --out TARGETS")
