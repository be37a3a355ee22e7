"""The Lightning trainer of a distillation and what it shows: a bar on a terminal, a line an epoch otherwise."""

import csv
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgeseg.distill.machine import Machine, resolve_precision, training_device
from edgeseg.distill.recipe import Recipe
from edgeseg.files import new_file
from edgeseg.torchvision_ops import import_torchvision

import_torchvision()
import lightning as L  # noqa: E402
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar  # noqa: E402
from lightning.pytorch.plugins.io import TorchCheckpointIO  # noqa: E402

if TYPE_CHECKING:
    from edgeseg.distill.train import Say


class EpochReport(Callback):
    """After each epoch: one row in metrics.csv and one line with loss, dev Dice, rate and time left."""

    def __init__(self, out: Path, say: "Say") -> None:
        self.out, self.say = out, say

    def on_train_epoch_start(self, trainer: L.Trainer, module: Any) -> None:
        module.epoch_loss, module.epoch_steps, module.started = 0.0, 0, time.monotonic()
        module.last_dice = {}
        epochs = module.recipe.epochs
        every = epochs if module.recipe.final else module.recipe.validate_every
        due = (epochs - 1 - trainer.current_epoch) % every == 0
        trainer.check_val_every_n_epoch = 1 if due else epochs + 1  # counted back from the last epoch

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        """Runs after validation, before the checkpoint is written."""
        seconds = time.monotonic() - module.started
        epoch, epochs = trainer.current_epoch + 1, module.recipe.epochs
        images = module.epoch_steps * module.recipe.batch_size
        row = {"epoch": epoch, "loss": module.epoch_loss / max(1, module.epoch_steps), "seconds": round(seconds, 2)}
        row |= {f"dev_dice_{k}": v for k, v in module.last_dice.items()}
        module.history.append(row)
        if not trainer.is_global_zero:
            return
        write_metrics(self.out / "metrics.csv", module.history)
        dice = f"  dev Dice {module.last_dice['mean']:.4f} (best {module.best['dice']:.4f})" if module.last_dice else ""
        left = (epochs - epoch) * sum(r["seconds"] for r in module.history) / len(module.history)
        self.say(f"epoch {epoch:3d}/{epochs}  loss {row['loss']:.4f}{dice}  {images / seconds:.0f} images/s  "
                 f"{left / 60:.1f} min left")


class MovingAverage(EMAWeightAveraging):
    """Validates the average, and leaves it in place until what was validated is saved: Lightning's own would swap it
    back before the module's end of validation."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pass

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)


class BesideAndRename(TorchCheckpointIO):
    """A kill while a checkpoint is written leaves the one before (Lightning's own goes through another file system)."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with new_file(Path(path)) as part:
            torch.save(checkpoint, part)


def make_trainer(recipe: Recipe, out: Path, machine: Machine, say: "Say") -> L.Trainer:
    """A Lightning trainer for this recipe that writes `out`/last.ckpt after each epoch and nothing else."""
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (".*does not have many workers.*", ".*Checkpoint directory.*", ".*LeafSpec.*", ".*Trying to infer.*"):
        warnings.filterwarnings("ignore", text)
    keep = ModelCheckpoint(out, "last", save_top_k=1, enable_version_counter=False, save_on_train_epoch_end=True)
    bar = [RichProgressBar(leave=False)] if sys.stdout.isatty() else []
    average = [MovingAverage(decay=recipe.ema)] if recipe.ema else []
    processes = machine.devices * machine.nodes
    return L.Trainer(
        accelerator="gpu" if training_device(machine.accelerator).type == "cuda" else "cpu",
        plugins=[BesideAndRename()],
        devices=machine.devices,
        num_nodes=machine.nodes,
        strategy="ddp" if processes > 1 else "auto",
        precision=resolve_precision(recipe.precision, machine.accelerator),  # type: ignore[arg-type]
        max_epochs=recipe.epochs,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        callbacks=[*bar, *average, EpochReport(out, say), keep],
        enable_progress_bar=bool(bar),
        enable_model_summary=False,
        default_root_dir=out,
        deterministic="warn",
    )


def write_metrics(path: Path, rows: list[dict[str, float]]) -> None:
    """metrics.csv: one row an epoch."""
    names = list(dict.fromkeys(k for row in rows for k in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
