"""Coulomb matrices of molecules, their derivatives, orders and spectra; NumPy only.

C_ii = Z_i^2.4 / 2 and C_ij = Z_i Z_j / d_ij in Hartree, with distances d in Bohr (Rupp et al. 2012,
Phys. Rev. Lett. 108, 058301). Rows and columns of missing atoms are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from ase.units import Bohr


@dataclass(frozen=True)
class PaddedMolecules:
    """`b` molecules in arrays for the largest of them; missing atoms are zeros at the end."""

    positions: np.ndarray  # (b, n, 3) Å
    charges: np.ndarray  # (b, n), 0 for a missing atom

    def __len__(self) -> int:
        return len(self.charges)

    def __getitem__(self, which: np.ndarray | slice) -> PaddedMolecules:
        """Some of them, by index or slice."""
        return PaddedMolecules(self.positions[which], self.charges[which])

    @classmethod
    def of(cls, molecules: PaddedMolecules | tuple[np.ndarray, np.ndarray]) -> PaddedMolecules:
        """Molecules as they are, or made of a pair (R, Z) of positions and charges."""
        return molecules if isinstance(molecules, PaddedMolecules) else cls(*molecules)


def padded(
    molecules: Sequence[tuple[np.ndarray, np.ndarray]], size: int | None = None
) -> PaddedMolecules:
    """Molecules as pairs of numbers `(n,)` and positions `(n, 3)` Å, padded to `size` atoms.

    Raises
    ------
    ValueError
        If a molecule has more than `size` atoms (by default the largest sets the size).
    """
    largest = max((len(numbers) for numbers, _ in molecules), default=0)
    size = largest if size is None else size
    if largest > size:
        raise ValueError(f"a molecule has {largest} atoms, and there is room for {size}")
    positions = np.zeros((len(molecules), size, 3))
    charges = np.zeros((len(molecules), size))
    for k, (numbers, places) in enumerate(molecules):
        charges[k, : len(numbers)] = numbers
        positions[k, : len(numbers)] = places
    return PaddedMolecules(positions, charges)


def coulomb_matrices(molecules: PaddedMolecules) -> np.ndarray:
    """C `(b, n, n)` in Hartree."""
    _, distances, products = _pairs(molecules)
    matrices = products / distances  # (b, n, n)
    diagonal = np.arange(molecules.charges.shape[1])
    matrices[:, diagonal, diagonal] = 0.5 * molecules.charges**2.4
    return matrices


def coulomb_position_gradient(molecules: PaddedMolecules, gradient: np.ndarray) -> np.ndarray:
    """dE/dR `(b, n, 3)` in units of E per Å, from dE/dC `(b, n, n)` in units of E per Hartree.

    C_ij = Z_i Z_j / d has dC_ij/dR_i = −Z_i Z_j (R_i − R_j) / d³; C_ij and C_ji both hold it.
    """
    vectors, distances, products = _pairs(molecules)
    slope = -products / distances**3 / Bohr * (gradient + gradient.transpose(0, 2, 1))
    return np.einsum("bij,bijk->bik", slope, vectors)


def _pairs(molecules: PaddedMolecules) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R_i − R_j `(b, n, n, 3)` and its length in Bohr (1 where i = j), Z_i Z_j (0 where i = j)."""
    positions, charges = molecules.positions / Bohr, molecules.charges
    vectors = positions[:, :, None] - positions[:, None]
    products = charges[:, :, None] * charges[:, None]
    diagonal = np.arange(charges.shape[1])
    products[:, diagonal, diagonal] = 0.0
    distances = np.sqrt(np.einsum("bijk,bijk->bij", vectors, vectors))
    return vectors, np.where(products == 0, 1.0, distances), products


def norm_order(
    matrices: np.ndarray, noise: float = 0.0, random: np.random.Generator | None = None
) -> np.ndarray:
    """Order of atoms `(b, n)` by falling norm of their rows, plus normal noise (Hartree).

    Noise makes random Coulomb matrices: orders of which none is special, of atoms whose norms
    lie within it (Montavon et al. 2012, NeurIPS 25, 440). Missing atoms stay last.
    """
    norms = np.sqrt(np.einsum("bij,bij->bi", matrices, matrices))
    present = norms > 0
    if noise > 0:
        random = np.random.default_rng() if random is None else random
        norms = norms + random.normal(0.0, noise, norms.shape)
    return np.argsort(np.where(present, -norms, np.inf), axis=1, kind="stable")


def triangles(matrices: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Upper triangles, row by row, of `(b, n, n)` in `order (b, n)`: `(b, n (n + 1) / 2)`."""
    rows, columns = np.triu_indices(order.shape[1])
    entries = matrices[np.arange(len(matrices))[:, None], order[:, rows], order[:, columns]]
    return np.ascontiguousarray(entries)  # NumPy leaves them column by column


def from_triangles(values: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The transpose of `triangles`: values back in their places `(b, n, n)`, zeros elsewhere."""
    rows, columns = np.triu_indices(order.shape[1])
    matrices = np.zeros((len(order), order.shape[1], order.shape[1]), values.dtype)
    matrices[np.arange(len(order))[:, None], order[:, rows], order[:, columns]] = values
    return matrices


def eigenspectra(matrices: np.ndarray) -> np.ndarray:
    """Eigenvalues `(b, n)` by falling magnitude: a representation of Rupp et al. 2012."""
    values = np.linalg.eigvalsh(matrices)
    order = np.argsort(-np.abs(values), axis=1, kind="stable")
    return np.take_along_axis(values, order, axis=1)
