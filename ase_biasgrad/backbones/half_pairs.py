"""Of the directed edges of a graph, one of each two that are each other's reverse."""

from __future__ import annotations

import torch
from torch import Tensor

from ase_biasgrad.graph import AtomGraph


def forward_edges(edge_index: Tensor, edge_shift: Tensor, periodic: bool) -> Tensor:
    """Of edges `(2, e)` with shifts `(e, 3)` those `(e / 2,)` that point forward.

    Raises
    ------
    ValueError
        If an edge has no reverse.
    """
    i, j = edge_index
    keep = i < j
    if periodic:
        # of images of an atom itself: those whose first component other than 0 is positive
        sign = edge_shift[:, 0].sign() * 4 + edge_shift[:, 1].sign() * 2 + edge_shift[:, 2].sign()
        keep = keep | ((i == j) & (sign > 0))
    kept = keep.nonzero()[:, 0]
    if 2 * len(kept) != len(i):
        raise ValueError(
            f"of {len(i)} directed edges {len(kept)} point forward: every edge needs its reverse"
        )
    return kept


def pair_vectors(graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs i, j `(p,)` of all edges, each once, and vectors `(p, 3)` from i to j.

    Vectors are float64 and differentiable in positions and cell. Where the graph knows its forward
    edges nothing waits for the device.
    """
    periodic = graph.pbc.device.type != "cpu" or bool(graph.pbc.any())
    kept = graph.forward
    if kept is None:
        kept = forward_edges(graph.edge_index, graph.edge_shift, periodic)
    i, j = graph.edge_index.index_select(1, kept)
    vectors = graph.positions.index_select(0, j) - graph.positions.index_select(0, i)
    if periodic:
        cells = graph.cell.to(vectors.dtype).index_select(0, graph.batch[i])
        shift = graph.edge_shift.index_select(0, kept).to(vectors.dtype)
        vectors = vectors + torch.einsum("pk,pkl->pl", shift, cells)
    return i, j, vectors


def near_pair_vectors(graph: AtomGraph, cutoff: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `pair_vectors`, of the pairs closer than `cutoff` Å only."""
    i, j, vectors = pair_vectors(graph)
    near = vectors.detach().square().sum(dim=1).sqrt() < cutoff
    if bool(near.all()):
        return i, j, vectors
    return i[near], j[near], vectors[near]


def pairs_of(graph: AtomGraph) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `pair_vectors`, with distances `(p,)` and unit vectors `(p, 3)` for the vectors."""
    return _with_distances(*pair_vectors(graph))


def pairs_within(graph: AtomGraph, cutoff: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `pairs_of`, of the pairs closer than `cutoff` Å only."""
    return _with_distances(*near_pair_vectors(graph, cutoff))


def _with_distances(i: Tensor, j: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    distances = vectors.square().sum(dim=1).sqrt()
    return i, j, distances, vectors / distances.unsqueeze(1)
