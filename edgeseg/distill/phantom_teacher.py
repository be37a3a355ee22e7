"""nnU-Net's own network class, narrow: the teacher of the built-in default, trained on the phantom at once."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgeseg.distill.machine import Machine
from edgeseg.distill.recipe import Recipe
from edgeseg.errors import Interrupted
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import merge, open_data

FEATURES = (12, 24, 48, 96, 96)
SIZE, SPACING = (192, 192), (1.5625, 1.5625)


class DeepSupervised(nn.Module):
    """nnU-Net's U-Net in the trainer's convention: a list without the lowest output in training (nnU-Net gives it
    weight 0), the full-resolution logits in evaluation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> Any:
        outputs = self.network(x)
        return outputs[:-1] if self.training else outputs[0]


def phantom_teacher(recipe: Recipe, out: Path, machine: Machine, say: Callable[[str], None]) -> Path:
    """Train nnU-Net's own network class, narrow, on the recipe's (phantom) data and write a real nnU-Net model folder.

    It has no private path afterwards: the folder is read back through `nnunet:`.
    """
    from edgeseg.teachers.folder import make_dataset_json, make_plans, write_model_folder

    folder = out / "teacher"
    if (folder / "plans.json").exists():
        return folder
    from safetensors.torch import load_file

    from edgeseg.distill.train import train_network
    from edgeseg.teachers.plans import build_network

    dataset = merge([open_data(s, Path(recipe.split_file) if recipe.split_file else None) for s in recipe.data])
    scheme = dataset.scheme
    assert scheme is not None  # the phantom names its labels
    torch.manual_seed(recipe.seed)
    labels: dict[str, Any] = {name: k for k, name in enumerate(scheme.names)}
    dataset_json = make_dataset_json(labels, ("cineMRI",), cases=len(dataset.select("train")))
    plans = make_plans("Dataset999_CinePhantom", FEATURES, SIZE, SPACING)
    network = DeepSupervised(build_network(plans, dataset_json))
    plan = replace(recipe, teacher="none", kd_weight=0.0, features=())
    work = out / "teacher-training"
    work.mkdir(exist_ok=True)
    say("teacher  training a narrow nnU-Net on the phantom")
    grid = Preprocessing(SIZE, SPACING)
    cache = out / "cache"  # the student's grid is the teacher's: prepared once
    alone = replace(machine, devices=1, nodes=1)  # the other processes start with the student
    try:
        module = train_network(network, plan, dataset, scheme, grid, work, alone, say, cache_folder=cache)
    except Interrupted:
        raise Interrupted(f"{out}: interrupted; go on with `edgeseg distill --resume {out}`") from None
    state = {k.removeprefix("network."): v for k, v in load_file(work / "student.safetensors").items()}
    part = out / "teacher.part"
    write_model_folder(part, state, dataset_json, plans)
    (part / "training.json").write_text(json.dumps({"dev": module.best, "history": module.history}) + "\n")
    part.replace(folder)
    shutil.rmtree(work)
    return folder
