"""A file with the arrays of `qm7.mat`, for pages and tests: other molecules, energies by EMT.

Molecules of H, C, N and O from ASE's collection, each distorted and turned at random several times.
"""

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.collections import g2
from ase.units import Bohr, kcal, mol
from scipy.io import savemat

from ase_biasgrad.data.sets.qm7 import stratified_folds
from ase_biasgrad.dense import coulomb_matrices, padded

ATOMS = 23  # as many as the largest molecule of QM7 has


def write_sample(path: str | Path, copies: int = 10) -> None:
    """Write `X` (Hartree), `R` (Bohr), `Z`, `T` (kcal/mol) and the five folds `P`."""
    random, structures = np.random.default_rng(0), []
    for name in g2.names:
        first = molecule(name)
        if set(first.symbols) <= set("HCNO") and len(first) > 2:
            structures += [_changed(first, random) for _ in range(copies)]
    structures = structures[: len(structures) // 5 * 5]
    free = {symbol: EMT().get_potential_energy(Atoms(symbol)) for symbol in "HCNO"}
    energies = np.array(
        [EMT().get_potential_energy(a) - sum(free[s] for s in a.symbols) for a in structures]
    )
    molecules = padded([(atoms.numbers, atoms.positions) for atoms in structures], ATOMS)
    write_like_qm7(path, molecules.positions, molecules.charges, energies / (kcal / mol))


def write_like_qm7(path: str | Path, R: np.ndarray, Z: np.ndarray, T: np.ndarray) -> None:
    """Write positions `(m, 23, 3)` Å, numbers `(m, 23)` and energies `(m,)` kcal/mol."""
    folds = stratified_folds(T)
    P = np.array([np.flatnonzero(folds == fold) for fold in range(5)])
    X = coulomb_matrices(padded([(z[z > 0], r[z > 0]) for z, r in zip(Z, R, strict=True)], ATOMS))
    arrays = {"X": X, "R": R / Bohr, "Z": Z, "T": T[None], "P": P}
    savemat(path, {name: a.astype(np.float32) if name != "P" else a for name, a in arrays.items()})


def _changed(atoms: Atoms, random: np.random.Generator) -> Atoms:
    changed = atoms.copy()
    changed.positions += random.normal(0, 0.05, changed.positions.shape)
    changed.rotate(random.uniform(0, 360), random.normal(size=3))
    return changed
