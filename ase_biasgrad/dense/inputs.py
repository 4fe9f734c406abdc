"""Inputs of a dense network made of molecules, with derivatives by the positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ase_biasgrad.dense.coulomb_matrix import (
    PaddedMolecules,
    coulomb_matrices,
    coulomb_position_gradient,
    from_triangles,
    norm_order,
    triangles,
)
from ase_biasgrad.dense.modules import FixedModule

Molecules = PaddedMolecules | tuple[np.ndarray, np.ndarray]  # or R (b, n, 3) and Z (b, n)


class Input(FixedModule):
    """Positions `(b, n, 3)` and charges `(b, n)` as they come: x, y, z, Z of each atom `(b, 4n)`.

    No symmetry is built in: another order of the atoms, or a rotation, is another input. Made of
    some `molecules`, it knows `num_out`, and takes no others than of as many atoms.
    """

    num_out: int | None = None

    def __init__(self, molecules: Molecules | None = None) -> None:
        if molecules is not None:
            self.num_out = self.forward(molecules).shape[1]

    def forward(self, x: Molecules) -> np.ndarray:
        """4n numbers for each molecule.

        Raises
        ------
        ValueError
            If there are more or fewer atoms than in the molecules that it was made of.
        """
        x = PaddedMolecules.of(x)
        both = np.concatenate([x.positions, x.charges[:, :, None]], axis=2)  # (b, n, 4)
        flat = both.reshape(len(x), -1)
        if self.num_out not in (None, flat.shape[1]):
            raise ValueError(
                f"molecules padded to {x.charges.shape[1]} atoms make {flat.shape[1]} inputs, and "
                f"this network has {self.num_out}"
            )
        return flat

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """dE/dR `(b, n, 3)`."""
        return gradient.reshape(len(gradient), -1, 4)[:, :, :3]


class Centre(FixedModule):
    """Molecules with their centroid in the origin; missing atoms stay zero."""

    def forward(self, x: Molecules) -> PaddedMolecules:
        x = PaddedMolecules.of(x)
        self._present = (x.charges > 0)[:, :, None]  # (b, n, 1)
        return replace(x, positions=self._centred(x.positions))

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        return self._centred(gradient)  # the projection is its own transpose

    def _centred(self, vectors: np.ndarray) -> np.ndarray:
        present = self._present
        total = (vectors * present).sum(axis=1, keepdims=True)
        return (vectors - total / present.sum(axis=1, keepdims=True)) * present


class CoulombMatrix(FixedModule):
    """The Coulomb matrix `(b, n, n)` of each molecule, in Hartree."""

    def forward(self, x: Molecules) -> np.ndarray:
        self._molecules = PaddedMolecules.of(x)
        return coulomb_matrices(self._molecules)

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """dE/dR `(b, n, 3)`."""
        return coulomb_position_gradient(self._molecules, gradient)


class NormOrder(FixedModule):
    """Upper triangle `(b, n (n + 1) / 2)` of matrices sorted by the norm of their rows.

    With `noise` (Hartree) every forward draws another order, as `coulomb_matrix.norm_order` says;
    `reseed` makes the next draws those of a new module. The order counts as constant in the
    derivative, which is exact wherever no two norms (with noise) are the same.
    """

    ARRAYS = ("noise", "seed")

    def __init__(self, noise: float | np.ndarray = 0.0, seed: int | np.ndarray = 0) -> None:
        self.noise, self.seed = float(noise), int(seed)
        self.reseed()

    def reseed(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._order = norm_order(x, self.noise, self.random)  # (b, n)
        return triangles(x, self._order)

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        """dE/dC `(b, n, n)`."""
        return from_triangles(gradient, self._order)


class TanhExpansion(FixedModule):
    """Each number as many of order one: tanh((x − centre) / step) for a row of centres.

    `columns (features,)` are those of the input that each output is made of, ascending, with its
    `centres (features,)`; neighbouring ones are a `step` apart.
    """

    ARRAYS = ("columns", "centres", "step")

    def __init__(
        self, columns: np.ndarray, centres: np.ndarray, step: float | np.ndarray = 1.0
    ) -> None:
        self.columns, self.centres, self.step = columns, np.asarray(centres), float(step)

    @classmethod
    def up_to(
        cls, largest: np.ndarray, step: float = 1.0, dtype: type = np.float64
    ) -> TanhExpansion:
        """Centres 0, step, 2 step, … past the largest value `(m,)` of each column."""
        rows = [np.arange(0.0, value + step, step) for value in largest]
        columns = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
        return cls(columns, np.concatenate(rows).astype(dtype), step)

    def forward(self, x: np.ndarray) -> np.ndarray:
        self._y = np.tanh(
            (x.astype(self.centres.dtype)[:, self.columns] - self.centres) / self.step
        )
        return self._y

    def backward(self, gradient: np.ndarray) -> np.ndarray:
        slope = gradient * (1 - self._y**2) / self.step
        first = np.searchsorted(self.columns, np.arange(self.columns[-1] + 1))
        return np.add.reduceat(slope, first, axis=1)
