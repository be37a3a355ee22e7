"""train_teacher(): a DeepLabv3 trained here, for a lab that has labelled clips and no checkpoint."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgeseg.case import Case
from edgeseg.distill.machine import Machine
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.train import train_network
from edgeseg.errors import EdgesegError, Interrupted
from edgeseg.files import write_text
from edgeseg.labels import IGNORE
from edgeseg.readers import CaseRef, merge, open_data
from edgeseg.teachers.deeplabv3 import SCHEME, DeepLabV3, DeepLabV3Teacher

NAME = "deeplabv3.safetensors"


def train_teacher(recipe: Recipe, out: Path, traced_only: bool, resume: bool = False, machine: Machine | None = None,
                  say: Callable[[str], None] = print) -> Path:
    """Train torchvision's deeplabv3_resnet50 from scratch on labelled frames; returns out/deeplabv3.safetensors, which
    `deeplabv3:FILE` reads back.

    Args:
        recipe: its data, schedule and seed; what concerns a student or a teacher is not looked at.
        traced_only: learn from the ED and ES frames alone, as EchoNet-Dynamic does, where more are labelled.

    The loss is the one of every teacher trained here, soft Dice and cross-entropy, not EchoNet-Dynamic's sum of binary
    cross-entropies: with SGD at its learning rate of 1e-5 that needs its 7,465 clips and 50 epochs.
    """
    if resume:
        recipe = Recipe.load(out / "recipe.toml") if (out / "recipe.toml").exists() else recipe
    elif out.exists() and any(out.iterdir()):
        raise EdgesegError(f"{out}: already there; --resume goes on with it, another --out starts anew")
    grid = DeepLabV3Teacher.preprocessing
    plan = replace(recipe, teacher="none", kd_weight=0.0, features=(), size=grid.size, spacing=grid.spacing)
    dataset = merge([open_data(s, Path(recipe.split_file) if recipe.split_file else None) for s in recipe.data])
    if traced_only:
        dataset = replace(dataset, refs=tuple(map(traced, dataset.refs)))
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "recipe.toml", plan.to_toml())
    torch.manual_seed(recipe.seed)
    network = DeepLabV3()
    say(f"teacher  deeplabv3_resnet50, {sum(p.numel() for p in network.parameters()) / 1e6:.1f} M parameters, "
        f"{'ED and ES frames' if traced_only else 'all labelled frames'}")
    try:
        module = train_network(network, plan, dataset, SCHEME, grid, out, machine or Machine(), say)
    except Interrupted:
        raise Interrupted(f"{out}: interrupted; the same command with --resume goes on") from None
    (out / "student.safetensors").replace(out / NAME)
    shutil.rmtree(out / "cache", ignore_errors=True)
    say(f"teacher  {out / NAME}: dev Dice {module.best['dice']:.4f} at epoch {module.best['epoch'] + 1}")
    return out / NAME


def traced(ref: CaseRef) -> CaseRef:
    return replace(ref, load=partial(only_traced, ref))


def only_traced(ref: CaseRef) -> Case:
    """The case with labels on its ED and ES frames alone."""
    case = ref.load()
    known: dict[str, Any] = case.provenance.get("echo", {})
    kept = sorted({*known.get("ed", ()), *known.get("es", ())})
    if case.labels is None or not kept:
        return case
    labels = np.full_like(case.labels, IGNORE)
    labels[kept] = case.labels[kept]
    return replace(case, labels=labels)
