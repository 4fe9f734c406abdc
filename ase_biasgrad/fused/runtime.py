"""Plain data that executors run: finished programs, edges of structures. No Numba is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ase_biasgrad.numerics.splines import N_WEIGHTS, Knots
from ase_biasgrad.numerics.vector_memory import aligned_copy

CHUNKS, SMALLEST, LARGEST = 4, 54, 256


@dataclass(frozen=True)
class Compiled:
    """A finished program: instructions, weights, and how much memory it needs."""

    instructions: np.ndarray  # (k, longest) int64
    segments: np.ndarray  # (s, 2) int64, first and last instruction; forward pass, VJP, tangents
    forward: int  # segments of the forward pass
    first_order: int  # segments of the forward pass and the VJP
    weights: np.ndarray  # (w,) float32 or float64
    learnt: np.ndarray  # (w,) bool, those made of parameters
    kept: int  # numbers for each atom
    local: int  # numbers for each atom of a chunk
    last_weights: int  # place of the weights that give energies, a row; −1 if nothing does
    last_bias: int

    def as_type(self, dtype: np.dtype) -> Compiled:
        weights = aligned_copy(self.weights.astype(dtype))
        return Compiled(**{**vars(self), "weights": weights})


@dataclass(frozen=True)
class CompiledNetwork:
    """A program, and the grid on which its filters are splines."""

    program: Compiled
    knots: Knots


class Candidates(NamedTuple):
    """Directed edges that may be within the cutoff, by centre, as in `Edges` of programs.

    Of two edges that mirror each other one is upper: that to the later atom or, of an atom's own
    images, that to the one with the positive shift.
    """

    starts: np.ndarray  # (n + 1,) int64, of each centre
    inners: np.ndarray  # (n,) int64, the end of its inner edges
    middles: np.ndarray  # (n,) int64, the end of its upper edges
    neighbour: np.ndarray  # (e,) int64
    shift: np.ndarray  # (e, 3) int32 cells


class Edges(NamedTuple):
    """Atoms, their edges by centre, and what the program adds to.

    Of two edges that mirror each other one is upper. Upper edges come first, and among these the
    inner ones, between two atoms of one chunk, whose mirrors are left out.

    Floats are the network's unless said otherwise.
    """

    numbers: np.ndarray  # (n,) int64
    starts: np.ndarray  # (n + 1,) int64, room for the edges of each centre
    inners: np.ndarray  # (n,) int64, the end of its inner edges
    middles: np.ndarray  # (n,) int64, of its upper edges
    ends: np.ndarray  # (n,) int64, of all of its edges
    neighbour: np.ndarray  # (e,) int32
    bin: np.ndarray  # (e,) int32, of the splines
    weights: np.ndarray  # (e, 2, 6) of the six coefficients: for values, for slopes
    unit: np.ndarray  # (e, 3) from centre to neighbour
    adjoints: np.ndarray  # (e, 4) float64, of upper edges: ∂E/∂d per spacing of the knots, ∂E/∂u
    energies: np.ndarray  # (n,) float64
    cotangents: np.ndarray  # (n,) float64, adjoints of the energies


def empty_candidates(starts: int, n: int, count: int) -> Candidates:
    """Room for the `count` edges of `n` atoms, and for so many starts."""
    return Candidates._make((
        np.empty(starts, np.int64), *np.empty((2, n), np.int64), np.empty(count, np.int64),
        np.empty((count, 3), np.int32),
    ))  # fmt: skip


def empty_edges(
    numbers: np.ndarray, candidates: Candidates, energies: np.ndarray, dtype: np.dtype
) -> Edges:
    """Room for the edges among candidates, of the atoms that have `energies (n,)`."""
    n, count = len(energies), len(candidates.neighbour)
    return Edges._make((
        numbers, candidates.starts, *np.empty((3, n), np.int64), *np.empty((2, count), np.int32),
        np.empty((count, 2, N_WEIGHTS), dtype), np.empty((count, 3), dtype), np.empty((count, 4)),
        energies, np.ones(n),
    ))  # fmt: skip


class EdgeTangents(NamedTuple):
    """Changes of what `Edges` holds when the atoms move along a direction.

    Weights and unit vectors are given for all edges, 0 for those that are still, as most are when
    one atom moves; the adjoints of upper edges are added to.
    """

    still: np.ndarray  # (e,) bool
    weights: np.ndarray  # (e, 2, 6)
    unit: np.ndarray  # (e, 3)
    adjoints: np.ndarray  # (e, 4) float64
    cotangents: np.ndarray  # (n,) float64


def atoms_at_once(n: int) -> int:
    """Atoms of a chunk: a segment's share of the work, with most of their neighbours inside.

    It does not depend on the number of threads, so neither do results.
    """
    return n if n < SMALLEST else int(np.clip(-(-n // CHUNKS), SMALLEST, LARGEST))


def numbers_needed(program: Compiled, n: int, blocks: int) -> int:
    """Length of the memory for `n` atoms in so many blocks."""
    return program.kept * n + program.local * atoms_at_once(n) * blocks
