"""Messages between atoms by pairs, each of which counts once.

With W = Σ_t w_t C_(m + t), a filter between i and j as a spline with coefficients C, they are

    convolve:  Σ_j W_ij x_j,         lift:  Σ_j W_ij T_ij x_j,

∂P/∂s and ∂Q/∂v of

    P(s, x, C, w)    = Σ_(i,j) Σ_c Σ_f W^g(c) (sᶜ_i xᶜ_j + sᶜ_j xᶜ_i),
    Q(v, x, C, w, T) = Σ_(i,j) Σ_c Σ_f W^g(c) Tᶜ (vᶜ_i x_j + σᶜ vᶜ_j x_i).

The first sends components as they are, the second sends scalars along tensors T of the pair's
direction, of parity σ. Several components may share a filter g(c). P and Q are linear in each
argument, and so are the derivatives that training on forces needs of them (`pair_operations`).
Here are torch operations, which run anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.splines import TAPS


@dataclass(frozen=True)
class Pairs:
    """Pairs of `n` atoms, each once, and where their distances fall among the splines' knots."""

    i: Tensor  # (p,) int64
    j: Tensor  # (p,) int64
    n: int
    first: Tensor  # (p,) int64, first of six coefficients
    weights: Tensor  # (p, 6) of the coefficients


@dataclass(frozen=True)
class Components:
    """Which filter each component takes, and its sign when i and j change places."""

    filters: tuple[int, ...]
    parities: tuple[int, ...] = ()

    @cached_property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """For the loops: filters that any component takes, `(u,)`; components in their order,
        those of filter k from `ends[k]` to `ends[k + 1]`; `ends (u + 1,)` comes before them;
        parities."""
        used, counts = np.unique(np.array(self.filters, np.int64), return_counts=True)
        ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        order = np.argsort(self.filters, kind="stable").astype(np.int64)
        return used, ends, order, np.array(self.parities, np.float32)

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Filter and parity of each component, `(c,)` and `(c, 1)`."""
        return _on_device(self, device)


@cache  # copies make a device wait
def _on_device(components: Components, device: torch.device) -> tuple[Tensor, Tensor]:
    parities = torch.tensor(components.parities, dtype=torch.float32, device=device)
    return torch.tensor(components.filters, device=device), parities[:, None]


def convolve(pairs: Pairs, x: Tensor, rows: Tensor, components: Components) -> Tensor:
    """Σ_j W_ij x_j for each atom i, `(n, c, f)`.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        What atoms send, `(n, c, f)`.
    rows
        Spline coefficients of g filters, `(rows, g, f)`, of which some may be for others.
    components
        Which filter each of the `c` components takes.
    """
    chosen, _ = components.on(x.device)
    filters = _filters(pairs, rows).index_select(1, chosen)  # (p, c, f)
    received = torch.zeros_like(x).index_add(0, pairs.i, filters * x[pairs.j])
    return received.index_add(0, pairs.j, filters * x[pairs.i])


def lift(pairs: Pairs, x: Tensor, rows: Tensor, tensors: Tensor, components: Components) -> Tensor:
    """Σ_j W_ij T_ij x_j for each atom i, `(n, c, f)`.

    Parameters
    ----------
    pairs
        Who sends to whom.
    x
        What atoms send, `(n, f)`.
    rows
        Spline coefficients of g filters, `(rows, g, f)`.
    tensors
        `(p, c)`, functions of the direction from i to j.
    components
        Which filter and parity each of the `c` components has.
    """
    chosen, parities = components.on(x.device)
    filters = _filters(pairs, rows).index_select(1, chosen) * tensors[:, :, None]  # (p, c, f)
    received = x.new_zeros((pairs.n, *filters.shape[1:]))
    received = received.index_add(0, pairs.i, filters * x[pairs.j][:, None])
    return received.index_add(0, pairs.j, parities.to(x.dtype) * filters * x[pairs.i][:, None])


def _filters(pairs: Pairs, rows: Tensor) -> Tensor:
    taps = pairs.first[:, None] + torch.arange(TAPS, device=rows.device)  # (p, 6)
    return torch.einsum("pt,ptgf->pgf", pairs.weights, rows[taps])
