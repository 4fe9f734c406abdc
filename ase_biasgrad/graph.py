"""`AtomGraph`: a batch of structures as tensors, and how it is made from arrays or `ase.Atoms`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.neighbours import Edges, neighbour_list

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class AtomGraph:
    """A batch of `b` structures with `n` atoms and `e` directed edges altogether.

    The edge `k` points from the centre `edge_index[0, k]` to the neighbour `edge_index[1, k]`
    in the cell image `edge_shift[k]`. Edges carry no lengths: vectors are computed from
    positions inside the potential, so that forces and stress are derivatives of one energy.
    """

    positions: Tensor  # (n, 3) float64, Å
    numbers: Tensor  # (n,) int64
    cell: Tensor  # (b, 3, 3) float64, Å, rows are lattice vectors
    pbc: Tensor  # (b, 3) bool
    edge_index: Tensor  # (2, e) int64
    edge_shift: Tensor  # (e, 3) integer multiples of the cell vectors
    batch: Tensor  # (n,) int64, structure that each atom belongs to
    # (e / 2,) int64, one of each two edges that are each other's reverse, where that is known
    forward: Tensor | None = None

    @property
    def n_structures(self) -> int:
        return self.cell.shape[0]

    @property
    def device(self) -> torch.device:
        return self.positions.device

    def edge_vectors(self) -> Tensor:
        """Vectors r_j + S·cell − r_i from centre to neighbour, `(e, 3)`, in Å."""
        centre, neighbour = self.edge_index
        vectors = self.positions[neighbour] - self.positions[centre]  # (e, 3)
        if self.pbc.device.type == "cpu" and not bool(self.pbc.any()):
            return vectors
        shift = self.edge_shift.to(self.cell.dtype)  # (e, 3)
        return vectors + torch.einsum("ek,ekl->el", shift, self.cell[self.batch[centre]])

    def to(self, device: torch.device | str) -> AtomGraph:
        """The same batch on another device."""
        tensors = {k: t.to(device) for k, t in vars(self).items() if t is not None}
        return AtomGraph(**tensors)

    def with_geometry(self, positions: Tensor, cell: Tensor) -> AtomGraph:
        """The same batch and edges with other positions `(n, 3)` and cells `(b, 3, 3)`."""
        return replace(self, positions=positions, cell=cell)


def graph_from_arrays(
    numbers: np.ndarray,
    positions: np.ndarray,
    cutoff: float,
    cell: np.ndarray | None = None,
    pbc: np.ndarray | Sequence[bool] | None = None,
    edges: Edges | None = None,
) -> AtomGraph:
    """One structure as a graph of all pairs within `cutoff` (Å; a molecule gets all pairs).

    Parameters are NumPy arrays: numbers `(n,)`, positions `(n, 3)` in Å, cell `(3, 3)` in Å,
    pbc `(3,)`. `edges` replaces the neighbour search by a list at hand.
    """
    pbc = np.zeros(3, bool) if pbc is None else np.asarray(pbc, bool)
    cell = np.zeros((3, 3)) if cell is None else np.asarray(cell, float)
    edges = neighbour_list(positions, cell, pbc, cutoff) if edges is None else edges
    return AtomGraph(
        positions=torch.tensor(np.asarray(positions, float)).reshape(-1, 3),
        numbers=torch.tensor(np.asarray(numbers), dtype=torch.int64),
        cell=torch.tensor(cell)[None],
        pbc=torch.tensor(pbc)[None],
        edge_index=torch.from_numpy(np.stack([edges.centre, edges.neighbour]).astype(np.int64)),
        edge_shift=torch.from_numpy(edges.shift.astype(np.int32)),
        batch=torch.zeros(len(numbers), dtype=torch.int64),
    )


def graph_from_atoms(atoms: Atoms, cutoff: float) -> AtomGraph:
    """`ase.Atoms` as a graph of all pairs within `cutoff` (Å)."""
    return graph_from_arrays(
        atoms.numbers, atoms.positions, cutoff, cell=atoms.cell.array, pbc=atoms.pbc
    )


def collate(graphs: Sequence[AtomGraph]) -> AtomGraph:
    """Join graphs into one batch, in order."""
    atoms = torch.tensor([len(g.numbers) for g in graphs])
    structures = torch.tensor([g.n_structures for g in graphs])
    first_atom = torch.cumsum(atoms, 0) - atoms
    first_structure = torch.cumsum(structures, 0) - structures
    pairs = list(zip(graphs, first_atom.tolist(), first_structure.tolist(), strict=True))
    return AtomGraph(
        positions=torch.cat([g.positions for g in graphs]),
        numbers=torch.cat([g.numbers for g in graphs]),
        cell=torch.cat([g.cell for g in graphs]),
        pbc=torch.cat([g.pbc for g in graphs]),
        edge_index=torch.cat([g.edge_index + first for g, first, _ in pairs], dim=1),
        edge_shift=torch.cat([g.edge_shift for g in graphs]),
        batch=torch.cat([g.batch + first for g, _, first in pairs]),
    )


def sum_per_structure(values: Tensor, graph: AtomGraph) -> Tensor:
    """Sum per-atom values `(n, ...)` over the atoms of each structure: `(b, ...)`."""
    total = values.new_zeros((graph.n_structures, *values.shape[1:]))
    return total.index_add(0, graph.batch, values)


def forward_edges(edge_index: Tensor, edge_shift: Tensor, periodic: bool) -> Tensor:
    """Forward edges `(e / 2,)` among edges `(2, e)` with shifts `(e, 3)`.

    Raises `ValueError` if an edge has no reverse.
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
    """Pairs and vectors of `pair_vectors` that are shorter than `cutoff` Å."""
    i, j, vectors = pair_vectors(graph)
    near = vectors.detach().square().sum(dim=1).sqrt() < cutoff
    if bool(near.all()):
        return i, j, vectors
    return i[near], j[near], vectors[near]


def pairs_within(graph: AtomGraph, cutoff: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs of `near_pair_vectors` with distances `(p,)` and unit vectors `(p, 3)`."""
    i, j, vectors = near_pair_vectors(graph, cutoff)
    distances = vectors.square().sum(dim=1).sqrt()
    return i, j, distances, vectors / distances.unsqueeze(1)
