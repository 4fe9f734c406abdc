"""Order of atoms and pairs that keeps the next data in the processor's cache.

Neighbours in space become neighbours in memory, and pairs of a few atoms follow one another by
their length, so that they share coefficients of the filters. A fluid of a thousand atoms in random
order takes half as long again without.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ase_biasgrad.calculators.engines.base import Structure
from ase_biasgrad.calculators.engines.verlet_list import VerletCache
from ase_biasgrad.neighbours import Edges, HalfPairs, complete_cell, half

# the rows of fewer atoms are in the cache in any order
ARRANGED_FROM = 200
BIN = 2.5  # Å
BITS = 20  # of each coordinate, in bins
TOGETHER, LENGTHS = 16, 128  # atoms whose pairs are ordered by length, and how finely
AT_ONCE = 2**16 // LENGTHS * TOGETHER  # atoms whose pairs are ordered in one go


def z_order(structure: Structure) -> np.ndarray:
    """Atoms `(n,)` along a Z-order curve through bins of about `BIN` Å.

    G. M. Morton 1966. Periodic coordinates are taken within the cell.
    """
    box = complete_cell(structure.cell, structure.pbc)
    fractional = structure.positions @ np.linalg.inv(box)  # (n, 3)
    fractional = np.where(structure.pbc, fractional % 1.0, fractional - fractional.min(axis=0))
    scaled = fractional * np.linalg.norm(box, axis=1) / BIN
    bins = np.minimum(scaled, 2**BITS - 1).astype(np.int64)
    code = np.zeros(len(bins), np.int64)
    for bit in range(BITS):
        for k in range(3):
            code |= (bins[:, k] >> bit & 1) << (3 * bit + k)
    return np.argsort(code, kind="stable")


def by_length(pairs: HalfPairs, structure: Structure) -> None:
    """Order pairs, which are sorted by i, by length among those of each `TOGETHER` atoms; in place.

    Lengths count to about a `LENGTHS`-th of the longest.
    """
    cell = np.where(structure.pbc[:, None], structure.cell, 0.0)
    ends = np.append(np.arange(AT_ONCE, len(structure.numbers), AT_ONCE), len(structure.numbers))
    first = 0
    for last in np.searchsorted(pairs.i, ends).tolist():
        i, j, shift = (part[first:last] for part in (pairs.i, pairs.j, pairs.shift))
        vectors = structure.positions[j] - structure.positions[i] + shift @ cell
        lengths = np.sqrt(np.einsum("pk,pk->p", vectors, vectors))
        key = (lengths * ((LENGTHS - 1) / lengths.max(initial=1.0))).astype(np.int64)
        key += i % AT_ONCE // TOGETHER * LENGTHS
        # numpy sorts integers of 16 bits many times as fast
        order = np.argsort(key.astype(np.uint16), kind="stable")
        for part in (i, j, shift):
            part[:] = part[order]
        first = last


def _half_pairs(edges: Edges, structure: Structure) -> HalfPairs:
    pairs = half(edges)
    if len(structure.numbers) >= ARRANGED_FROM:
        by_length(pairs, structure)
    return pairs


class SortedStructure(NamedTuple):
    """A structure as it lies in memory, its pairs, and which atoms stand where, if moved."""

    structure: Structure
    pairs: HalfPairs
    order: np.ndarray | None  # (n,)


class SortedPairs:
    """Half pairs under a skin; many atoms, and their pairs, are rearranged at every search."""

    def __init__(self, cutoff: float, skin: float) -> None:
        self.list = VerletCache(cutoff, skin, _half_pairs)
        self._order: np.ndarray | None = None

    @property
    def skin(self) -> float:
        return self.list.list.skin

    def reset(self) -> None:
        """Forget the neighbour list; the next call searches anew."""
        self.list.reset()
        self._order = None

    def fresh(self) -> SortedPairs:
        """Another one without a list."""
        return SortedPairs(self.list.list.cutoff, self.skin)

    def find(self, structure: Structure) -> SortedStructure | None:
        """The structure as last sorted, if its pairs still hold all within the cutoff, or None."""
        if self._order is not None and len(self._order) != len(structure.numbers):
            return None
        arranged = _taken(structure, self._order)
        pairs = self.list.find(arranged)
        return None if pairs is None else SortedStructure(arranged, pairs, self._order)

    def search(self, structure: Structure) -> SortedStructure:
        """Sort the structure and search its pairs anew."""
        many = len(structure.numbers) >= ARRANGED_FROM
        self._order = z_order(structure) if many else None
        arranged = _taken(structure, self._order)
        return SortedStructure(arranged, self.list.search(arranged), self._order)


def _taken(structure: Structure, order: np.ndarray | None) -> Structure:
    s = structure
    return s if order is None else Structure(s.numbers[order], s.positions[order], s.cell, s.pbc)


def put_back(values: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    """Values `(members, n, …)` of arranged atoms in the order of the structure."""
    if order is None:
        return values
    out = np.empty_like(values)
    out[:, order] = values
    return out
