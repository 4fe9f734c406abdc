"""Checks 13 to 15: cells, boundaries, neighbour lists, and input that must be refused."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculatorError
from ase.data import chemical_symbols

from ase_biasgrad.testing.failures import Failure, NotApplicable, expect, expect_small, short
from ase_biasgrad.testing.structures import primitive
from ase_biasgrad.testing.subject import REFUSALS, Subject

FAR = 50.0  # Å, beyond any cutoff
STEPS = 6  # of random changes


def periodicity_in_some_directions(subject: Subject) -> None:
    """A structure that is periodic in one or two directions has forces that are derivatives."""
    for pbc in ((True, False, True), (False, True, False)):
        atoms = subject.crystal
        atoms.pbc = pbc
        what = f"pbc {list(pbc)}"
        subject.expect_derivatives(subject.supported(atoms, what), what)


def open_directions_have_no_images(subject: Subject) -> None:
    """The cell vector of a direction that is not periodic changes nothing."""
    atoms = subject.crystal
    atoms.pbc = (True, True, False)
    energy = subject.supported(atoms, "pbc [True, True, False]").get_potential_energy()
    longer = atoms.cell.array.copy()
    longer[2] *= 1 + FAR / np.linalg.norm(longer[2])
    atoms.set_cell(longer)
    what = "with a longer cell vector where pbc is False"
    subject.expect_same_energy(subject.energy(atoms), energy, what)


def the_cell_of_a_molecule_means_nothing(subject: Subject) -> None:
    """A cell without periodicity changes neither energy nor forces."""
    atoms = subject.molecule
    bare = subject.calculated(atoms)
    atoms.set_cell([3.0, 4.0, 5.0])
    boxed = subject.supported(atoms, "a cell without periodicity")
    subject.expect_same(boxed, bare, "in a cell, pbc False")


def slab_without_a_third_cell_vector(subject: Subject) -> None:
    """A slab whose third cell vector is zero has forces that are derivatives."""
    atoms = subject.crystal
    atoms.pbc = (True, True, False)
    _flatten(atoms)
    what = "a slab with a zero cell vector"
    subject.expect_derivatives(subject.supported(atoms, what), what)


def atoms_outside_the_cell(subject: Subject) -> None:
    """Atoms moved by cell vectors have the same energy and forces."""
    atoms = subject.crystal
    inside = subject.calculated(atoms)
    atoms.positions += 2 * atoms.cell[0] - atoms.cell[2]
    atoms.positions[-1] += 3 * atoms.cell[1]
    outside = subject.calculated(atoms)
    subject.expect_same(outside, inside, "moved by cell vectors")


def left_handed_cell(subject: Subject) -> None:
    """Cell vectors in another order describe the same crystal."""
    atoms = subject.crystal
    right = subject.calculated(atoms)
    atoms.set_cell(atoms.cell.array[[1, 0, 2]])
    left = subject.supported(atoms, "a left-handed cell")
    subject.expect_same(left, right, "in a left-handed cell")


def small_cell_equals_its_supercell(subject: Subject) -> None:
    """A cell smaller than the cutoff gives the energy and forces of its supercell."""
    atoms = subject.crystal
    copies = (2, 2, 1) if len(atoms) > 4 else (2, 2, 2)
    one, many = subject.calculated(atoms), subject.calculated(atoms * copies)
    count = int(np.prod(copies))
    subject.expect_same_energy(
        many.get_potential_energy() / count, one.get_potential_energy(), "per cell of a supercell"
    )
    wanted = np.tile(one.get_forces(), (count, 1))
    subject.expect_same_forces(many.get_forces(), wanted, "in a supercell")


def one_atom_in_a_cell(subject: Subject) -> None:
    """A primitive cell of one element has an energy, and no force on its only atom."""
    atoms = primitive(subject.crystal)
    if atoms is None or len(atoms) > 1:
        raise NotApplicable(f"{subject.crystal.symbols} has no primitive cell of one atom")
    forces = subject.supported(atoms, "a cell of one atom").get_forces()
    expect_small(float(np.abs(forces).max()), subject.tolerance, "its force is", "eV/Å")


def isolated_atoms(subject: Subject) -> None:
    """A single atom, and two far apart, have a finite energy and no force."""
    symbol = subject.molecule.get_chemical_symbols()[0]
    for atoms in (Atoms(symbol), Atoms([symbol] * 2, [[0, 0, 0], [0, 0, FAR]])):
        what = f"{len(atoms)} atom{'s' if len(atoms) > 1 else ''} of {symbol}"
        own = subject.supported(atoms, what)
        energy, forces = own.get_potential_energy(), np.asarray(own.get_forces())
        expect(np.isfinite(energy), f"{what}: the energy is {energy}", "a finite energy")
        expect(forces.shape == (len(atoms), 3), f"{what}: forces {forces.shape}", "(n, 3)")
        expect_small(float(np.abs(forces).max()), subject.tolerance, f"{what}: a force is", "eV/Å")


def no_atoms(subject: Subject) -> None:
    """Empty Atoms have the energy 0 and no forces."""
    atoms = subject.supported(Atoms(), "empty Atoms")
    energy, forces = atoms.get_potential_energy(), np.asarray(atoms.get_forces())
    expect(energy == 0, f"the energy of no atoms is {energy}", "0")
    expect(forces.shape == (0, 3), f"their forces have shape {forces.shape}", "(0, 3)")


def lists_stay_exact(subject: Subject) -> None:
    """Through random steps of atoms and cell, one calculator gives what new ones give."""
    random = np.random.default_rng(0)
    for start in subject.several()[::2]:
        atoms = subject.calculated(start)
        for step in range(STEPS):
            atoms.positions += random.normal(0, 0.03 * (1 + step), atoms.positions.shape)
            if atoms.pbc.any() and step % 2:
                atoms.set_cell(atoms.cell.array * random.uniform(0.97, 1.03), scale_atoms=True)
            what = f"{atoms.symbols} after {step + 1} changes"
            subject.expect_same_forces(atoms.get_forces(), subject.forces(atoms), what)


def positions_that_are_not_finite_are_refused(subject: Subject) -> None:
    """NaN and infinity among positions are errors of ASE's kinds."""
    for value in (np.nan, np.inf):
        atoms = subject.structure
        atoms.positions[0, 1] = value
        _expect_refusal(subject, atoms, f"a position of {value}")


