"""The normalised graph Laplacian L = I − D^(−1/2) A D^(−1/2), dense and sparse.

D is the diagonal of A's row sums. An atom without neighbours has L_ii = 1 and nothing else: no
error, and derivatives without NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ase_biasgrad.differentiable_graph.adjacency import Adjacency


def inverse_roots(degrees: Tensor) -> Tensor:
    """d^(−1/2) of each degree, zero where the degree is zero."""
    has_neighbours = degrees > 0
    return torch.where(has_neighbours, torch.where(has_neighbours, degrees, 1.0).rsqrt(), 0.0)


def normalised_laplacian(weights: Tensor) -> Tensor:
    """L `(n, n)` of symmetric, non-negative weights A `(n, n)`."""
    roots = inverse_roots(weights.sum(dim=1))  # (n,)
    identity = torch.eye(len(weights), dtype=weights.dtype, device=weights.device)
    return identity - roots[:, None] * weights * roots


def sparse_normalised_laplacian(adjacency: Adjacency) -> Adjacency:
    """L of a sparse A, sparse again: one entry for each of A's, and the identity."""
    row, column = adjacency.index
    roots = inverse_roots(adjacency.degrees())  # (n,)
    atoms = torch.arange(adjacency.n_atoms, device=row.device)
    scaled = roots[row] * adjacency.values * roots[column]  # (m,)
    return Adjacency(
        index=torch.cat([adjacency.index, atoms.expand(2, -1)], dim=1),
        values=torch.cat([-scaled, scaled.new_ones(adjacency.n_atoms)]),
        n_atoms=adjacency.n_atoms,
    )
