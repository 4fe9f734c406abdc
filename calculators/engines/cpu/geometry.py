"""Pairs within the cutoff among candidates, and forces of their derivatives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ase_biasgrad.numerics.kernel_cache import compiled


class Pairs(NamedTuple):
    """Atoms and the pairs within the cutoff, the first `found` of the arrays."""

    numbers: np.ndarray  # (n,)
    atoms: np.ndarray  # (p, 2)
    vectors: np.ndarray  # (p, 4), see `within_cutoff`
    bin: np.ndarray  # (p,)
    t: np.ndarray  # (p,)
    found: int


class Results(NamedTuple):
    """Energies in eV, and derivatives of their sum, for each member of a committee."""

    energies: np.ndarray  # (members, n)
    adj_distances: np.ndarray  # (members, p), in eV per spacing of the knots
    adj_units: np.ndarray  # (members, p, 3), empty if no kernel uses directions


@compiled(error_model="numpy")
def within_cutoff(  # type: ignore[no-untyped-def]
    positions, cells, structure, i, j, shift, cutoff, spacing, n_bins, atoms, vectors,
    bin, t,
):  # fmt: skip
    """Write the pairs closer than `cutoff`, in order, and return how many there are.

    positions `(n, 3)`, cells `(structures, 3, 3)` and structure `(n,)` of the atoms; candidates
    i, j `(c,)`, shift `(c, 3)`. Out: atoms `(p, 2)`; vectors `(p, 4)`, r_j − r_i and its length
    in Å; bin `(p,)` and t `(p,)`, 0 to 1, on the grid of the filters.
    """
    found = 0
    for p in range(len(i)):
        a, b = i[p], j[p]
        x = positions[b, 0] - positions[a, 0]
        y = positions[b, 1] - positions[a, 1]
        z = positions[b, 2] - positions[a, 2]
        s0, s1, s2 = shift[p, 0], shift[p, 1], shift[p, 2]
        if s0 != 0 or s1 != 0 or s2 != 0:
            cell = cells[structure[a]]
            x += s0 * cell[0, 0] + s1 * cell[1, 0] + s2 * cell[2, 0]
            y += s0 * cell[0, 1] + s1 * cell[1, 1] + s2 * cell[2, 1]
            z += s0 * cell[0, 2] + s1 * cell[1, 2] + s2 * cell[2, 2]
        d = np.sqrt(x * x + y * y + z * z)
        if d < cutoff:
            atoms[found, 0], atoms[found, 1] = a, b
            vectors[found, 0], vectors[found, 1], vectors[found, 2] = x, y, z
            vectors[found, 3] = d
            k = min(int(d / spacing), n_bins - 1)
            bin[found] = k
            t[found] = d / spacing - k
            found += 1
    return found


@compiled(error_model="numpy")
def radial_forces(atoms, vectors, pairs, adj_distances, spacing, structure, forces, strain):  # type: ignore[no-untyped-def]
    """Add the forces of ∂E/∂d along the pairs, and ∂E/∂ε of each structure.

    adj_distances `(p,)` in eV per `spacing`, forces `(n, 3)` in eV/Å,
    strain `(structures, 3, 3)` in eV.
    """
    for p in range(pairs):
        along = adj_distances[p] / (spacing * vectors[p, 3])
        _add(atoms, vectors, p, along * vectors[p, 0], along * vectors[p, 1],
             along * vectors[p, 2], structure, forces, strain)  # fmt: skip


@compiled(error_model="numpy")
def directed_forces(  # type: ignore[no-untyped-def]
    atoms, vectors, pairs, adj_distances, spacing, adj_units, structure, forces, strain
):
    """`radial_forces` with adj_units `(p, 3)` too: ∂E/∂u of the unit vectors, in eV."""
    for p in range(pairs):
        d = vectors[p, 3]
        x, y, z = vectors[p, 0] / d, vectors[p, 1] / d, vectors[p, 2] / d
        tx, ty, tz = adj_units[p, 0], adj_units[p, 1], adj_units[p, 2]
        # a unit vector turns only across itself
        along = adj_distances[p] / spacing - (tx * x + ty * y + tz * z) / d
        _add(atoms, vectors, p, along * x + tx / d, along * y + ty / d, along * z + tz / d,
             structure, forces, strain)  # fmt: skip


@compiled(error_model="numpy")
def _add(atoms, vectors, p, x, y, z, structure, forces, strain):  # type: ignore[no-untyped-def]
    """Add ∂E/∂(r_j − r_i) = (x, y, z) of pair p."""
    a, b = atoms[p, 0], atoms[p, 1]
    forces[a, 0] += x
    forces[a, 1] += y
    forces[a, 2] += z
    forces[b, 0] -= x
    forces[b, 1] -= y
    forces[b, 2] -= z
    s = strain[structure[a]]
    for m in range(3):
        s[0, m] += x * vectors[p, m]
        s[1, m] += y * vectors[p, m]
        s[2, m] += z * vectors[p, m]
