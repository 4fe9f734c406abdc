"""`Subject`: a calculator under test, by its factory, with structures that it can evaluate."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorSetupError, InputError, PropertyNotImplementedError

from ase_biasgrad.testing.derivatives import energy_noise, numerical_forces
from ase_biasgrad.testing.failures import NotApplicable, expect, expect_small, short
from ase_biasgrad.testing.structures import crystals, molecules, rattled

TOLERANCE = 2e-4
MANY = 6  # atoms whose forces are compared with finite differences in a large structure
# exceptions that say: not made for this
REFUSALS = (NotImplementedError, PropertyNotImplementedError, InputError, CalculatorSetupError)


def factory(name: str) -> Callable[[], Any]:
    """Import the factory `module:function`, or a class that is made without arguments.

    Raises `ValueError` if there is none of this name; the message says how to write it.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"{name!r}: write module:function, such as mypackage:make")
    try:
        make: Any = importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{name!r}: the module {module} cannot be imported: {error}") from error
    for part in attribute.split("."):
        make = getattr(make, part, None)
    if not callable(make):
        raise ValueError(f"{name!r}: {module} has no function or class {attribute!r}")
    return make


class Subject:
    """A calculator under test.

    Parameters
    ----------
    make
        Function without arguments that returns a new calculator.
    elements
        Atomic numbers that it supports. Without them the usual structures are tried.
    structures
        A molecule, a crystal, or both, to be used in place of our own.
    tolerance
        Difference of forces (eV/Å, of the order of 1 eV/Å) that counts as rounding. The default
        suits float32; a calculator in float64 keeps 1e-9.
    name
        `module:function` of `make`, for checks that need a process of their own.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        elements: Collection[int] | None = None,
        structures: Sequence[Atoms] | None = None,
        tolerance: float = TOLERANCE,
        name: str = "",
    ) -> None:
        self.make, self.name, self.tolerance = make, name, tolerance
        self.elements = None if elements is None else set(elements)
        self.given = [atoms.copy() for atoms in structures or ()]

    # --- structures ------------------------------------------------------------------------

    @property
    def molecule(self) -> Atoms:
        """A molecule away from its minimum, without cell; not applicable where there is none."""
        return self._copy(self._molecule)

    @property
    def crystal(self) -> Atoms:
        """A small sheared crystal, atoms off their sites; not applicable where there is none."""
        return self._copy(self._crystal)

    @property
    def structure(self) -> Atoms:
        """The molecule, else the crystal."""
        return self.crystal if isinstance(self._molecule, str) else self.molecule

    def several(self) -> list[Atoms]:
        """Structures of different sizes, elements and periodicity."""
        return [atoms.copy() for atoms in self._several]

    @cached_property
    def _several(self) -> list[Atoms]:
        found = []
        if isinstance(self._molecule, Atoms):
            twice = self.molecule
            twice.translate([0, 0, 6 + np.ptp(twice.positions[:, 2])])
            found += [self.molecule, self.molecule + twice]
        if isinstance(self._crystal, Atoms):
            found += [self.crystal, rattled(self.crystal * (1, 1, 2), seed=1)]
        return [atoms for atoms in found if isinstance(self._first([atoms], ""), Atoms)]

    @cached_property
    def _molecule(self) -> Atoms | str:
        given = [rattled(atoms) for atoms in self.given if not atoms.pbc.any()]
        if self.given:
            return self._first(given, "no structure without periodicity was given")
        tried = map(rattled, molecules(self.elements))
        return self._first(tried, "no molecule is made of these elements alone")

    @cached_property
    def _crystal(self) -> Atoms | str:
        given = [rattled(atoms) for atoms in self.given if atoms.pbc.all()]
        if self.given:
            return self._first(given, "no structure with three periodic directions was given")
        tried = map(rattled, crystals(self.elements))
        return self._first(tried, "no crystal is made of these elements alone")

    def _first(self, candidates: Iterable[Atoms], reason: str) -> Atoms | str:
        """The first that the calculator evaluates, else why there is none."""
        refused = ""
        for atoms in candidates:
            try:
                if np.isfinite(self.energy(atoms)):
                    return atoms
            except Exception as error:
                formula = f"{atoms.get_chemical_formula()}, pbc {atoms.pbc.tolist()}"
                refused = refused or f"{formula}, is refused: {short(error)}"
        return refused or reason

    def _copy(self, found: Atoms | str) -> Atoms:
        if isinstance(found, str):
            raise NotApplicable(found)
        return found.copy()

    # --- the calculator --------------------------------------------------------------------

    @cached_property
    def implemented(self) -> set[str]:
        """Names of the properties that it says it has."""
        return set(self.make().implemented_properties)

    def needs(self, *names: str) -> None:
        """Raise `NotApplicable` unless it has these properties."""
        if missing := sorted(set(names) - self.implemented):
            raise NotApplicable(f"it does not offer {', '.join(missing)}")

    def calculated(self, atoms: Atoms) -> Atoms:
        """A copy of `atoms` with a new calculator."""
        own = atoms.copy()
        own.calc = self.make()
        return own

    def energy(self, atoms: Atoms) -> float:
        """Energy by a new calculator."""
        return float(np.asarray(self.calculated(atoms).get_potential_energy()).item())

    def forces(self, atoms: Atoms) -> np.ndarray:
        """Forces by a new calculator."""
        return np.asarray(self.calculated(atoms).get_forces())

    def supported(self, atoms: Atoms, what: str) -> Atoms:
        """A copy with a new calculator and forces; not applicable where these are refused."""
        own = self.calculated(atoms)
        try:
            own.get_forces()
        except REFUSALS as error:
            raise NotApplicable(f"{what}: refused, {short(error)}") from error
        return own

    @cached_property
    def noise(self) -> float:
        """Standard deviation of the energy of the structure from a smooth line, eV."""
        return energy_noise(self.calculated(self.structure))

    # --- comparisons -----------------------------------------------------------------------

    def scaled(self, forces: np.ndarray) -> float:
        """The tolerance for forces of this size."""
        return self.tolerance * max(1.0, float(np.abs(forces).max(initial=0.0)))

    def expect_same_forces(self, forces: np.ndarray, wanted: np.ndarray, what: str) -> None:
        """Raise `Failure` where forces differ by more than rounding."""
        expect(forces.shape == wanted.shape, f"{what}: shape {forces.shape}", f"{wanted.shape}")
        difference = float(np.abs(forces - wanted).max(initial=0.0))
        expect_small(difference, self.scaled(wanted), f"{what}: forces differ by", "eV/Å")

    def expect_same_energy(self, energy: float, wanted: float, what: str, atoms: int = 1) -> None:
        """Raise `Failure` where energies differ by more than rounding."""
        limit = self.tolerance * max(1.0, atoms / 10) + 10 * self.noise
        expect_small(abs(energy - wanted), limit, f"{what}: energies differ by", "eV")

    def expect_same(self, after: Atoms, before: Atoms, what: str) -> None:
        """Raise `Failure` where energy or forces differ by more than rounding."""
        energies = after.get_potential_energy(), before.get_potential_energy()
        self.expect_same_energy(*energies, what)
        self.expect_same_forces(after.get_forces(), before.get_forces(), what)

    def expect_derivatives(self, atoms: Atoms, what: str) -> None:
        """Raise `Failure` where forces are no derivatives of the energy, or have a sum."""
        forces = np.array(atoms.get_forces())
        which = range(len(atoms))
        if len(atoms) > 2 * MANY:
            random = np.random.default_rng(0)
            which = sorted(random.choice(len(atoms), MANY, replace=False).tolist())  # type: ignore[assignment]
        noise = max(self.noise, energy_noise(atoms))
        numerical, error = numerical_forces(atoms, noise, which)
        excess = np.abs(forces[list(which)] - numerical) - error
        worst = np.unravel_index(int(excess.argmax()), excess.shape)
        atom, axis = which[int(worst[0])], "xyz"[int(worst[1])]
        expect(
            excess.max() <= self.scaled(forces),
            f"{what}: the force on atom {atom} along {axis} is {forces[atom][worst[1]]:.6g} eV/Å, "
            f"the negative derivative of the energy {numerical[worst]:.6g}",
            f"a difference of at most {self.scaled(forces) + error[worst]:.2g} eV/Å",
        )
        net = float(np.abs(forces.sum(axis=0)).max())
        limit = self.scaled(forces) * max(1.0, len(atoms) ** 0.5)
        expect_small(net, limit, f"{what}: the forces have a sum of", "eV/Å")
