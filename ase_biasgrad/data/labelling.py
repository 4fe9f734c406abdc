"""Labels of single structures by a reference calculator, in whatever process that runs.

Importing this loads no torch: tblite has to be loaded before it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.named_calculators import labelling_calculator

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


@dataclass(frozen=True)
class Reference:
    """A calculator by name and keyword arguments, as in `labelling_calculator`."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    def calculator(self) -> Calculator:
        """The calculator, made once in each process."""
        return _made(self.name, json.dumps(self.arguments, sort_keys=True))


@dataclass(frozen=True)
class Label:
    """Labels of one structure by a reference calculator; eV, Å."""

    energy: float
    forces: np.ndarray  # (n, 3)
    stress: np.ndarray | None = None  # (6,)


def labelled(reference: Reference, atoms: Atoms) -> Label:
    """Energy, forces and, where all directions are periodic and it has one, stress of a structure.

    Raises
    ------
    DataError
        If a label is not finite.
    Exception
        Whatever the calculator raises.
    """
    atoms = atoms.copy()
    atoms.calc = reference.calculator()
    return label_of(atoms)


def label_of(atoms: Atoms) -> Label:
    """The same by the calculator of the structure itself, constraints not applied."""
    energy = float(atoms.get_potential_energy())
    forces = np.array(atoms.get_forces(apply_constraint=False), np.float64)
    stress = None
    if atoms.pbc.all() and "stress" in atoms.calc.implemented_properties:
        stress = np.array(atoms.get_stress(apply_constraint=False), np.float64)
    for name, values in (("energy", energy), ("forces", forces), ("stress", stress)):
        if values is not None and not np.isfinite(values).all():
            kind = type(atoms.calc).__name__
            raise DataError(f"the calculator ({kind}) gave NaN or infinity as {name}")
    return Label(energy, forces, stress)


def prepare(reference: Reference) -> None:
    """Make the calculator now: some do not load after torch. Errors come with the first label."""
    with suppress(Exception):
        reference.calculator()


@cache
def _made(name: str, arguments: str) -> Calculator:
    return labelling_calculator(name, json.loads(arguments))
