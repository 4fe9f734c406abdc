"""Loggers of a run: a CSV table with a row per epoch always, others on request."""

from __future__ import annotations

import contextlib
import csv
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from ase.data import chemical_symbols
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from ase_biasgrad.bias import Bias
from ase_biasgrad.files import whole_file, write_whole
from ase_biasgrad.training.config import ConfigError
from ase_biasgrad.training.evaluation.evaluate import Report

WANDB_ID = "wandb_id"  # file in the run folder
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
        values = {
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "seconds": round(time.monotonic() - self._begin, 3),
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
            "train_loss": train_loss,
        }
        if is_validated(trainer):
            of_validation = [name for name in COLUMNS if name.startswith("val_")]
            values |= {name: float(trainer.callback_metrics[name]) for name in of_validation}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(values)


def is_validated(trainer: pl.Trainer) -> bool:
    """Test that the present epoch, when it is over, has a validation."""
    every = trainer.check_val_every_n_epoch
    return every is None or (trainer.current_epoch + 1) % every == 0


def read_epoch_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table written by `EpochTable`; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["train_loss"]]


@contextlib.contextmanager
def open_loggers(
    names: Sequence[str], folder: Path, options: dict[str, Any]
) -> Iterator[list[Logger]]:
    """Lightning's TensorBoard and Weights & Biases loggers for the run in `folder`.

    Each begins with the options of the run, and ends with the block.

    Raises `ConfigError` if the package of one is not installed, or Weights & Biases does not start,
    for want of a login for example.
    """
    with contextlib.ExitStack() as stack:
        loggers: list[Logger] = []
        for name in names:
            try:
                loggers.append(stack.enter_context(_LOGGERS[name](folder)))
            except ModuleNotFoundError as error:
                raise ConfigError(
                    f"trainer.loggers: {name} is not installed; say "
                    f"`pip install 'ase-biasgrad[{name}]'`"
                ) from error
        for logger in loggers:
            logger.log_hyperparams(options)
        yield loggers


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[Logger]:
    logger = pl.loggers.TensorBoardLogger(
        folder, name="tensorboard", version="", default_hp_metric=False
    )
    yield logger
    logger.finalize("success")


@contextlib.contextmanager
def _wandb(folder: Path) -> Iterator[Logger]:
    """A run that has the same id whenever the training goes on.

    Where a run of the user's is active in this process, it takes the records and stays active.
    """
    if rank_zero_only.rank:
        yield pl.loggers.WandbLogger()
        return
    import wandb

    if wandb.run is not None:
        yield pl.loggers.WandbLogger(experiment=wandb.run)
        return
    folder.mkdir(parents=True, exist_ok=True)
    identity = folder / WANDB_ID
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ase-biasgrad"),
            name=folder.resolve().name,
            dir=folder,
            id=identity.read_text(encoding="utf-8") if identity.exists() else None,
            resume="allow",
        )
    except wandb.Error as error:
        with contextlib.suppress(OSError):
            folder.rmdir()  # if nothing else is in it
        raise ConfigError(
            f"trainer.loggers: Weights & Biases does not start: {error}\nLog in with "
            "`wandb login`, or set WANDB_MODE=offline: its records then stay in "
            f"{folder / 'wandb'}, from where `wandb sync` sends them"
        ) from error
    with run:  # ends it, as failed after an exception
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        write_whole(identity, run.id)
        yield pl.loggers.WandbLogger(experiment=run)


_LOGGERS = {"tensorboard": _tensorboard, "wandb": _wandb}


@rank_zero_only
def log_report(
    loggers: Sequence[Logger], part: str, report: Report, step: int, pictures: Sequence[Path] = ()
) -> None:
    """Log errors (eV, Å) as `part/force_mae`, `part/energy_mae`, `part/efwt`, …, and pictures."""
    numbers = {f"{part}/{name}": value for name, value in _numbers(report).items()}
    for logger in loggers:
        logger.log_metrics(numbers, step)
        for picture in pictures:
            _log_picture(logger, f"{part}/{picture.stem}", picture, step)


def _numbers(report: Report) -> dict[str, float]:
    norms = {
        "force": report.forces,
        "energy": report.energy,
        "energy_per_atom": report.energy_per_atom,
        "stress": report.stress,
    }
    found = {
        f"{label}_{norm}": getattr(errors, norm)
        for label, errors in norms.items()
        if errors is not None
        for norm in ("mae", "rmse", "largest")
    }
    if report.efwt is not None:
        efwt = report.efwt
        found |= {"efwt": efwt.both, "efwt_energy": efwt.energy, "efwt_forces": efwt.forces}
    return {"frames": report.frames, **found}


@rank_zero_only
def log_bias(loggers: Sequence[Logger], bias: Bias, step: int) -> None:
    """Log the energies of the elements (eV) as `bias/H`, …, and the numbers of the fit."""
    energies = bias.per_element.cpu().numpy()
    numbers = {chemical_symbols[z]: float(energies[z]) for z in np.flatnonzero(energies)}
    numbers |= {
        name: value for name, value in bias.fit_report.items() if isinstance(value, (int, float))
    }
    for logger in loggers:
        if numbers:
            logger.log_metrics({f"bias/{name}": value for name, value in numbers.items()}, step)


def _log_picture(logger: Any, name: str, path: Path, step: int) -> None:
    if isinstance(logger, pl.loggers.TensorBoardLogger):
        from matplotlib.image import imread

        logger.experiment.add_image(name, imread(path)[..., :3], step, dataformats="HWC")
    else:
        logger.log_image(name, [str(path)], step)
