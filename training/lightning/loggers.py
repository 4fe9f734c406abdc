"""Loggers of a run: a CSV table with a row per epoch always, others on request."""

from __future__ import annotations

import csv
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from ase_biasgrad.files import whole_file

COLUMNS = (
    "epoch",
    "step",
    "seconds",
    "learning_rate",
    "train_loss",
    "val_loss",
    "val_force_mae",
    "val_force_rmse",
)


class EpochTable(pl.Callback):
    """Append a row to `path` after each epoch; a resumed run goes on in the same table.

    `val_force_mae` and `val_force_rmse` are in eV/Å, losses in units of the RMS force.
    Rows of epochs that an interruption lost are removed when the run goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._begin = time.monotonic()
        self._validated = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validated = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        kept = [r for r in read_epoch_table(self.path) if int(r["epoch"]) < trainer.current_epoch]
        with (
            whole_file(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        before = float(kept[-1]["seconds"]) if kept else 0.0
        self._begin = time.monotonic() - before

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # callbacks run before the stage logs it; every process takes part in the mean
        train_loss = float(pl_module.mean_training_loss())
        if not trainer.is_global_zero:
            return
        values: dict[str, Any] = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self._begin, 3),
        }
        metrics = trainer.callback_metrics
        values |= {
            name: float(metrics[name])
            for name in COLUMNS
            if self._validated and name.startswith("val_") and name in metrics
        }
        values["train_loss"] = train_loss
        values["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(values)


def read_epoch_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table written by `EpochTable`; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["train_loss"]]


def extra_loggers(names: Sequence[str], folder: Path) -> list[Any] | bool:
    """Lightning's TensorBoard and Weights & Biases loggers; `False` without any."""
    loggers: list[Any] = []
    if "tensorboard" in names:
        loggers.append(pl.loggers.TensorBoardLogger(folder, name="tensorboard", version=""))
    if "wandb" in names:
        loggers.append(pl.loggers.WandbLogger(project="ase-biasgrad", save_dir=folder))
    return loggers or False
