"""Batches of structures, one after another: forces, and gradients of losses of them.

Each structure has the memory of its own, so that it stays in the cache from the forward pass to the
VJP. Threads share the structures, and each has gradients of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ase_biasgrad.fused.candidates import arrange
from ase_biasgrad.fused.execute import execute
from ase_biasgrad.fused.execute_tangents import execute_tangents
from ase_biasgrad.fused.geometry import add_forces, edges_within, move_edges
from ase_biasgrad.fused.runtime import (
    Candidates,
    Compiled,
    Edges,
    EdgeTangents,
    atoms_at_once,
    empty_candidates,
    empty_edges,
)
from ase_biasgrad.numerics.kernel_cache import compiled
from ase_biasgrad.numerics.splines import N_WEIGHTS, Knots, polynomials, slope_polynomials


class Structures(NamedTuple):
    """`b` structures with `n` atoms and room for `e` edges altogether.

    Edges name atoms of their own structure. Atoms of structure s are `first_atom[s]` to
    `first_atom[s + 1]`, its edges likewise; starts of its edges by centre begin at
    `first_atom[s] + s`.
    """

    first_atom: np.ndarray  # (b + 1,) int64
    first_edge: np.ndarray  # (b + 1,) int64
    chunk: np.ndarray  # (b,) int64, atoms at once
    numbers: np.ndarray  # (n,) int64
    positions: np.ndarray  # (n, 3) float64
    cells: np.ndarray  # (b, 3, 3) float64
    edges: Candidates  # starts (n + b,), inners and middles (n,), neighbour and shift (e,)


class Room(NamedTuple):
    """Memory for the evaluation of structures."""

    first: np.ndarray  # (b + 1,) int64, of the memory of each structure
    memory: np.ndarray  # (m,)
    vectors: np.ndarray  # (e, 4) float64
    edges: Edges  # (n,) and (e,)
    tangents: EdgeTangents

    def fits(self, numbers: int, n: int, e: int) -> bool:
        """True if there is room for `n` atoms with `e` edges and so many numbers."""
        enough = numbers <= len(self.memory) and e <= len(self.vectors)
        return enough and n <= len(self.tangents.cotangents)


class Evaluated(NamedTuple):
    """Energies and derivatives of structures, float64."""

    energies: np.ndarray  # (n,) eV, of atoms
    forces: np.ndarray  # (n, 3) eV/Å
    strain_gradient: np.ndarray  # (b, 3, 3) eV


class SplineConstants(NamedTuple):
    """Knots, and polynomials of the weights of splines and of their derivatives."""

    cutoff: float
    spacing: float
    bins: int
    values: np.ndarray  # (6, 6)
    slopes: np.ndarray  # (5, 6)
    bends: np.ndarray  # (4, 6)

    @classmethod
    def of(cls, knots: Knots) -> SplineConstants:
        slopes = slope_polynomials()
        bends = slopes[1:] * np.arange(1, len(slopes))[:, None]
        return cls(knots.cutoff, knots.spacing, knots.count - 1, polynomials(), slopes, bends)


def structures_of(
    sizes: np.ndarray, edges: np.ndarray, shift: np.ndarray, first_edge: np.ndarray,
    numbers: np.ndarray, positions: np.ndarray, cells: np.ndarray,
) -> Structures:  # fmt: skip
    """Structures of `sizes (b,)` atoms with edges `(2, e)` from centre to neighbour.

    Edges come structure by structure, from `first_edge (b + 1,)` on, and count atoms through all
    structures.
    """
    first_atom = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    chunk = np.array([atoms_at_once(int(size)) for size in sizes], np.int64)
    n, e = int(first_atom[-1]), edges.shape[1]
    found = empty_candidates(n + len(sizes), n, e)
    out = Structures(first_atom, first_edge, chunk, numbers, positions, cells, found)
    _arrange_all(out, edges[0], edges[1], shift)
    return out


def room_for(structures: Structures, program: Compiled, dtype: np.dtype, last: Room | None) -> Room:
    """Memory for these structures; that of the `last` ones if it is large enough."""
    sizes = np.diff(structures.first_atom)
    first = np.concatenate(
        [[0], np.cumsum(program.kept * sizes + program.local * structures.chunk)]
    ).astype(np.int64)
    n, e = len(structures.numbers), len(structures.edges.neighbour)
    if last is not None and last.memory.dtype == dtype and last.fits(first[-1], n, e):
        edges = last.edges._replace(numbers=structures.numbers, starts=structures.edges.starts)
        return last._replace(first=first, edges=edges)
    edges = empty_edges(structures.numbers, structures.edges, np.empty(n), dtype)
    tangents = EdgeTangents(
        np.empty((e, 2, N_WEIGHTS), dtype), np.empty((e, 3), dtype), np.empty((e, 4)), np.zeros(n)
    )
    return Room(first, np.empty(first[-1], dtype), np.empty((e, 4)), edges, tangents)


@compiled()
def _arrange_all(structures, i, j, shift):  # type: ignore[no-untyped-def]
    for s in range(len(structures.chunk)):
        a, c, d = structures.first_atom[s], structures.first_edge[s], structures.first_edge[s + 1]
        arrange(i[c:d] - a, j[c:d] - a, shift[c:d], structures.chunk[s], _candidates(s, structures))


@compiled()
def _candidates(s, structures):  # type: ignore[no-untyped-def]
    """Candidates of structure s."""
    a, b = structures.first_atom[s], structures.first_atom[s + 1]
    c, d = structures.first_edge[s], structures.first_edge[s + 1]
    e = structures.edges
    return Candidates(
        e.starts[a + s : b + s + 1], e.inners[a:b], e.middles[a:b], e.neighbour[c:d], e.shift[c:d]
    )


@compiled()
def _edges(s, structures, room):  # type: ignore[no-untyped-def]
    """Edges of structure s."""
    a, b = structures.first_atom[s], structures.first_atom[s + 1]
    c, d = structures.first_edge[s], structures.first_edge[s + 1]
    e = room.edges
    return Edges(
        structures.numbers[a:b], structures.edges.starts[a + s : b + s + 1], e.inners[a:b],
        e.middles[a:b], e.ends[a:b], e.neighbour[c:d], e.bin[c:d], e.weights[c:d], e.unit[c:d],
        e.adjoints[c:d], e.energies[a:b], e.cotangents[a:b],
    )  # fmt: skip


@compiled()
def evaluate(  # type: ignore[no-untyped-def]
    block, blocks, instructions, segments, kept, local, weights, splines, structures, room, out
):
    """Write energies, forces and strain gradients of a block of the structures."""
    count = len(structures.chunk)
    for s in range(count * block // blocks, count * (block + 1) // blocks):
        a, b = structures.first_atom[s], structures.first_atom[s + 1]
        vectors = room.vectors[structures.first_edge[s] : structures.first_edge[s + 1]]
        memory, owner = room.memory[room.first[s] : room.first[s + 1]], np.zeros(b - a, np.int64)
        edges, cell = _edges(s, structures, room), structures.cells[s : s + 1]
        edges_within(
            0, 1, structures.positions[a:b], cell, owner, _candidates(s, structures),
            splines.cutoff, splines.spacing, splines.bins, splines.values, splines.slopes, vectors,
            edges,
        )  # fmt: skip
        execute(
            0, 1, instructions, segments, structures.chunk[s], kept, local, memory, weights, edges
        )
        out.energies[a:b] = edges.energies
        out.forces[a:b] = 0
        out.strain_gradient[s] = 0
        add_forces(
            vectors, edges, owner, splines.spacing, out.forces[a:b],
            out.strain_gradient[s : s + 1],
        )  # fmt: skip


@compiled()
def add_gradients(  # type: ignore[no-untyped-def]
    block, blocks, instructions, segments, kept, local, weights, splines, structures, room, moved,
    strain, gradients,
):  # fmt: skip
    """Add to `gradients (blocks, w)` those of a block of the structures, after `evaluate`.

    Positions move along `moved (n, 3)`, cells along `strain (b, 3, 3)`, and the adjoints of the
    energies along `room.tangents.cotangents`.
    """
    count = len(structures.chunk)
    for s in range(count * block // blocks, count * (block + 1) // blocks):
        a, b = structures.first_atom[s], structures.first_atom[s + 1]
        c, d = structures.first_edge[s], structures.first_edge[s + 1]
        memory, owner = room.memory[room.first[s] : room.first[s + 1]], np.zeros(b - a, np.int64)
        edges, t = _edges(s, structures, room), room.tangents
        tangents = EdgeTangents(t.weights[c:d], t.unit[c:d], t.adjoints[c:d], t.cotangents[a:b])
        move_edges(
            moved[a:b], strain[s : s + 1], owner, splines.spacing, splines.bins, splines.slopes,
            splines.bends, room.vectors[c:d], edges, tangents,
        )  # fmt: skip
        execute_tangents(
            0, 1, instructions, segments, structures.chunk[s], kept, local, memory, weights, edges,
            tangents, gradients[block],
        )  # fmt: skip


@compiled()
def take(numbers, places, out):  # type: ignore[no-untyped-def]
    """Write the numbers at `places (m,)`, indices of half the usual size."""
    for k in range(len(places)):
        out[k] = numbers[places[k]]


@compiled()
def add_taken(numbers, places, to, out):  # type: ignore[no-untyped-def]
    """Add the numbers at `places (m,)` to those at `to (m,)`."""
    for k in range(len(places)):
        out[to[k]] += numbers[places[k]]
