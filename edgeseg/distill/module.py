"""The training module: one optimisation step, validation on dev, the schedule. Lightning runs the loop."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from edgeseg.case import Case
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.samples import EpochSampler, SliceDataset
from edgeseg.errors import EdgesegError
from edgeseg.files import new_file
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.losses.layerwise_kl import layerwise_kl, nnunet_hard_loss, teacher_at
from edgeseg.measure.overlap import dice_per_class
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import Dataset
from edgeseg.torchvision_ops import import_torchvision

import_torchvision()
import lightning as L  # noqa: E402

TeacherLogits = Callable[[torch.Tensor], list[torch.Tensor]]
"""Normalised image [B, C, H, W] at the student's spacing -> logits, highest resolution first."""


class Distiller(L.LightningModule):
    """Trains `student` (train mode: list of logits, highest resolution first) by the layer-wise loss of the recipe.

    The weights of the best epoch on dev are written to `best_file` (safetensors) as soon as they are known.
    """

    def __init__(
        self,
        student: nn.Module,
        recipe: Recipe,
        train: SliceDataset,
        dev: Dataset,
        scheme: LabelScheme,
        preprocessing: Preprocessing,
        best_file: Path,
        teacher: TeacherLogits | None = None,
        begun: float | None = None,
    ) -> None:
        super().__init__()
        self.student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe, self.train_data, self.dev, self.scheme = recipe, train, dev, scheme
        self.preprocessing, self.best_file, self.teacher = preprocessing, best_file, teacher
        self.hard_loss = nnunet_hard_loss()
        self.begun = time.monotonic() if begun is None else begun
        self.best: dict[str, Any] = {"dice": -1.0, "epoch": -1}
        self.dev_rows: list[list[float]] = []
        self.history: list[dict[str, float]] = []
        self.epoch_loss, self.epoch_steps, self.started = 0.0, 0, time.monotonic()
        self.seconds_before = 0.0
        """Seconds of the interrupted runs that this one goes on with."""

    # ---- data

    def train_dataloader(self) -> DataLoader:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        sampler = EpochSampler(len(self.train_data), self.recipe.batch_size, self.recipe.seed, rank, world)
        sampler.set_epoch(self.current_epoch)
        workers = 0 if self.device.type == "cpu" else 8
        return DataLoader(self.train_data, self.recipe.batch_size // world, sampler=sampler, num_workers=workers,
                          drop_last=True, persistent_workers=workers > 0)

    def val_dataloader(self) -> DataLoader:
        mine = list(range(self.trainer.global_rank, len(self.dev), self.trainer.world_size))
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    # ---- one step

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        recipe = self.recipe
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        # Planar and in 32 bit: mixed precision converts around each small step of the losses, a sixth of the time.
        outputs = [o.float().contiguous() for o in self.student(image)]
        teacher = None
        if recipe.kd_weight > 0:
            sizes = [o.shape[-2:] for o in outputs]
            if "soft" in batch:
                teacher = teacher_at([batch["soft"].clamp_min(1e-4).log()], sizes, own_layers=False)
            else:
                assert self.teacher is not None
                teacher = teacher_at(self.teacher(image), sizes, recipe.own_layers)
        with torch.autocast(self.device.type, enabled=False):
            loss = layerwise_kl(outputs, teacher, batch["labels"], self.hard_loss, recipe.kd_weight, recipe.temperature,
                                t_squared=recipe.t_squared)
        self.epoch_loss += float(loss.detach())
        self.epoch_steps += 1
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW; one cycle: warm-up over the first tenth, then a cosine to zero (no decay of norms and biases)."""
        decay = [p for p in self.student.parameters() if p.ndim > 1]
        plain = [p for p in self.student.parameters() if p.ndim <= 1]
        groups = [{"params": decay, "weight_decay": self.recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimiser = torch.optim.AdamW(groups, lr=self.recipe.learning_rate, fused=True)  # a fifth of the time
        steps = int(self.trainer.estimated_stepping_batches)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, self.recipe.learning_rate, steps, pct_start=0.1)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    # ---- validation on dev

    def on_validation_epoch_start(self) -> None:
        if self.trainer.world_size > 1:  # each rank has its own BatchNorm statistics; the first one's are saved
            for buffer in self.student.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, index: int, _: int) -> None:
        case = self.dev.refs[index].load()
        truth = dev_truth(case, self.scheme, self.preprocessing, self.dev.ignore)
        predicted = self.segment(case.frames, case.spacing)
        self.dev_rows.append(dice_per_class(predicted, truth, len(self.scheme.names), IGNORE).tolist())

    def segment(self, frames: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
        """Raw frames -> class indices, through the same pipeline as the runtime, in 32 bit."""

        def net(windows: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(windows).to(self.device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, enabled=False):
                return self.student(x).float().cpu().numpy()

        return self.preprocessing.segment(frames, spacing, net, batch=8)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            self.dev_rows.clear()
            return
        rows = torch.tensor(self.dev_rows).reshape(-1, len(self.scheme.foreground))
        sums = torch.cat([rows.sum(0), torch.tensor([float(len(rows))])]).to(self.device)
        if self.trainer.world_size > 1:
            sums = torch.as_tensor(self.all_gather(sums)).reshape(-1, len(sums)).sum(0)
        per_class = (sums[:-1] / sums[-1].clamp_min(1)).tolist()
        self.dev_rows.clear()
        mean = float(np.mean(per_class))
        self.log("dev_dice", mean, prog_bar=True, sync_dist=False, rank_zero_only=True)
        self.last_dice = dict(zip(self.scheme.foreground, per_class, strict=True)) | {"mean": mean}
        if mean > self.best["dice"]:
            self.best = {"dice": mean, "epoch": self.current_epoch, "per_structure": self.last_dice}
            if self.trainer.is_global_zero:
                self.save_student()

    def save_student(self) -> None:
        from safetensors.torch import save_file

        # a copy each: nnU-Net's networks hold one tensor under several names, which safetensors refuses
        weights = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format)
                   for k, v in self.student.state_dict().items()}
        with new_file(self.best_file) as part:
            save_file(weights, part)

    # ---- what a resumed run must know

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["edgeseg"] = {"best": self.best, "history": self.history, "seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["edgeseg"]
        self.best, self.history, self.seconds_before = kept["best"], kept["history"], kept["seconds"]

    @property
    def seconds(self) -> float:
        """Wall seconds of the distillation so far, data preparation and interrupted runs included."""
        return self.seconds_before + time.monotonic() - self.begun


def dev_truth(case: Case, scheme: LabelScheme, preprocessing: Preprocessing, ignore: int | None) -> np.ndarray:
    """Class indices uint8 [N, H, W] of a dev case.

    Raises:
        EdgesegError: no labels, labels outside the scheme, or other channels than the task's.
    """
    where, channels = case.source or case.id, len(preprocessing.channels)
    if case.labels is None or case.scheme is None:
        raise EdgesegError(f"{where}: dev cases need labels: the best epoch is chosen on them")
    if case.frames.shape[1] != channels:
        raise EdgesegError(f"{where}: {case.frames.shape[1]} channels, the task has {channels}")
    return scheme.encode(case.labels, case.scheme, ignore)


def at_student_spacing(teacher: Any, size: tuple[int, int], spacing: tuple[float, float]) -> TeacherLogits:
    """The teacher as a function on the student's patches.

    Where the two grids share their spacing it is the teacher's network itself. Otherwise the patch is resampled
    (linearly) to the teacher's spacing and zero-padded (the mean, after z-scoring) to a multiple of its stride, and its
    full-resolution logits are brought back.
    """
    own = teacher.preprocessing.spacing
    stride = teacher.stride
    same = all(abs(a / b - 1) < 1e-3 for a, b in zip(own, spacing, strict=True))
    if same and all(n % s == 0 for n, s in zip(size, stride, strict=True)):
        return teacher.logits
    inner = tuple(max(1, round(n * a / b)) for n, a, b in zip(size, spacing, own, strict=True))
    pad = [(-n) % s for n, s in zip(inner, stride, strict=True)]

    def logits(image: torch.Tensor) -> list[torch.Tensor]:
        x = F.interpolate(image, size=inner, mode="bilinear", align_corners=False)
        x = F.pad(x, (0, pad[1], 0, pad[0]))
        full = teacher.logits(x)[0][..., : inner[0], : inner[1]]
        return [F.interpolate(full, size=size, mode="bilinear", align_corners=False)]

    return logits
