"""train_multitask(): a U-Net, or a transformer U-Net, that learns to segment and to reconstruct the same images."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from edgeseg.distill.machine import Machine, check_machine, described
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.train import READY, channels_of, open_folder, student_grid, train_network
from edgeseg.errors import EdgesegError, Interrupted
from edgeseg.teachers.multitask import WEIGHTS, build_network, read_record, write_record
from edgeseg.teachers.multitask_unet import STRIDE, check_size, checked_width


def train_multitask(recipe: Recipe, kind: str, width: int, out: Path, resume: bool = False,
                    machine: Machine | None = None, say: Callable[[str], None] = print) -> Path:
    """Train a multi-task teacher on labelled data; returns `out`, which `multitask:OUT` reads back.

    The loss is the one of every teacher trained here, soft Dice and cross-entropy, plus 0.2 times the mean squared
    error of the reconstruction of the normalised, augmented input. The weights of the best epoch on dev are kept.

    Args:
        recipe: its data, grid, schedule and seed; what concerns a student or a teacher is not looked at.
        kind: "multitask" or "transformer". width: channels of the first level (published: 64).
        resume: go on with an interrupted training in `out`, with the recipe, kind and width kept there.

    Raises:
        EdgesegError: bad input, which leaves nothing behind, or `out` is there and `resume` is not asked for.
    """
    fresh = not out.exists()
    try:
        return run_training(recipe, kind, width, out, resume, machine or Machine(), say)
    except EdgesegError as error:
        if isinstance(error, Interrupted):
            raise Interrupted(f"{out}: interrupted; the same command with --resume goes on") from None
        if fresh and not (out / "last.ckpt").exists():
            shutil.rmtree(out, ignore_errors=True)
        raise


def run_training(recipe: Recipe, kind: str, width: int, out: Path, resume: bool, machine: Machine,
                 say: Callable[[str], None]) -> Path:
    check_machine(machine, recipe.batch_size)
    if resume:
        kept = read_record(out)["network"]
        kind, width = kept["kind"], kept["width"]
    elif out.is_dir() and any(out.iterdir()):
        raise EdgesegError(f"{out}: already there; --resume goes on with it, another --out starts anew")
    checked_width(width)
    if recipe.size:
        check_size(*recipe.size)
    recipe = open_folder(replace(recipe, teacher="none", kd_weight=0.0, features=()), out, resume)
    dataset = recipe.dataset()
    scheme = dataset.scheme
    if scheme is None:
        raise EdgesegError(f"{dataset.spec}: the data must name its labels")
    grid = student_grid(recipe, None, STRIDE, channels_of(dataset))
    torch.manual_seed(recipe.seed)
    network = build_network(kind, len(grid.channels), len(scheme.names), width, grid.size)
    parameters = sum(p.numel() for p in network.parameters())
    say(f"teacher  {kind}, width {width}, {parameters / 1e6:.2f} M parameters, {grid.size[0]}x{grid.size[1]} at "
        f"{grid.spacing[0]:g} x {grid.spacing[1]:g} mm")
    write_record(out, kind, width, scheme, grid, dataset.name, {}, recipe.mirror_axes)
    module = train_network(network, recipe, dataset, scheme, grid, out, machine, say)
    write_record(out, kind, width, scheme, module.preprocessing, dataset.name,
                 {"dev": module.best, "history": module.history, "seconds": round(module.seconds, 1),
                  "machine": described(machine), "licence": dataset.licence,
                  "splits": {s: list(dataset.select(s).patients()) for s in ("train", "dev", "val")}},
                 recipe.mirror_axes)
    (out / "student.safetensors").replace(out / WEIGHTS)
    shutil.rmtree(out / "cache", ignore_errors=True)
    (out / READY).unlink(missing_ok=True)
    say(f"teacher  {out}: dev Dice {module.best['dice']:.4f} at epoch {module.best['epoch'] + 1}")
    return out