def a_flat_periodic_cell_is_refused(subject: Subject) -> None:
    """Periodicity along a cell vector of zero is an error."""
    atoms = subject.crystal
    _flatten(atoms)
    _expect_refusal(subject, atoms, "pbc True along a zero cell vector")


def unknown_elements_are_refused(subject: Subject) -> None:
    """An element that it does not know is an error that names it."""
    atoms = subject.structure
    other = 118
    if subject.elements is not None:
        other = next(z for z in (79, 92, 118, 2, 3) if z not in subject.elements)
    atoms.numbers[0] = other
    symbol = chemical_symbols[other]
    try:
        energy = subject.energy(atoms)
    except Exception as error:
        told = symbol in str(error) or str(other) in str(error)
        expect(told, f"{symbol} raised {short(error)}", f"a message that names {symbol}")
        expect(
            isinstance(error, (CalculatorError, NotImplementedError)),
            f"{symbol} raised {short(error)}",
            "an error of ASE's, such as InputError",
        )
        return
    if subject.elements is None and np.isfinite(energy):
        raise NotApplicable(f"it takes {symbol}; name those that it supports: --ase-elements")
    raise Failure(f"with {symbol} the energy is {energy:.6g} eV", "an error")


def coincident_atoms_give_no_nan(subject: Subject) -> None:
    """Two atoms at one place have finite results, or an error."""
    atoms = subject.structure
    atoms.positions[1] = atoms.positions[0]
    own = subject.calculated(atoms)
    try:
        with np.errstate(all="ignore"):
            energy, forces = own.get_potential_energy(), own.get_forces()
    except Exception:
        return
    finite = np.isfinite(energy) and np.isfinite(forces).all()
    expect(finite, f"energy {energy}, largest force {np.abs(forces).max()}", "an error")


def _flatten(atoms: Atoms) -> None:
    """Set the third cell vector to zero."""
    atoms.set_cell([*atoms.cell.array[:2], [0, 0, 0]])


def _expect_refusal(subject: Subject, atoms: Atoms, what: str) -> None:
    own = subject.calculated(atoms)
    try:
        energy = own.get_potential_energy()
        forces = own.get_forces()
    except (CalculatorError, *REFUSALS):
        return
    except Exception as error:
        raise Failure(
            f"{what} raised {short(error)}", "an error of ASE's, as InputError"
        ) from error
    size = np.abs(forces).max()
    raise Failure(
        f"{what} gives the energy {energy:.6g} eV and forces up to {size:.3g}", "an error"
    )
