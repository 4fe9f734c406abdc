"""A force stage that fits itself to a time: the schedule follows the clock, and ends with it."""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

import numpy as np
import pytorch_lightning as pl

from ase_biasgrad.progress import say
from ase_biasgrad.training.config import ForceStageOptions
from ase_biasgrad.training.lightning.loggers import is_validated

WARMUP = 0.05  # of the time at most
NEWS = 0.05  # of the time from one line about progress to the next
FORGOTTEN = 0.25  # the first share of the time, which tells nothing of the end
# exponents of `forecast`, and how far they are from the truth: of trainings of several networks
USUAL = np.array([0.5, 0.5])
SPREAD = np.array([0.1, 0.1])
NOISE, ERRORS = 0.1, 4  # of the logarithm of a validation error; errors that tell different things


class TimeSchedule(pl.Callback):
    """Set the learning rate by the time that is over, and end the force stage when all of it is.

    The rate rises as `warmup_steps` say, within a twentieth of the time, then falls as half a
    cosine that ends with the time. With the schedules `constant` and `plateau` the clock ends the
    stage alone. The clock stands still while the run is interrupted: of an epoch that is lost, the
    time is not counted. Nor is the first step of a process, in which kernels may be compiled. With
    `tell`, lines about the progress go to the standard error.
    """

    def __init__(self, options: ForceStageOptions, tell: bool) -> None:
        assert options.max_minutes is not None
        self.options, self.tell = options, tell
        self.seconds = 60 * options.max_minutes
        self._before = 0.0  # seconds of whole epochs of earlier processes
        self._begin: float | None = None
        self._validation = 0.0  # seconds that the last one took
        self._errors: list[list[float]] = []  # share of the time and validation error, each time
        self._told = 0.0

    @property
    def elapsed(self) -> float:
        """Seconds of training, in all processes that the run had."""
        now = 0.0 if self._begin is None else monotonic() - self._begin
        return self._before + now

    @property
    def done(self) -> float:
        """Share of the time that is over, 0 to 1."""
        return min(1.0, self.elapsed / self.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Time used and errors so far, for a run that goes on."""
        return {"elapsed": self.elapsed, "errors": self._errors}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the clock of the run."""
        self._before = float(state_dict["elapsed"])
        self._errors = [list(pair) for pair in state_dict["errors"]]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin = None
        self._told = self.done
        self._set_rate(trainer)
        if self.done >= 1:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._begin is None:
            self._begin = monotonic()
        self._set_rate(trainer)
        over = self.elapsed + self._validation >= self.seconds
        if trainer.strategy.reduce_boolean_decision(over, all=False):
            trainer.check_val_every_n_epoch = 1  # the last epoch is validated, however short
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation_begin = monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._validation = monotonic() - self._validation_begin

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if is_validated(trainer):
            self._errors.append([self.done, float(trainer.callback_metrics["val_force_mae"])])
        if not (self.tell and trainer.is_global_zero and self.done - self._told >= NEWS):
            return
        self._told = self.done
        say(self.news(trainer.current_epoch + 1))

    def news(self, epochs: int) -> str:
        """One line: time left, epochs, the error now and its forecast."""
        left = max(0.0, self.seconds - self.elapsed) / 60
        line = f"{left:.1f} of {self.seconds / 60:g} minutes left, epoch {epochs}"
        if self.done > 0:
            line += f" of about {epochs / self.done:.0f}"
        if not self._errors:
            return line
        done, errors = np.array(self._errors).T
        line += f"; validation force MAE {1000 * errors[-1]:.2f} meV/Å"
        expected = forecast(done, errors)
        return line if expected is None else f"{line}, at the end about {1000 * expected:.2f}"

    def _set_rate(self, trainer: pl.Trainer) -> None:
        if self.options.schedule.name != "cosine":
            return
        # processes whose weights are to stay the same share one clock
        rate = trainer.strategy.broadcast(self.rate(trainer.global_step))
        rate *= self.options.learning_rate
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate

    def rate(self, step: int) -> float:
        """Learning rate of a step relative to the largest."""
        schedule, done = self.options.schedule, self.done
        by_steps = (step + 1) / max(1, schedule.warmup_steps)
        warm = min(1.0, max(by_steps, done / WARMUP))
        lowest = min(1.0, schedule.minimum / self.options.learning_rate)
        return warm * (lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * done)))


def forecast(done: np.ndarray, errors: np.ndarray) -> float | None:
    """Validation error at the end of a cosine schedule, from those so far; None if too early.

    Fits log ε = a − p log S − q A, where S is the sum of learning rates up to a share of the
    schedule, 1 at its end, and A the share of the rate that is gone (after the annealing law of
    Tissue et al. 2024, arXiv:2408.11029). p and q begin from those of other trainings, and the
    errors of this one correct them as far as they tell: a Bayesian linear regression.

    `done` are shares of the schedule `(k,)`, 0 to 1; `errors` those there `(k,)`, in any unit.
    """
    told = done > FORGOTTEN
    if told.sum() < 2:
        return None
    x, y = done[told], np.log(errors[told])
    summed = x + np.sin(np.pi * x) / np.pi  # ∫ (1 + cos πx) dx, 1 at the end
    gone = 0.5 * (1 - np.cos(np.pi * x))
    features = -np.stack([np.log(summed), gone - 1], axis=1)  # (k, 2), 0 at the end
    # the newest errors tell most of the end
    weights = np.exp(-(x[-1] - x) / 0.1)
    weights = weights / weights.sum() * min(len(x), ERRORS) / NOISE**2
    design = np.concatenate([np.ones((len(x), 1)), features], axis=1)
    precision = design.T @ (weights[:, None] * design)
    right = design.T @ (weights * y)
    precision[[1, 2], [1, 2]] += SPREAD**-2.0
    right[1:] += USUAL / SPREAD**2
    return float(np.exp(np.linalg.solve(precision, right)[0]))
