"""`Adjacency`: a weighted graph as a list of entries of its matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Adjacency:
    """The entries of an `n_atoms × n_atoms` matrix; entries at the same place add up.

    All that it does is built of gathers and sums over the entries, so that derivatives of any
    order pass through (PyTorch's own sparse tensors have first ones only).
    """

    index: Tensor  # (2, m) int64, row and column
    values: Tensor  # (m,)
    n_atoms: int

    def dense(self) -> Tensor:
        """The matrix, `(n, n)`."""
        n = self.n_atoms
        place = self.index[0] * n + self.index[1]  # (m,)
        return self.values.new_zeros(n * n).index_add(0, place, self.values).reshape(n, n)

    def sparse(self) -> Tensor:
        """The matrix as a coalesced `torch.sparse_coo_tensor`."""
        size = (self.n_atoms, self.n_atoms)
        return torch.sparse_coo_tensor(self.index, self.values, size).coalesce()

    def degrees(self) -> Tensor:
        """Sum of each row, `(n,)`."""
        return self.values.new_zeros(self.n_atoms).index_add(0, self.index[0], self.values)

    def matmul(self, features: Tensor) -> Tensor:
        """The matrix times `features (n, f)`, in the precision of `features`."""
        row, column = self.index
        terms = self.values.to(features.dtype)[:, None] * features[column]  # (m, f)
        return torch.zeros_like(features).index_add(0, row, terms)


def symmetrised(centre: Tensor, neighbour: Tensor, values: Tensor, n_atoms: int) -> Adjacency:
    """½(W + Wᵀ) of the directed entries W[centre, neighbour] += values, each place once.

    Upper and lower triangle hold the same numbers, bit for bit.
    """
    low, high = torch.minimum(centre, neighbour), torch.maximum(centre, neighbour)
    pairs, owner = torch.unique(low * n_atoms + high, return_inverse=True)  # (p,), (m,)
    halves = torch.where(low == high, values, 0.5 * values)
    sums = values.new_zeros(len(pairs)).index_add(0, owner, halves)  # (p,)
    low, high = pairs // max(n_atoms, 1), pairs % max(n_atoms, 1)
    mirrored = (low != high).nonzero().squeeze(1)
    index = torch.stack(
        [torch.cat([low, high[mirrored]]), torch.cat([high, low[mirrored]])]
    )  # (2, m)
    return Adjacency(index, torch.cat([sums, sums[mirrored]]), n_atoms)
