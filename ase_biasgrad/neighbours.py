"""Neighbour lists: exact pairs within a cutoff, and a list with a skin that stays exact.

matscipy does the search. It raises on cells without volume and drops atoms with NaN positions,
so the cell is completed and the input checked here first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matscipy.neighbours import neighbour_list as matscipy_neighbour_list

# Molecules up to this size use all pairs, whatever their distance: the list is then constant.
ALL_PAIRS_UP_TO = 32
# Bins of the search, beyond those that a structure fills: some ten megabytes.
MOST_BINS = 1_000_000


@dataclass(frozen=True)
class Structure:
    """One structure as NumPy arrays."""

    numbers: np.ndarray  # (n,) int64
    positions: np.ndarray  # (n, 3) float64, Å
    cell: np.ndarray  # (3, 3) float64, Å, rows are lattice vectors
    pbc: np.ndarray  # (3,) bool


@dataclass(frozen=True)
class Edges:
    """Directed edges: centre i `(e,)`, neighbour j `(e,)`, integer cell shift S `(e, 3)`.

    The vector of an edge is r_j + S·cell − r_i.
    """

    centre: np.ndarray
    neighbour: np.ndarray
    shift: np.ndarray

    def __len__(self) -> int:
        return len(self.centre)

    def select(self, mask: np.ndarray) -> Edges:
        return Edges(self.centre[mask], self.neighbour[mask], self.shift[mask])

    def vectors(self, positions: np.ndarray, cell: np.ndarray) -> np.ndarray:
        """Edge vectors in Å, `(e, 3)`."""
        return positions[self.neighbour] - positions[self.centre] + self.shift @ cell


def all_pairs(n: int) -> Edges:
    """Every ordered pair of `n` atoms without periodicity, sorted by centre."""
    centre, neighbour = np.nonzero(~np.eye(n, dtype=bool))
    return Edges(centre, neighbour, np.zeros((len(centre), 3), np.int32))


def neighbour_list(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> Edges:
    """All directed edges shorter than `cutoff`, self-images included, sorted by centre.

    Structures without periodicity and of at most `ALL_PAIRS_UP_TO` atoms get all pairs. Raises
    `ValueError` on non-finite positions or cell, or periodic cell vectors without volume.

    Parameters
    ----------
    positions, cell, pbc
        `(n, 3)` Å, `(3, 3)` Å (rows are lattice vectors), `(3,)` bool. Cell vectors along
        directions without periodicity are ignored and may be zero; atoms may lie outside.
    cutoff
        In Å.
    """
    positions = np.asarray(positions, float).reshape(-1, 3)
    pbc = np.asarray(pbc, bool)
    check_finite(positions, cell)
    if not pbc.any() and len(positions) <= ALL_PAIRS_UP_TO:
        return all_pairs(len(positions))
    return pairs_within(positions, cell, pbc, cutoff)


def pairs_within(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> Edges:
    """All directed edges shorter than `cutoff` (Å); arguments as in `neighbour_list`."""
    if len(positions) == 0:
        return all_pairs(0)
    box, origin = bounding_cell(positions, cell, pbc, cutoff)
    flip = np.linalg.det(box) < 0  # matscipy counts on a right-handed cell
    order = [1, 0, 2] if flip else [0, 1, 2]
    centre, neighbour, shift = matscipy_neighbour_list(
        "ijS", cutoff=float(cutoff), positions=positions - origin, cell=box[order], pbc=pbc[order]
    )
    return Edges(centre, neighbour, shift[:, order] if flip else shift)


def is_isolated(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float = 6.0
) -> bool:
    """True for one atom without neighbours, which a crystal's cell of one atom has."""
    if len(positions) != 1 or not pbc.any():
        return len(positions) == 1
    return not len(pairs_within(positions, cell, pbc, cutoff))


def check_finite(positions: np.ndarray, cell: np.ndarray) -> None:
    """Raise `ValueError` naming the first atom (or the cell) that is not finite."""
    if not np.isfinite(positions).all():
        atom = int(np.argmin(np.isfinite(positions).all(axis=1)))
        raise ValueError(f"the position of atom {atom} is not finite: {positions[atom]}")
    if not np.isfinite(cell).all():
        raise ValueError(f"the cell is not finite: {np.asarray(cell).tolist()}")


