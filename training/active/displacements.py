"""Random displacements like those of heat: far along soft motions, and little along bonds.

Atoms displaced one by one stretch bonds first: at 0.1 Å the forces on aspirin are those of 4000 K.
Those of an elastic network K (`training.elastic`) in a heat bath have the covariance K⁻¹. With K
the unit matrix and a spring s sᵀ along each pair, and normal random numbers ξ,

    x = K⁻¹ (ξ₀ + Σ_p ξ_p s_p)

has it, without a matrix. Shifts and, of molecules, rotations are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ase_biasgrad.numerics.rigid_motions import shifts, turns

if TYPE_CHECKING:
    from ase import Atoms

CUTOFF = 5.0  # Å, of the springs


def heat_displacements(atoms: Atoms, size: float, random: np.random.Generator) -> np.ndarray:
    """Displacements `(n, 3)` in Å whose root mean square is `size`; 0 of an atom alone."""
    import torch

    from ase_biasgrad.graph import graph_from_atoms
    from ase_biasgrad.training.elastic import springs_of

    n = len(atoms)
    springs = springs_of(graph_from_atoms(atoms, CUTOFF), torch.tensor([n]))
    pulls = random.normal(size=(springs.pairs.shape[1], 1)) * springs.along  # (p, 3)
    forces = random.normal(size=(n, 3))
    np.add.at(forces, springs.pairs[0], pulls)
    np.subtract.at(forces, springs.pairs[1], pulls)
    moved = _without_rigid_motion(springs.displacements(forces)[0], atoms)
    length = np.sqrt(np.mean(moved**2))
    return moved * (size / length if length > 1e-9 else 0.0)


def _without_rigid_motion(moved: np.ndarray, atoms: Atoms) -> np.ndarray:
    rigid = [shifts(len(atoms))]
    if not atoms.pbc.any():
        rigid.append(turns(atoms.positions - atoms.positions.mean(axis=0)))
    motions, flat = np.hstack(rigid), moved.ravel()
    left = flat - motions @ np.linalg.lstsq(motions, flat, rcond=1e-9)[0]
    return left.reshape(-1, 3)
