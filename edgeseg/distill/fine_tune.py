"""Distillation-aware fine-tuning: the run's student learns to live with INT8 by the loss that it was distilled with.

Only weights come out of it. The simulation is dropped, and every file is made again by the ordinary route.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeseg.distill.machine import Machine
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.run import Run
from edgeseg.readers import Dataset

if TYPE_CHECKING:
    from torch import nn

    from edgeseg.distill.module import Distiller

SLOWER = 20
"""The distillation's learning rate over that of fine-tuning: weights are to move by a few rounding steps only."""
VALIDATIONS = 10
"""At most so many times are the weights scored on dev."""


def fine_tune(run: Run, frames: np.ndarray, steps: int, say: Callable[[str], None],
              trust: bool = False) -> "nn.Module | None":
    """The run's student with weights that lose less in INT8: an ordinary module in evaluation mode, or None.

    Same loss, teacher, targets and training data as in the run; the weights are those of the best dev Dice of the
    student with simulated INT8. None: they are not better than those that it came with.

    Args:
        frames: calibration frames float32 [n, C, gh, gw]: they set the ranges of the simulation.
        steps: of the optimiser, rounded to whole epochs of as many training cases as that many steps see.
        say: told of each epoch. trust: allow a teacher checkpoint that needs full unpickling.

    Raises:
        EdgesegError: the data or the teacher of the run is gone.
    """
    from safetensors.torch import load_file

    from edgeseg.distill.simulated_int8 import simulated_int8
    from edgeseg.distill.train import open_teacher_of, train_network

    recipe = Recipe().changed(run.recipe, str(run.folder))
    data, slices = enough(run.dataset(), steps * recipe.batch_size, run.seed)
    epochs = max(1, round(steps / max(slices // recipe.batch_size, 1)))
    recipe = replace(recipe, epochs=epochs, validate_every=max(1, epochs // VALIDATIONS), precision="32-true",
                     learning_rate=recipe.learning_rate / SLOWER,
                     features=())  # their heads were of that training
    machine = Machine()
    teacher = open_teacher_of(recipe, machine, trust) if recipe.kd_weight > 0 else None
    student = run.student().train()  # Lightning trains what it is given in the mode that it is in
    with tempfile.TemporaryDirectory(prefix="edgeseg-fine-tune-") as kept:  # holds images
        scratch = Path(kept)
        with simulated_int8(student, frames) as find_ranges:
            module = train_network(student, recipe, data, run.scheme, run.preprocessing, scratch, machine, say, teacher)
            tuned = load_file(scratch / "student.safetensors")
            student.load_state_dict(run.student().state_dict())
            find_ranges()
            before = dev_dice(module)
        better = module.best["dice"] > before
    say(f"simulated INT8: dev Dice {before:.4f} before, {module.best['dice']:.4f} after: "
        f"{'new' if better else 'old'} weights")
    if not better:
        return None
    found = run.student()
    found.load_state_dict(tuned)
    return found.eval()


def enough(data: Dataset, wanted: int, seed: int) -> tuple[Dataset, int]:
    """`data` with as many training cases, drawn by `seed`, as hold `wanted` slices (or all), and their slices."""
    refs, slices, chosen = data.select("train").refs, 0, set()
    for k in np.random.default_rng([seed, len(refs)]).permutation(len(refs)):
        if slices < wanted:
            slices += len(refs[k].load().frames)
            chosen.add(refs[k].id)
    return replace(data, refs=tuple(r for r in data.refs if r.split != "train" or r.id in chosen)), slices


def dev_dice(module: "Distiller") -> float:
    """Mean dev Dice of the module's student as it is, by the steps of its own validation."""
    import torch

    module.student.eval()
    module.dev_rows.clear()
    with torch.no_grad():
        for index in range(len(module.dev)):
            module.validation_step(index, 0)
    return float(np.mean(module.dev_rows))
