"""edgeseg train-teacher: a teacher for those who have labels and no checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from edgeseg.errors import EdgesegError

Opt = typer.Option


def train_teacher(
    network: Annotated[str, typer.Argument(help="deeplabv3 (ultrasound clips), multitask (U-Net) or transformer (U-Net "
                                                "with a vision transformer): these two also learn to reconstruct")],
    data: Annotated[list[str], Opt(help="echonet:DIR, acdc:DIR, nnunet:DIR, phantom:echo, ...; repeat to merge")],
    out: Annotated[Path, Opt(help="folder; the teacher is then deeplabv3:OUT/deeplabv3.safetensors, or "
                                  "multitask:OUT for both others")],
    frames: Annotated[str, Opt(help="deeplabv3: traced (ED and ES, as EchoNet-Dynamic) or all (labelled ones)"
                               )] = "traced",
    width: Annotated[int | None, Opt(help="multitask, transformer: channels of the first level (default 64)")] = None,
    size: Annotated[tuple[int, int] | None, Opt(help="multitask, transformer: rows and columns of its grid, multiples "
                                                     "of 16 (default 192 192)")] = None,
    spacing: Annotated[tuple[float, float] | None, Opt(help="multitask, transformer: pixel of that grid in mm (default "
                                                            "1.5625 1.5625)")] = None,
    hu_window: Annotated[tuple[float, float] | None, Opt(help="multitask, transformer: lowest and highest HU, of CT"
                                                         )] = None,
    mirror: Annotated[bool, Opt(help="multitask, transformer: mirror training images; not for organs told apart by "
                                     "their side")] = True,
    split_file: Annotated[str | None, Opt(help="JSON with train/dev/val patients")] = None,
    epochs: Annotated[int, Opt(help="passes over the frames")] = 20,
    batch_size: Annotated[int, Opt(help="frames a step")] = 20,
    learning_rate: Annotated[float, Opt(help="peak learning rate of AdamW")] = 1e-3,
    seed: Annotated[int, Opt(help="one seed gives one result on one machine")] = 0,
    resume: Annotated[bool, Opt("--resume", help="go on with an interrupted training in OUT")] = False,
    threads: Annotated[int | None, Opt(help="torch threads")] = None,
) -> None:
    """Train a teacher on labelled data."""
    from edgeseg.distill.machine import Machine
    from edgeseg.distill.recipe import Recipe

    if network not in ("deeplabv3", "multitask", "transformer"):
        raise EdgesegError(f"{network}: deeplabv3, multitask and transformer are trained here; nnU-Net's teachers come "
                           "from nnUNetv2_train")
    if frames not in ("traced", "all"):
        raise EdgesegError(f"--frames {frames}: choose traced or all")
    recipe = Recipe(data=tuple(data), split_file=split_file or "", teacher="none", kd_weight=0.0, epochs=epochs,
                    batch_size=batch_size, learning_rate=learning_rate, seed=seed, mirror=mirror)
    machine = Machine(threads=threads)
    if network == "deeplabv3":
        from edgeseg.distill.train_teacher import train_teacher as run_training

        if any(v is not None for v in (width, size, spacing, hu_window)):
            raise EdgesegError("deeplabv3 has one width, grid and window: leave --width, --size, --spacing and "
                               "--hu-window out")
        path = run_training(recipe, out, frames == "traced", resume, machine, typer.echo)
        typer.echo(f"next     edgeseg targets --teacher deeplabv3:{path} --data DATA --out TARGETS")
        return
    from edgeseg.distill.train_multitask import train_multitask

    given = {"size": size, "spacing": spacing, "hu_window": hu_window}
    train_multitask(recipe.changed(given), network, 64 if width is None else width, out, resume, machine, typer.echo)
    typer.echo(f"next     edgeseg distill --teacher multitask:{out} --data DATA")
