"""Memory of structures that threads share out between them, each evaluated by one thread alone.

No Numba is loaded; the kernels are in `batches`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ase_biasgrad.fused.runtime import (
    Candidates,
    Compiled,
    Edges,
    EdgeTangents,
    atoms_at_once,
    empty_candidates,
    empty_edges,
    numbers_needed,
)
from ase_biasgrad.numerics.native import NativeKernel
from ase_biasgrad.numerics.splines import N_WEIGHTS, Knots, polynomials, slope_polynomials
from ase_biasgrad.numerics.vector_memory import aligned

ARRANGE_ALL = NativeKernel("ase_biasgrad.fused.batches", "arrange_all")


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

    first: np.ndarray  # (b,) int64, of the memory of each structure
    memory: np.ndarray  # (m,)
    vectors: np.ndarray  # (e, 4) float64
    edges: Edges  # (n,) and (e,)
    tangents: EdgeTangents
    owner: np.ndarray  # (n,) int64, 0: atoms of a structure are those of the first of one

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
    positions, cells = np.ascontiguousarray(positions), np.ascontiguousarray(cells)
    out = Structures(first_atom, first_edge, chunk, numbers, positions, cells, found)
    ARRANGE_ALL(out, edges[0], edges[1], np.ascontiguousarray(shift))
    return out


def shares(first_atom: np.ndarray, blocks: int) -> list[tuple[int, int]]:
    """First structure of each of so many blocks of about as many atoms, and the end of it.

    `first_atom (b + 1,)` is that of `Structures`, whole or its first numbers.
    """
    ends = first_atom[-1] * np.arange(blocks + 1) // blocks
    firsts = np.searchsorted(first_atom[:-1], ends).tolist()
    return list(pairwise(firsts))


def room_for(structures: Structures, program: Compiled, dtype: np.dtype, last: Room | None) -> Room:
    """Memory for these structures, each with its own; that of the `last` ones if it is enough."""
    needed = _needed(structures, program)
    first = np.cumsum(needed) - needed
    return _room(structures, dtype, first, int(needed.sum()), last)


def shared_room_for(
    structures: Structures, program: Compiled, dtype: np.dtype, blocks: int, last: Room | None
) -> Room:
    """Memory in which each block of structures evaluates one after another, as `room_for`.

    It stays in the cache, and holds what the last of each has left. `share_out` gives it to them.
    """
    largest = int(_needed(structures, program).max())
    first = np.zeros(len(structures.chunk), np.int64)
    return _room(structures, dtype, first, largest * blocks, last)


def share_out(
    structures: Structures, count: int, rooms: Sequence[Room], blocks: int
) -> list[tuple[int, int]]:
    """Blocks of the first `count` structures, as in `shares`, each with its part of the memory."""
    found = shares(structures.first_atom[: count + 1], blocks)
    for room in rooms:
        for k, (a, b) in enumerate(found):
            room.first[a:b] = len(room.memory) // blocks * k
    return found


def _needed(structures: Structures, program: Compiled) -> np.ndarray:
    sizes = np.diff(structures.first_atom).tolist()
    return np.array([numbers_needed(program, size, 1) for size in sizes], np.int64)


def _room(
    structures: Structures, dtype: np.dtype, first: np.ndarray, numbers: int, last: Room | None
) -> Room:
    n, e = len(structures.numbers), len(structures.edges.neighbour)
    if last is not None and last.memory.dtype == dtype and last.fits(numbers, n, e):
        edges = last.edges._replace(numbers=structures.numbers, starts=structures.edges.starts)
        return last._replace(first=first, edges=edges)
    edges = empty_edges(structures.numbers, structures.edges, np.empty(n), dtype)
    tangents = EdgeTangents(
        np.empty(e, np.bool_), np.empty((e, 2, N_WEIGHTS), dtype), np.empty((e, 3), dtype),
        np.empty((e, 4)), np.zeros(n),
    )  # fmt: skip
    owner = np.zeros(n, np.int64)
    return Room(first, aligned(numbers, dtype), np.empty((e, 4)), edges, tangents, owner)
