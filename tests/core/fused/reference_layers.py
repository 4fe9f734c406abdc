"""Layers of fused networks in plain torch, for checking their written-out derivatives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ase_biasgrad.fused.messages import Components
from ase_biasgrad.numerics.splines import N_WEIGHTS


@dataclass(frozen=True)
class Pairs:
    """Pairs of `n` atoms, each once, and where their distances fall among the splines' knots."""

    i: Tensor  # (p,) int64
    j: Tensor  # (p,) int64
    n: int
    first: Tensor  # (p,) int64, first of six coefficients
    weights: Tensor  # (p, 6) of the coefficients


def chosen_and_parities(components: Components) -> tuple[Tensor, Tensor]:
    """Filter and parity of each component, `(c,)` and `(c, 1)`."""
    parities = torch.tensor(components.parities, dtype=torch.float32)
    return torch.tensor(components.filters), parities[:, None]


def cfconv(pairs: Pairs, x: Tensor, coefficients: Tensor, components: Components) -> Tensor:
    """Σ_j W_ij x_j for each atom i, `(n, c, f)`.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        What atoms send, `(n, c, f)`.
    coefficients
        Spline coefficients of g filters, `(k, g, f)`, of which some may be for others.
    components
        Which filter each of the `c` components takes.
    """
    chosen, _ = chosen_and_parities(components)
    filters = _filters(pairs, coefficients).index_select(1, chosen)  # (p, c, f)
    received = torch.zeros_like(x).index_add(0, pairs.i, filters * x[pairs.j])
    return received.index_add(0, pairs.j, filters * x[pairs.i])


def tensor_message(
    pairs: Pairs, x: Tensor, coefficients: Tensor, tensors: Tensor, components: Components
) -> Tensor:
    """Σ_j W_ij T_ij x_j for each atom i, `(n, c, f)`.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        What atoms send, `(n, f)`.
    coefficients
        Spline coefficients of g filters, `(k, g, f)`.
    tensors
        `(p, c)`, functions of the direction from i to j.
    components
        Which filter and parity each of the `c` components has.
    """
    chosen, parities = chosen_and_parities(components)
    filters = _filters(pairs, coefficients).index_select(1, chosen)  # (p, c, f)
    filters = filters * tensors[:, :, None]
    received = x.new_zeros((pairs.n, *filters.shape[1:]))
    received = received.index_add(0, pairs.i, filters * x[pairs.j][:, None])
    return received.index_add(0, pairs.j, parities.to(x.dtype) * filters * x[pairs.i][:, None])


def _filters(pairs: Pairs, coefficients: Tensor) -> Tensor:
    near = pairs.first[:, None] + torch.arange(N_WEIGHTS, device=coefficients.device)  # (p, 6)
    return torch.einsum("pt,ptgf->pgf", pairs.weights, coefficients[near])


def vector_norms(mixed: Tensor, epsilon: float) -> Tensor:
    """√(v·v + ε) `(n, f)` of mixed vectors `(n, 3, 2f)`."""
    v = mixed[:, :, : mixed.shape[2] // 2]
    return (v.square().sum(dim=1) + epsilon).sqrt()


def painn_mixing(factors: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """a⁰ + a² v·w `(n, f)` and a¹ w `(n, 3, f)` of factors a `(n, 3, f)`."""
    v, w = mixed.chunk(2, dim=2)
    return factors[:, 0] + factors[:, 2] * (v * w).sum(dim=1), factors[:, 1:2] * w
