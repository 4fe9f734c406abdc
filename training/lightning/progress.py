"""End of the force stage: after the last epoch, when time runs out, or when training diverges."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from ase_biasgrad.training.lightning.loggers import is_validated
from ase_biasgrad.training.stages.force import ForceStage

HOPELESS = 1e4  # times the loss of a potential without forces


class TrainingDiverged(RuntimeError):
    """A loss that is not finite or far above that of predicting no forces at all."""


class EndOfTraining(pl.Callback):
    """Validate the last epoch, whichever it is; end when time runs out or training has diverged.

    `max_seconds` count anew for each process, so that a run goes on when it is resumed.
    """

    def __init__(self, max_seconds: float | None) -> None:
        self.max_seconds = max_seconds
        self.ran_out = False
        self._begin = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx + 1 < trainer.num_training_batches:
            return
        over = self.max_seconds is not None and time.monotonic() - self._begin > self.max_seconds
        self.ran_out = bool(trainer.strategy.reduce_boolean_decision(over, all=False))
        if self.ran_out or trainer.current_epoch + 1 == trainer.max_epochs:
            trainer.check_val_every_n_epoch = 1

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: ForceStage) -> None:
        loss = float(pl_module.mean_training_loss())
        if not math.isfinite(loss) or loss > HOPELESS * pl_module.loss_without_forces:
            options = pl_module.options
            clip = options.gradient_clip
            raise TrainingDiverged(
                f"the training has diverged: the loss of epoch {trainer.current_epoch} is "
                f"{loss:.3g}, where predicting no forces at all gives "
                f"{pl_module.loss_without_forces:.3g}; lower force_stage.learning_rate (it is "
                f"{options.learning_rate:g}) or "
                + (
                    f"force_stage.gradient_clip (it is {clip:g})"
                    if clip
                    else "clip gradients (force_stage.gradient_clip=10, now off)"
                )
                + ", and look for wrong forces in the data"
            )
        trainer.should_stop = trainer.should_stop or self.ran_out


class StateFiles(ModelCheckpoint):
    """Lightning's states, of the last and of the best epoch, which may be moved or copied.

    Lightning forgets which epoch was the best when the folder has another path than before. It also
    saves in the middle of an epoch, after its validation, where not every epoch has one: a run that
    begins again from there has no training loss of that epoch.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after epochs that were validated."""
        if is_validated(trainer):
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state with the paths of today's folder."""
        folder = Path(str(self.dirpath))

        def here(path: str) -> str:
            return str(folder / Path(path).name) if path else path

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        moved = {name: here(state_dict[name]) for name in names}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict(
            {**state_dict, **moved, "best_k_models": best, "dirpath": self.dirpath}
        )
