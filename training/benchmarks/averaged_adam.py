"""Adam with a warm-up, a cosine to zero and averaged weights: the loop of the small experiments."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

Network = TypeVar("Network", bound=nn.Module)


class AveragedAdam(Generic[Network]):
    """Trains `network` in place and keeps an exponential average of its weights.

    Parameters
    ----------
    network
        What is trained.
    learning_rate
        The largest; reached after the warm-up, falling with a cosine afterwards.
    steps
        Of the whole training.
    warmup
        Share of the steps in which the rate rises.
    ema_decay
        Of the average, per step.
    largest_gradient
        Norm that gradients are scaled down to.
    """

    def __init__(
        self,
        network: Network,
        learning_rate: float,
        steps: int,
        warmup: float = 0.05,
        ema_decay: float = 0.998,
        largest_gradient: float = 1.0,
    ) -> None:
        self.network, self.largest_gradient = network, largest_gradient
        average = get_ema_multi_avg_fn(ema_decay)
        self._average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self._optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, learning_rate, total_steps=steps, pct_start=warmup
        )

    def step(self, loss: Tensor) -> None:
        """Differentiate `loss` and move."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_gradient)
        self._optimizer.step()
        self._schedule.step()
        self._average.update_parameters(self.network)

    def averaged(self) -> Network:
        """A copy of the network with the averaged weights, in evaluation mode."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(self._average.module.state_dict())
        return network.eval()
