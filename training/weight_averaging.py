"""Exponential moving average of the weights, on Lightning's own callback."""

from __future__ import annotations

from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage(WeightAveraging):
    """Validate, keep and return averaged weights; `decay` counts optimizer steps."""

    def __init__(self, decay: float) -> None:
        # buffers hold the bias and constants of the networks: nothing to average
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
