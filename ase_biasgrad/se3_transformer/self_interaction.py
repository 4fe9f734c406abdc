"""Self-interaction: channels of one degree mixed at each point, without its neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ase_biasgrad.se3_transformer.fibers import Features, Fiber


class LinearSelfInteraction(nn.Module):
    """A constant matrix per degree out, of variance-preserving scale; no bias.

    Degrees of `fiber_out` must be in `fiber_in`; other degrees in are not used.
    """

    def __init__(self, fiber_in: Fiber, fiber_out: Fiber) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(
            {
                str(degree): nn.Parameter(
                    torch.randn(fiber_in[degree], channels) / math.sqrt(fiber_in[degree])
                )
                for degree, channels in fiber_out.items()
            }
        )

    def forward(self, features: Features) -> Features:
        """`(n, 2l + 1, channels)` of each degree out."""
        return {
            int(degree): features[int(degree)] @ weight for degree, weight in self.weights.items()
        }


class AttentiveSelfInteraction(nn.Module):
    """Channels mixed with weights that depend on the features' own scalar products.

    Weights of a point are softmax over the channels in of net(v_c · v_d), so that each channel
    out is a mean of channels in.
    """

    def __init__(self, fiber_in: Fiber, fiber_out: Fiber) -> None:
        super().__init__()
        self.fiber_out = dict(fiber_out)
        self.nets = nn.ModuleDict(
            {
                str(degree): nn.Sequential(
                    nn.LayerNorm(fiber_in[degree] ** 2),
                    nn.LeakyReLU(),
                    nn.Linear(fiber_in[degree] ** 2, fiber_in[degree] * channels),
                )
                for degree, channels in fiber_out.items()
            }
        )

    def forward(self, features: Features) -> Features:
        """`(n, 2l + 1, channels)` of each degree out."""
        return {
            degree: features[degree] @ self._weights(features[degree], degree, channels)
            for degree, channels in self.fiber_out.items()
        }

    def _weights(self, value: Tensor, degree: int, channels: int) -> Tensor:
        """`(n, channels in, channels out)`."""
        products = (value.transpose(1, 2) @ value).flatten(1)  # (n, channels in²)
        weights = self.nets[str(degree)](products).view(len(value), value.shape[2], channels)
        return torch.softmax(weights, dim=1)
