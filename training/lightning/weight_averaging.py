"""Exponential moving average of the weights, on Lightning's own callback."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(WeightAveraging):
    """Validate, keep and return averaged weights; `decay` counts optimizer steps."""

    _latest_update_step: int

    def __init__(self, decay: float) -> None:
        self._update = get_ema_multi_avg_fn(decay)
        self._weights: tuple[list[Tensor], list[Tensor]] | None = None  # averaged, current
        # buffers hold the bias and constants of the networks: nothing to average
        super().__init__(use_buffers=False, multi_avg_fn=self._update)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any
    ) -> None:
        """Update the average without searching all modules for their weights in every step."""
        if self._weights is None:
            super().on_train_batch_end(trainer, pl_module, *args)
            assert self._average_model is not None
            averaged, current = self._average_model.module.parameters(), pl_module.parameters()
            self._weights = [p.detach() for p in averaged], [p.detach() for p in current]
        elif trainer.global_step > self._latest_update_step:
            assert self._average_model is not None
            self._update(*self._weights, self._average_model.n_averaged)
            self._average_model.n_averaged += 1
            self._latest_update_step = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._weights = None
        super().on_train_end(trainer, pl_module)
