"""The training module: one optimisation step, validation on dev, the schedule. Lightning runs the loop."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from edgeseg.case import Case
from edgeseg.distill.cache import check_case
from edgeseg.distill.clips import ClipDataset
from edgeseg.distill.features import FeatureLosses
from edgeseg.distill.recipe import Recipe
from edgeseg.distill.samples import EpochSampler, SliceDataset
from edgeseg.errors import EdgesegError
from edgeseg.files import new_file
from edgeseg.labels import IGNORE, LabelScheme
from edgeseg.losses.layerwise_kl import layerwise_kl, nnunet_hard_loss, teacher_at
from edgeseg.losses.prediction_map import prediction_map
from edgeseg.measure.overlap import dice_per_class
from edgeseg.preprocess import Preprocessing
from edgeseg.readers import Dataset
from edgeseg.students import frame_by_frame, is_recurrent
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
        train: SliceDataset | ClipDataset,
        dev: Dataset,
        scheme: LabelScheme,
        preprocessing: Preprocessing,
        best_file: Path,
        teacher: TeacherLogits | None = None,
        begun: float | None = None,
        truth: Callable[[Case], np.ndarray] | None = None,
        weights: np.ndarray | None = None,
        features: FeatureLosses | None = None,
    ) -> None:
        super().__init__()
        self.student = student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.recipe, self.train_data, self.dev, self.scheme = recipe, train, dev, scheme
        self.preprocessing, self.best_file, self.teacher = preprocessing, best_file, teacher
        self.weights, self.features = weights, features
        self.truth = truth or partial(dev_truth, scheme=scheme, preprocessing=preprocessing, ignore=dev.ignore)
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
        sampler = EpochSampler(len(self.train_data), self.recipe.batch_size, self.recipe.seed, rank, world,
                               self.weights)
        sampler.set_epoch(self.current_epoch)
        workers = 0 if self.device.type == "cpu" else 8
        return DataLoader(self.train_data, self.recipe.batch_size // world, sampler=sampler, num_workers=workers,
                          drop_last=True, persistent_workers=workers > 0)

    def val_dataloader(self) -> DataLoader:
        mine = list(range(self.trainer.global_rank, len(self.dev), self.trainer.world_size))
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]

    # ---- one step

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        image = batch["image"]
        clips = image.ndim == 5
        if not clips:
            image = image.contiguous(memory_format=torch.channels_last)
        with self.features.watch() if self.features else nullcontext() as maps:
            # Planar and in 32 bit: mixed precision converts around each small step of the losses, a sixth of the time.
            outputs = [o.float().contiguous() for o in self.student(image)]
            if clips:  # a frame of a clip is an image to the losses and to the teacher
                outputs, image = [o.flatten(0, 1) for o in outputs], image.flatten(0, 1)
                batch = {k: v.flatten(0, 1) for k, v in batch.items()}
            with torch.autocast(self.device.type, enabled=False):
                loss = self.loss_of(outputs, image, batch)
                if auxiliary := getattr(self.student, "auxiliary_loss", None):  # a task beside the segmentation
                    loss = loss + auxiliary(image)
                if self.features:
                    loss = loss + self.features(maps, batch["labels"], self.generator())
        self.epoch_loss += float(loss.detach())
        self.epoch_steps += 1
        self.log("loss", loss, prog_bar=True)
        return loss

    def loss_of(self, outputs: list[torch.Tensor], image: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The recipe's loss of images [B, C, h, w], logits [B, K, h_i, w_i], labels [B, h, w], soft [B, K, h, w]."""
        recipe, teacher, w = self.recipe, None, self.recipe.kd_weight
        said = self.teacher(image) if self.teacher else None  # features want it to run even where W is 0
        if recipe.loss == "soft_bce":  # at one scale and T = 1 the KL is that minus the teacher's entropy
            outputs = outputs[:1]
        if w > 0:
            sizes = [o.shape[-2:] for o in outputs]
            if said is None:
                teacher = teacher_at([batch["soft"].clamp_min(1e-4).log()], sizes, own_layers=False)
            else:
                teacher = teacher_at(said, sizes, recipe.own_layers)
        if teacher and recipe.loss == "prediction_map":
            soft = prediction_map(teacher[0], outputs[0], recipe.temperature, recipe.t_squared)
            hard = layerwise_kl(outputs, None, batch["labels"], self.hard_loss, 0, 1) if w < 1 else 0
            return w * soft + (1 - w) * hard
        return layerwise_kl(outputs, teacher, batch["labels"], self.hard_loss, w, recipe.temperature,
                            t_squared=recipe.t_squared)

    def generator(self) -> torch.Generator:
        """Random source of this step: of seed, step and rank alone, so that a resumed run draws what it would have."""
        key = np.random.SeedSequence([self.recipe.seed, self.trainer.global_step, self.trainer.global_rank])
        return torch.Generator(self.device).manual_seed(int(key.generate_state(1)[0]))

    def configure_optimizers(self) -> Any:
        """AdamW; one cycle: warm-up over the first tenth, then a cosine to zero (no decay of norms and biases)."""
        trained = [*self.student.parameters(), *(self.features.parameters() if self.features else ())]
        decay, plain = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
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
        truth = self.truth(case)
        predicted = self.segment(case.frames, case.spacing)
        self.dev_rows.append(dice_per_class(predicted, truth, len(self.scheme.names), IGNORE).tolist())

    def segment(self, frames: np.ndarray, spacing: tuple[float, float]) -> np.ndarray:
        """Raw frames -> class indices, through the same pipeline as the runtime, in 32 bit."""

        def net(windows: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(windows).to(self.device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(self.device.type, enabled=False):
                return frame_by_frame(self.student, x).float().cpu().numpy()

        batch = len(frames) if is_recurrent(self.student) else 8  # a clip is one sequence
        return self.preprocessing.segment(frames, spacing, net, batch)

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


def feature_losses(recipe: Recipe, student: nn.Module, teacher: Any, logits: TeacherLogits,
                   preprocessing: Preprocessing) -> FeatureLosses:
    """The recipe's `[[features]]` between `student` and the network that `logits` (`at_student_spacing`) runs."""
    inner, padded = teacher_grid(teacher, preprocessing.size, preprocessing.spacing)
    image = torch.zeros(2, len(preprocessing.channels), *preprocessing.size)
    return FeatureLosses(recipe.features, student, teacher.running, logits, image,
                         (inner[0] / padded[0], inner[1] / padded[1]), recipe.seed)


def dev_truth(case: Case, scheme: LabelScheme, preprocessing: Preprocessing, ignore: int | None,
              teacher: Callable[[Case], np.ndarray] | None = None) -> np.ndarray:
    """Class indices uint8 [N, H, W] of a dev case: its labels, else what the teacher (case -> probabilities
    [N, K, H, W]) says, where there is one to ask.

    Raises:
        EdgesegError: no labels, labels outside the scheme, other channels or a narrower window than the task's.
    """
    check_case(case, preprocessing)
    if case.labels is None and teacher is not None:
        return teacher(case).argmax(axis=1).astype(np.uint8)
    if case.labels is None or case.scheme is None:
        raise EdgesegError(f"{case.source or case.id}: dev cases need labels: the best epoch is chosen on them")
    return scheme.encode(case.labels, case.scheme, ignore)


def teacher_grid(teacher: Any, size: tuple[int, int], spacing: tuple[float, float]
                 ) -> tuple[tuple[int, int], tuple[int, int]]:
    """Pixels (rows, columns) of the student's patch at the teacher's spacing, without and with the padding to multiples
    of its stride (below and on the right)."""
    ratios = [a / b for a, b in zip(spacing, teacher.preprocessing.spacing, strict=True)]
    same = all(abs(ratio - 1) < 1e-3 for ratio in ratios)
    rows, columns = size if same else (max(1, round(n * ratio)) for n, ratio in zip(size, ratios, strict=True))
    down, across = teacher.stride
    return (rows, columns), (-(-rows // down) * down, -(-columns // across) * across)


def at_student_spacing(teacher: Any, size: tuple[int, int], spacing: tuple[float, float]) -> TeacherLogits:
    """The teacher as a function on the student's patches.

    Where the two grids share their spacing it is the teacher's network itself. Otherwise the patch is resampled
    (linearly) to the teacher's spacing and zero-padded (the mean, after z-scoring) to a multiple of its stride, and its
    full-resolution logits are brought back.
    """
    inner, padded = teacher_grid(teacher, size, spacing)
    if inner == padded == size:
        return teacher.logits

    def logits(image: torch.Tensor) -> list[torch.Tensor]:
        x = F.interpolate(image, size=inner, mode="bilinear", align_corners=False)
        x = F.pad(x, (0, padded[1] - inner[1], 0, padded[0] - inner[0]))
        full = teacher.logits(x)[0][..., : inner[0], : inner[1]]
        return [F.interpolate(full, size=size, mode="bilinear", align_corners=False)]

    return logits
