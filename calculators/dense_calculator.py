"""`DenseCalculator`: the dense network of NumPy as an ASE calculator. It loads no torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError, InputError

from ase_biasgrad.calculators.base import PotentialCalculator
from ase_biasgrad.dense.potential import DensePotential, load_dense


class DenseCalculator(PotentialCalculator):
    """Energy and forces of a dense network on raw coordinates or Coulomb matrices.

    The forces are exact derivatives of the energy, by hand-written backpropagation. What such a
    model cannot do, however well it is trained:

    - It has a fixed maximal size: more atoms than its `size` are refused.
    - On raw coordinates it is invariant neither under rotations nor under permutations of equal
      atoms, and under translations only if it centres molecules: a rotated molecule has another
      energy, forces may have a net force and a torque, and angular momentum is not conserved.
    - On sorted Coulomb matrices it has these symmetries, but the energy jumps where two rows
      change places, and forces do not see the jump; dynamics do not conserve energy there.
    - Its energy is not extensive: two molecules far apart do not have the sum of their energies.
    - It has seen equilibrium structures of its training molecules only, where this is how it was
      trained (as on QM7): curvatures, and forces away from equilibrium, are extrapolations.

    It teaches and it tests; for simulations use `BiasGradCalculator`. Energies are in eV, forces
    in eV/Å; there is no stress, and there are no energies of atoms.

    Parameters
    ----------
    network
        A file of `save_dense`, or a `DensePotential`.

    Raises
    ------
    FileNotFoundError, ValueError
        On a file that cannot be read.
    ase.calculators.calculator.CalculatorSetupError
        On anything else.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces"]
    advice = "do two atoms lie on top of each other?"

    def __init__(self, network: str | Path | DensePotential) -> None:
        super().__init__()
        if isinstance(network, DensePotential):
            self.source = "potential"
            self.potential = copy.deepcopy(network)
        elif isinstance(network, (str, Path)):
            self.source = Path(network).name
            self.potential = load_dense(network)
        else:
            raise CalculatorSetupError(
                f"{network!r} is neither the path of a dense network nor a DensePotential"
            )
        self.elements = set(self.potential.elements)

    def _get_name(self) -> str:  # ASE's hook; the name in ASE's tables, files and databases
        return "biasgrad-dense"

    def todict(self) -> dict[str, Any]:
        """Description of this calculator in JSON values."""
        modules = [type(module).__name__ for module in self.potential.network.modules]
        return {"network": self.source, "size": self.potential.size, "modules": modules}

    def evaluated(self, atoms: Atoms, properties: Sequence[str]) -> dict[str, Any]:
        """Energy, and forces where they are asked for."""
        numbers, positions = atoms.numbers.astype(np.int64), atoms.positions.astype(np.float64)
        results: dict[str, Any] = {}
        if len(numbers) == 0:  # padding alone means nothing to the network
            energy, results["forces"] = 0.0, np.zeros((0, 3))
        elif "forces" in properties:
            energy, forces = self.potential.energy_and_forces(numbers, positions)
            results["forces"] = np.array(forces, np.float64, order="C")
        else:
            energy = self.potential.energy(numbers, positions)
        return {"energy": energy, "free_energy": energy, **results}

    def check(self, atoms: Atoms) -> None:
        """Raise `InputError` on a structure that the network cannot describe."""
        super().check(atoms)
        if atoms.pbc.any():
            raise InputError(
                "the dense network describes molecules, and the atoms are periodic; set "
                "atoms.pbc = False if a molecule in a box is meant"
            )
        if len(atoms) > self.potential.size:
            raise InputError(
                f"there are {len(atoms)} atoms, and the dense network was made for at most "
                f"{self.potential.size}"
            )
