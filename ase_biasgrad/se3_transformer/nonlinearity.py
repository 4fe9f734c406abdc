"""Non-linearities that act on norms and keep directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ase_biasgrad.se3_transformer.edges import EdgeContext
from ase_biasgrad.se3_transformer.fibers import Features, Fiber

SMALLEST_NORM = 1e-12


class NormBias(nn.Module):
    """v → relu(|v| + b) v/|v| with a bias b per channel (the paper's N-body network)."""

    def __init__(self, fiber: Fiber) -> None:
        super().__init__()
        self.biases = nn.ParameterDict(
            {str(degree): nn.Parameter(torch.randn(c)) for degree, c in fiber.items()}
        )

    def forward(self, features: Features, edges: EdgeContext | None = None) -> Features:
        """Features of the same fiber."""
        output = {}
        for degree, value in features.items():
            norm = _norm(value)
            scale = functional.relu(norm + self.biases[str(degree)]) / norm
            output[degree] = value * scale[:, None, :]
        return output


class NormLayerNorm(nn.Module):
    """v → relu(LayerNorm(|v|)) v/|v|, norms normalised over channels (the paper's QM9 network)."""

    def __init__(self, fiber: Fiber) -> None:
        super().__init__()
        self.norms = nn.ModuleDict({str(degree): nn.LayerNorm(c) for degree, c in fiber.items()})

    def forward(self, features: Features, edges: EdgeContext | None = None) -> Features:
        """Features of the same fiber."""
        output = {}
        for degree, value in features.items():
            norm = _norm(value)
            scale = functional.relu(self.norms[str(degree)](norm)) / norm
            output[degree] = value * scale[:, None, :]
        return output


class SmoothGate(nn.Module):
    """Smooth everywhere, for potentials: scalars s → silu(s), others v → v · sigmoid(w n + b).

    n = √(1 + |v|²) − 1 has derivatives of all orders also where v vanishes, as it does by
    symmetry at atoms of crystals; v/|v| has not.
    """

    def __init__(self, fiber: Fiber) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(
            {str(degree): nn.Parameter(torch.ones(c)) for degree, c in fiber.items() if degree}
        )
        self.biases = nn.ParameterDict(
            {str(degree): nn.Parameter(torch.zeros(c)) for degree, c in fiber.items() if degree}
        )

    def forward(self, features: Features, edges: EdgeContext | None = None) -> Features:
        """Features of the same fiber."""
        output = {}
        for degree, value in features.items():
            if degree == 0:
                output[0] = functional.silu(value)
                continue
            norm = torch.sqrt(1 + value.square().sum(dim=1)) - 1  # (n, channels)
            gate = torch.sigmoid(norm * self.weights[str(degree)] + self.biases[str(degree)])
            output[degree] = value * gate[:, None, :]
        return output


def _norm(value: Tensor) -> Tensor:
    """Norms `(n, channels)`, never zero."""
    return value.square().sum(dim=1).clamp_min(SMALLEST_NORM**2).sqrt()
