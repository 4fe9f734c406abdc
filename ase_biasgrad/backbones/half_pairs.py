"""Of the directed edges of a graph, one of each two that are each other's reverse."""

from __future__ import annotations

import torch
from torch import Tensor

from ase_biasgrad.graph import AtomGraph


def half_of(graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor | None]:
    """Pairs i, j `(p,)` and their cell shifts `(p, 3)`, None where nothing is periodic.

    Raises
    ------
    ValueError
        If an edge of the graph has no reverse.
    """
    i, j = graph.edge_index
    keep = i < j
    periodic = graph.pbc.device.type != "cpu" or bool(graph.pbc.any())
    if periodic:
        shift = graph.edge_shift
        # of images of an atom itself: those whose first component other than 0 is positive
        sign = shift[:, 0].sign() * 4 + shift[:, 1].sign() * 2 + shift[:, 2].sign()
        keep = keep | ((i == j) & (sign > 0))
    kept = keep.nonzero()[:, 0]
    if 2 * len(kept) != len(i):
        raise ValueError(
            f"of {len(i)} directed edges {len(kept)} point forward: every edge needs its reverse"
        )
    return i[kept], j[kept], graph.edge_shift[kept] if periodic else None


def pairs_within(graph: AtomGraph, cutoff: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs i, j `(p,)` closer than `cutoff` Å, each once: i, j, distances `(p,)`, unit `(p, 3)`.

    Unit vectors point from i to j. Both are float64 and differentiable in positions and cell.
    """
    i, j, shift = half_of(graph)
    vectors = graph.positions.index_select(0, j) - graph.positions.index_select(0, i)
    if shift is not None:
        cells = graph.cell.to(vectors.dtype)[graph.batch[i]]
        vectors = vectors + torch.einsum("pk,pkl->pl", shift.to(vectors.dtype), cells)
    near = vectors.detach().square().sum(dim=1) < cutoff**2
    if not bool(near.all()):
        i, j, vectors = i[near], j[near], vectors[near]
    distances = vectors.square().sum(dim=1).sqrt()
    return i, j, distances, vectors / distances[:, None]
