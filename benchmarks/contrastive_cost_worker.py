"""One row of contrastive_cost.py, a worker (edgeseg.measure.worker): "step" is a training step of the job's recipe
(forward passes, losses, backward, optimiser, schedule) on a batch that lies ready."""

import math
import warnings
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from edgeseg.distill.machine import Machine, check_machine, resolve_precision
from edgeseg.distill.module import Distiller, at_student_spacing, feature_losses
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.train import make_student, open_teacher_of, student_grid
from edgeseg.errors import EdgesegError
from edgeseg.measure.worker import main, memory_mb

PEAK = Path("/proc/self/clear_refs")
MODE = "step"


class Alone(Distiller):
    """The training module without Lightning's loop: it knows its step, and logs to nobody."""

    trainer: Any = None

    def log(self, *_: Any, **__: Any) -> None:
        pass


class Step:
    """The subject. The job's path is a recipe, its frames the batches that contrastive_cost.py has written; a recipe
    that asks nothing of its teacher does not open it."""

    def __init__(self, job: dict[str, Any]) -> None:
        machine, recipe = Machine("cpu", threads=job["threads"]), Recipe.load(Path(job["path"]))
        check_machine(machine, recipe.batch_size)
        data, self.batches = recipe.dataset(), read_batches(Path(job["frames"]))
        self.count, self.shape = len(self.batches), tuple(self.batches[0]["image"].shape)
        asked = recipe.kd_weight > 0 or bool(recipe.features)
        teacher = open_teacher_of(recipe, machine, False) if asked else None
        student = make_student(recipe, self.shape[1], len(data.scheme.names))
        grid = student_grid(recipe, teacher, student.spec.stride, self.shape[1])
        logits = at_student_spacing(teacher, grid.size, grid.spacing) if teacher else None
        features = feature_losses(recipe, student, teacher, logits, grid) if recipe.features and logits else None
        self.module = Alone(student, recipe, None, data, data.scheme, grid, Path("never"), logits, features=features)
        # more steps than are ever made: the learning rate stays at the foot of its warm-up
        self.module.trainer = SimpleNamespace(global_step=0, global_rank=0, estimated_stepping_batches=10**7)
        self.module.train()
        made = self.module.configure_optimizers()
        self.optimiser, self.schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        self.precision = resolve_precision(recipe.precision, "cpu")
        self.calls = {MODE: self.step}
        self.runtime: dict[str, Any] = {
            "precision": self.precision, "torch_threads": torch.get_num_threads(), "batches": self.count,
            "features": [f"{p.scale} {p.kind}" for p in recipe.features],
            "student_parameters": sum(p.numel() for p in student.parameters()),
            "head_parameters": sum(p.numel() for p in features.parameters()) if features else 0,
            "teacher_parameters": teacher.provenance["parameters"] if teacher else 0}
        with suppress(OSError):  # elsewhere than on Linux the system does not tell either
            PEAK.write_text("5")  # the peak of what follows, not of the imports and the set-up
        self.runtime["rss_mb"] = memory_mb("VmRSS")

    def step(self, i: int) -> None:
        """As Lightning makes it: the old gradients are there until the loss is."""
        module = self.module
        with torch.autocast("cpu", torch.bfloat16, self.precision == "bf16-mixed", cache_enabled=False):
            loss = module.training_step(self.batches[i], i)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        module.trainer.global_step += 1
        if not math.isfinite(module.epoch_loss):
            raise EdgesegError("the loss is not finite: no step to measure")


def read_batches(path: Path) -> list[dict[str, torch.Tensor]]:
    with np.load(path) as stored:
        return [{key: torch.from_numpy(stored[f"{key}_{i}"]) for key in ("image", "labels")}
                for i in range(len(stored.files) // 2)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(Step)
