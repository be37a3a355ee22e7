"""edgeseg distill: teacher + data -> run."""

from pathlib import Path
from typing import Annotated

import typer

from edgeseg.cli.options import recipe_path
from edgeseg.errors import EdgesegError

Opt = typer.Option


def distill(
    teacher: Annotated[str | None, Opt(help="nnunet:MODEL_FOLDER, deeplabv3:CHECKPOINT, multitask:FOLDER, phantom, "
                                               "or none (labels only)")] = None,
    data: Annotated[list[str] | None, Opt(help="acdc:DIR, mnms:DIR, nnunet:DIR, phantom:cine; repeat to merge")] = None,
    student: Annotated[str | None, Opt(help="student family: mobilenetv2, dense, unet, convlstm")] = None,
    out: Annotated[Path | None, Opt(help="run folder (default: runs/NAME)")] = None,
    recipe: Annotated[Path | None, Opt(parser=recipe_path, metavar="FILE",
                                       help="TOML file; options given here go before it")] = None,
    split_file: Annotated[str | None, Opt(help="JSON with train/dev/val patients")] = None,
    kd_weight: Annotated[float | None, Opt("--kd-weight", "-W", help="weight of the distillation loss, 0..1")] = None,
    temperature: Annotated[float | None, Opt("--temperature", "-T", help="distillation temperature")] = None,
    expansion: Annotated[int | None, Opt(help="expansion ratio of the student: 1, 2, 4, 6, 8")] = None,
    width_mult: Annotated[float | None, Opt(help="width multiplier of the student")] = None,
    stem_stride: Annotated[int | None, Opt(help="1 or 2 (faster)")] = None,
    pretrained: Annotated[Path | None, Opt(help="begin with the weights of this finished run")] = None,
    epochs: Annotated[int | None, Opt(help="passes over the training slices")] = None,
    batch_size: Annotated[int | None, Opt(help="images a step")] = None,
    learning_rate: Annotated[float | None, Opt(help="peak learning rate")] = None,
    precision: Annotated[str | None, Opt(help="auto, 32-true, bf16-mixed, 16-mixed")] = None,
    targets: Annotated[str | None, Opt(help="auto, network, stored (soft predictions of the full pipeline), or the "
                                               "folder that `edgeseg targets` wrote: then no --teacher")] = None,
    tta: Annotated[str | None, Opt(help="of stored targets: none, mirror, mirror+rotate")] = None,
    fold: Annotated[list[int] | None, Opt(help="fold of the nnU-Net teacher; repeat to average (default: all)")] = None,
    configuration: Annotated[str | None, Opt(help="2d or 3d_fullres, for a teacher that does not say")] = None,
    seed: Annotated[int | None, Opt(help="one seed gives one result on one machine")] = None,
    resume: Annotated[Path | None, Opt(help="go on with this interrupted run")] = None,
    trust_checkpoint: Annotated[bool, Opt(help="unpickle a teacher checkpoint that needs it: it can run code")] = False,
    accelerator: Annotated[str, Opt(help="auto, cpu, gpu")] = "auto",
    devices: Annotated[int, Opt(help="GPUs, or processes on a CPU")] = 1,
    nodes: Annotated[int, Opt(help="machines (torch.distributed)")] = 1,
    threads: Annotated[int | None, Opt(help="torch threads a process")] = None,
) -> None:
    """Distil a teacher into a small student. Without options: on the built-in cine phantom."""
    from edgeseg.distill.machine import Machine
    from edgeseg.distill.recipe import PHANTOM, Recipe
    from edgeseg.distill.train import distill as run_distill

    given = {
        "teacher": teacher, "data": tuple(data) if data else None, "student": student, "split_file": split_file,
        "kd_weight": kd_weight, "temperature": temperature, "expansion": expansion, "width_mult": width_mult,
        "stem_stride": stem_stride, "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
        "precision": precision, "targets": targets, "tta": tta, "seed": seed, "configuration": configuration,
        "folds": tuple(fold) if fold else None, "pretrained": str(pretrained) if pretrained else None,
    }
    if resume and (recipe or out or any(v is not None for v in given.values())):
        raise EdgesegError(f"--resume goes on with the recipe that {resume} keeps: give no other options")
    if targets is not None and targets not in ("auto", "network", "stored"):
        if teacher is not None:
            raise EdgesegError(f"--targets {targets} takes the place of a teacher: leave --teacher out")
        given |= {"teacher": f"targets:{targets}", "targets": "stored"}
    base = Recipe.load(recipe) if recipe else Recipe() if data or teacher or targets else PHANTOM
    wanted = base.changed(given)
    folder = resume or out or default_out(wanted.data[0])
    machine = Machine(accelerator, devices, nodes, threads)
    run = run_distill(wanted, folder, resume is not None, machine, trust_checkpoint)
    best = run.metrics.get("dev")
    if best:
        seen = " (dev was trained on: no estimate)" if run.recipe.get("final") else ""
        typer.echo(f"run      {run.folder}: dev Dice {best['dice']:.4f} at epoch {best['epoch'] + 1}{seen}")
        typer.echo(f"next     edgeseg export {run.folder} --int8")


def default_out(data: str) -> Path:
    """runs/NAME, or runs/NAME-2, ... when that is taken: nothing is overwritten."""
    name = "".join(c if c.isalnum() else "-" for c in data.split(":", 1)[-1].split("?")[0].strip("/").split("/")[-1])
    name, number = name or "run", 2
    folder = Path("runs") / name
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder
