"""Order of atoms that keeps the next data in the processor's cache.

Neighbours in space become neighbours in memory. A fluid of a thousand atoms in random order takes
half as long again without.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ase_biasgrad.calculators.engines.verlet_list import VerletCache
from ase_biasgrad.fused.runtime import Candidates, atoms_at_once, empty_candidates
from ase_biasgrad.neighbours import Edges, Structure, complete_cell
from ase_biasgrad.numerics.native import NativeKernel

ARRANGE = NativeKernel("ase_biasgrad.fused.candidates", "arrange")
# the rows of fewer atoms are in the cache in any order
ARRANGED_FROM = 200
BIN = 2.5  # Å
BITS = 20  # of each coordinate, in bins


def arranged(i: np.ndarray, j: np.ndarray, shift: np.ndarray, n: int) -> Candidates:
    """Edges `(e,)` by centre: from i, of the first `n` atoms, to j, with shift `(e, 3)`."""
    shift = np.ascontiguousarray(shift, np.int32)
    found = empty_candidates(n + 1, n, len(i))
    ARRANGE(i.astype(np.int64), j.astype(np.int64), shift, atoms_at_once(n), found)
    count = found.starts[-1]
    return found._replace(neighbour=found.neighbour[:count], shift=found.shift[:count])


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


def _candidates(edges: Edges, structure: Structure) -> Candidates:
    return arranged(edges.centre, edges.neighbour, edges.shift, len(structure.numbers))


class SortedStructure(NamedTuple):
    """A structure as it lies in memory, its edges, and which atoms stand where, if moved."""

    structure: Structure
    edges: Candidates
    order: np.ndarray | None  # (n,)


class SortedEdges:
    """Edges under a skin; many atoms are rearranged at every search."""

    def __init__(self, cutoff: float, skin: float) -> None:
        self.list = VerletCache(cutoff, skin, _candidates)
        self._order: np.ndarray | None = None

    @property
    def skin(self) -> float:
        return self.list.list.skin

    def reset(self) -> None:
        """Forget the neighbour list; the next call searches anew."""
        self.list.reset()
        self._order = None

    def fresh(self) -> SortedEdges:
        """Another one without a list."""
        return SortedEdges(self.list.list.cutoff, self.skin)

    def find(self, structure: Structure) -> SortedStructure | None:
        """The structure as last sorted, if its edges still hold all within the cutoff, or None."""
        if self._order is not None and len(self._order) != len(structure.numbers):
            return None
        arranged = _taken(structure, self._order)
        edges = self.list.find(arranged)
        return None if edges is None else SortedStructure(arranged, edges, self._order)

    def search(self, structure: Structure) -> SortedStructure:
        """Sort the structure and search its edges anew."""
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
