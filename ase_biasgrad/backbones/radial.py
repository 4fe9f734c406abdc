"""Radial basis functions, cutoff functions and dense layers that networks share.

The functions, names of parameters and initial weights are those of SchNetPack (Schütt et al. 2023,
J. Chem. Phys. 158, 144801), so that its models come in unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


class GaussianRBF(nn.Module):
    """exp(−(r − r_k)² / 2w²) with `n_rbf` centres r_k from 0 to the cutoff, w apart."""

    widths: Tensor
    offsets: Tensor

    def __init__(self, n_rbf: int, cutoff: float) -> None:
        super().__init__()
        self.n_rbf = n_rbf
        offsets = torch.linspace(0.0, cutoff, n_rbf)
        self.register_buffer("widths", (offsets[1] - offsets[0]).abs() * torch.ones_like(offsets))
        self.register_buffer("offsets", offsets)

    def forward(self, r: Tensor) -> Tensor:
        """`(…, n_rbf)` of distances `(…)` in Å."""
        return torch.exp(-0.5 / self.widths**2 * (r[..., None] - self.offsets) ** 2)


class BesselRBF(nn.Module):
    """sin(kπr/cutoff)/r for k = 1 … n_rbf (Gasteiger, Groß and Günnemann 2020, ICLR)."""

    freqs: Tensor

    def __init__(self, n_rbf: int, cutoff: float) -> None:
        super().__init__()
        self.n_rbf = n_rbf
        self.register_buffer("freqs", torch.arange(1, n_rbf + 1) * math.pi / cutoff)

    def forward(self, r: Tensor) -> Tensor:
        """`(…, n_rbf)` of distances `(…)` in Å."""
        return torch.sin(r[..., None] * self.freqs) / torch.where(r == 0, 1.0, r)[..., None]


def cosine_cutoff(r: Tensor, cutoff: Tensor | float) -> Tensor:
    """½ (1 + cos(πr/cutoff)), zero from the cutoff on (Behler 2011, J. Chem. Phys. 134, 074106)."""
    return 0.5 * (torch.cos(r * math.pi / cutoff) + 1.0) * (r < cutoff)


class CosineCutoff(nn.Module):
    """`cosine_cutoff` as a module."""

    cutoff: Tensor

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("cutoff", torch.tensor([cutoff], dtype=torch.float32))

    def forward(self, r: Tensor) -> Tensor:
        """`(…)` of distances `(…)` in Å."""
        return cosine_cutoff(r, self.cutoff)


class MollifierCutoff(nn.Module):
    """exp(1 − 1/(1 − (r/cutoff)²)), zero from the cutoff on."""

    cutoff: Tensor
    eps: Tensor

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("cutoff", torch.tensor([cutoff], dtype=torch.float32))
        self.register_buffer("eps", torch.tensor([1e-7]))

    def forward(self, r: Tensor) -> Tensor:
        """`(…)` of distances `(…)` in Å."""
        inside = r + self.eps < self.cutoff
        return torch.exp(1.0 - 1.0 / (1.0 - (r * inside / self.cutoff) ** 2)) * inside


class Dense(nn.Linear):
    """A linear layer and its activation, with Glorot's initial weights and biases of zero."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        activation: Callable[[Tensor], Tensor] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__(inputs, outputs, bias)
        self.activation = activation

    def reset_parameters(self) -> None:
        """Draw the weights, set the biases to zero."""
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, outputs)` of `(…, inputs)`."""
        y = super().forward(x)
        return y if self.activation is None else self.activation(y)


def shifted_softplus(x: Tensor) -> Tensor:
    """ln(1 + eˣ) − ln 2."""
    return nn.functional.softplus(x) - math.log(2.0)


def halving_readout(features: int, layers: int) -> nn.Sequential:
    """Dense layers from `features` to one number, each half as wide, with SiLU between them."""
    widths = [max(1, features // 2**k) for k in range(layers)] + [1]
    hidden = [Dense(a, b, nn.functional.silu) for a, b in pairwise(widths[:-1])]
    return nn.Sequential(*hidden, Dense(widths[-2], 1))
