"""The true system of the N-body benchmark as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, InputError, all_changes

from ase_biasgrad.charged_particles import System, forces


class ChargedParticles(Calculator):
    """E = Σ_{i<j} q_i q_j / r_ij between particles with `initial_charges`, without walls.

    With energies in eV, lengths in Å and masses of 1 u, the benchmark's unit of time is ASE's
    own (Å √(u/eV)): a time step of 0.001 of the benchmark is `timestep=0.001` in ASE.

    Parameters
    ----------
    strength
        Factor of energy and forces.
    largest_force
        Clip each component of a force to it, as the benchmark does at 100. Clipped forces are
        no derivatives of an energy; None leaves them as they are.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE's way)
    default_parameters = {"strength": 1.0, "largest_force": None}  # noqa: RUF012

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill `results` with energy (eV) and forces (eV/Å).

        Raises
        ------
        ase.calculators.calculator.InputError
            If the structure is periodic, or two particles lie on one another.
        """
        super().calculate(atoms, properties, system_changes)
        if self.atoms.pbc.any():
            raise InputError("charged particles are not periodic; set pbc to False")
        strength, limit = self.parameters["strength"], self.parameters["largest_force"]
        charges, positions = self.atoms.get_initial_charges(), self.atoms.positions
        i, j = np.triu_indices(len(charges), 1)
        distances = np.linalg.norm(positions[i] - positions[j], axis=1)
        if (distances == 0).any():
            pair = int(np.argmin(distances))
            raise InputError(f"particles {i[pair]} and {j[pair]} lie on one another")
        system = System(
            particles=len(charges),
            strength=strength,
            largest_force=np.inf if limit is None else limit,
        )
        energy = float(strength * (charges[i] * charges[j] / distances).sum())
        acting = forces(positions.T[:, :, None], charges[:, None], system)[:, :, 0].T
        self.results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "forces": np.ascontiguousarray(acting),
        }
