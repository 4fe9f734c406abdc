"""The radial network: kernel weights of every edge from its distance and scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn


def radial_trunk(inputs: int, hidden: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Two hidden layers with layer norm, as in the paper: `(edges, inputs) -> (edges, hidden)`."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.LayerNorm(hidden),
        activation(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        activation(),
    )


class RadialNetwork(nn.Module):
    """One trunk, whose hidden layer all kernels are linear in, and the last layer of each block.

    Parameters
    ----------
    inputs
        Distance and edge scalars.
    hidden
        Width of both hidden layers.
    outputs
        Numbers of weights of the blocks.
    activation
        Class of the activation: ReLU in the paper; a smooth one where forces are wanted.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: Sequence[int], activation: Callable[[], nn.Module]
    ) -> None:
        super().__init__()
        self.trunk = radial_trunk(inputs, hidden, activation)
        self.outputs = nn.ModuleList(nn.Linear(hidden, size) for size in outputs)

    def forward(self, scalars: Tensor) -> Tensor:
        """The hidden layer `(edges, hidden + 1)`, with ones at the end for the biases."""
        hidden = self.trunk(scalars)
        return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)

    def last_layers(self) -> list[Tensor]:
        """Weights and biases `(size, hidden + 1)` of each block."""
        return [
            torch.cat([layer.weight, layer.bias[:, None]], dim=1)
            for layer in cast(Iterable[nn.Linear], self.outputs)
        ]