def complete_cell(cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Replace the vectors of non-periodic directions by unit vectors normal to the others.

    Raises `ValueError` if a periodic cell vector is zero or the periodic ones are linearly
    dependent.
    """
    if not np.any(pbc):
        return np.eye(3)
    periodic = np.asarray(cell, float)[pbc]  # (periodic directions, 3)
    lengths = np.linalg.norm(periodic, axis=1)
    singular = np.linalg.svd(periodic / np.maximum(lengths, 1e-300)[:, None])[1]
    if lengths.min() < 1e-8 or singular.min() < 1e-8:
        raise ValueError(
            f"pbc={pbc.tolist()} needs linearly independent cell vectors along these "
            f"directions, but the cell is {np.asarray(cell).tolist()}; set the cell or pbc"
        )
    normals = np.linalg.svd(periodic, full_matrices=True)[2][len(periodic) :]  # rows span the rest
    complete = np.array(cell, float)
    complete[~pbc] = normals
    return complete


def bounding_cell(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """A cell with volume around the atoms along non-periodic directions, and its origin.

    It holds all atoms, unless a few are so far away that bins of the size of `cutoff` (Å) would
    not fit into memory: then it surrounds the middle ones. The search counts atoms beyond a
    non-periodic face to the bins at that face, so no pair is lost.
    """
    box = complete_cell(cell, pbc)
    fractional = positions @ np.linalg.inv(box)  # (n, 3), in Å along non-periodic directions
    low, high = fractional.min(axis=0), fractional.max(axis=0)
    spans = np.where(pbc, np.linalg.norm(box, axis=1), high - low + 1.0)  # (3,) Å
    low = np.where(pbc, 0.0, low - 0.5)  # half an Å of room on either side
    while np.prod(np.maximum(spans / cutoff, 1.0)) > max(MOST_BINS, len(positions)):
        widest = int(np.argmax(np.where(pbc, 0.0, spans)))
        if pbc[widest] or spans[widest] <= cutoff:
            break  # all of it is periodic: a crystal of this size has as many atoms
        spans[widest] /= 2
        low[widest] = np.median(fractional[:, widest]) - spans[widest] / 2
    box[~pbc] *= spans[~pbc, None]
    return box, low @ complete_cell(cell, pbc)


class VerletList:
    """Edges within `cutoff` that are searched anew only when an atom could have come in.

    Pairs within `cutoff + skin` of a reference geometry are kept. Let F map the reference
    cell to the present one (h' = h F), and u be the displacements from the affinely moved
    reference positions. A pair outside the list was longer than `cutoff + skin`, so it is now
    longer than σ_min(F) (cutoff + skin) − |u|₁ − |u|₂, of the two atoms that moved furthest: the
    list is complete as long as this is at least `cutoff`. A change of numbers, count or pbc
    always searches anew.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if not (cutoff > 0 and 0 <= skin < np.inf):
            raise ValueError(f"cutoff must be > 0 and skin ≥ 0 Å, not {cutoff} and {skin}")
        self.cutoff, self.skin = float(cutoff), float(skin)
        self.searches = 0
        self.reset()

    def reset(self) -> None:
        """Forget the reference geometry; the next call searches anew."""
        self._key: tuple[bytes, bytes] | None = None
        self._edges: Edges | None = None

    def candidates(self, structure: Structure) -> Edges:
        """Edges that hold every pair within the cutoff, and some up to `cutoff + skin`."""
        if self._edges is None or not self.is_complete(structure):
            self._edges = self.search(structure)
        return self._edges

    def edges(self, structure: Structure) -> Edges:
        """Exactly the edges of `neighbour_list`."""
        s, edges = structure, self.candidates(structure)
        if self._constant:
            return edges
        vectors = edges.vectors(s.positions, np.where(s.pbc[:, None], s.cell, 0.0))
        return edges.select(np.einsum("ek,ek->e", vectors, vectors) < self.cutoff**2)

    def search(self, structure: Structure) -> Edges:
        """New candidates, whose geometry is now the reference; it does not keep them."""
        self.reset()  # also where the search fails
        s = structure
        edges = neighbour_list(s.positions, s.cell, s.pbc, self.cutoff + self.skin)
        self._constant = not s.pbc.any() and len(s.positions) <= ALL_PAIRS_UP_TO
        self._positions, self._cell = s.positions.copy(), np.array(s.cell, float)
        self._key = s.numbers.tobytes(), s.pbc.tobytes()
        self.searches += 1
        return edges

    def is_complete(self, structure: Structure) -> bool:
        """Test that the candidates of the last search still hold every pair within the cutoff.

        Positions that are not finite are found by a search only where all pairs are candidates.
        """
        positions, cell, pbc = structure.positions, structure.cell, structure.pbc
        if self._key != (structure.numbers.tobytes(), pbc.tobytes()):
            return False
        if self._constant:
            return True
        check_finite(positions, cell)
        reference, stretch = self._positions, 1.0
        if pbc.any() and not np.array_equal(self._cell, cell):
            deformation = np.linalg.solve(complete_cell(self._cell, pbc), complete_cell(cell, pbc))
            reference = reference @ deformation
            stretch = np.linalg.svd(deformation, compute_uv=False).min()
        moved = positions - reference
        squares = np.einsum("nk,nk->n", moved, moved)
        furthest = np.sqrt(np.partition(squares, -2)[-2:]).sum() if len(squares) > 1 else 0.0
        # 1e-9 Å absorbs rounding in this bound itself
        return bool(stretch * (self.cutoff + self.skin) - furthest >= self.cutoff + 1e-9)
