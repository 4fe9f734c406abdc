"""The radial network: kernel weights of every edge from its distance and scalars."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    """One trunk and several outputs, one for each block of kernels.

    Parameters
    ----------
    inputs
        Distance and edge scalars.
    hidden
        Width of both hidden layers.
    outputs
        Numbers of weights; each is a block of its own, so that no block is ever sliced.
    activation
        Class of the activation: ReLU in the paper; a smooth one where forces are wanted.
    """

    def __init__(
        self,
        inputs: int,
        hidden: int,
        outputs: Sequence[int],
        activation: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.trunk = radial_trunk(inputs, hidden, activation)
        self.outputs = nn.ModuleList(nn.Linear(hidden, size) for size in outputs)

    def forward(self, scalars: Tensor) -> list[Tensor]:
        """Weights `(edges, size)` of each block."""
        hidden = self.trunk(scalars)  # (edges, hidden)
        return [output(hidden) for output in self.outputs]
