"""Checks 16: forces and stress as derivatives of the energy, and its symmetries."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from scipy.spatial.transform import Rotation

from ase_biasgrad.testing.derivatives import numerical_stress
from ase_biasgrad.testing.failures import expect
from ase_biasgrad.testing.subject import Subject

APART = 60.0  # Å


def forces_of_a_molecule_are_derivatives(subject: Subject) -> None:
    """Forces on a molecule are the negative derivatives of its energy."""
    subject.needs("forces")
    subject.expect_derivatives(subject.calculated(subject.molecule), "molecule")


def forces_of_a_crystal_are_derivatives(subject: Subject) -> None:
    """Forces in a small crystal are the negative derivatives of its energy."""
    subject.needs("forces")
    subject.expect_derivatives(subject.calculated(subject.crystal), "crystal")


def stress_is_a_derivative(subject: Subject) -> None:
    """The stress is dE/dε per volume, xx yy zz yz xz xy, tension positive."""
    subject.needs("stress")
    atoms = subject.calculated(subject.crystal)
    stress = np.array(atoms.get_stress())
    numerical, error = numerical_stress(atoms, subject.noise)
    limit = subject.tolerance * max(1.0, np.abs(stress).max()) / 10 + error
    difference = np.abs(stress - numerical)
    if (difference <= limit).all():
        return
    hint = ""
    if (np.abs(stress + numerical) <= limit).all():
        hint = " (the sign is that of a pressure)"
    worst = int((difference - limit).argmax())
    name = ("xx", "yy", "zz", "yz", "xz", "xy")[worst]
    expect(
        False,
        f"the stress {name} is {stress[worst]:.6g} eV/Å³, the derivative of the energy "
        f"{numerical[worst]:.6g}{hint}",
        f"a difference of at most {limit[worst]:.2g} eV/Å³",
    )


def rotations_and_shifts_change_nothing(subject: Subject) -> None:
    """A molecule that is turned and shifted keeps its energy; its forces turn."""
    atoms = subject.molecule
    before = subject.calculated(atoms)
    rotation = Rotation.from_rotvec([1.0, 2.0, -0.5]).as_matrix()
    atoms.positions = atoms.positions @ rotation.T + [5.0, -3.0, 1.0]
    after = subject.calculated(atoms)
    subject.expect_same_energy(
        after.get_potential_energy(), before.get_potential_energy(), "turned and shifted"
    )
    wanted = before.get_forces() @ rotation.T
    subject.expect_same_forces(after.get_forces(), wanted, "turned and shifted")


def the_order_of_atoms_changes_nothing(subject: Subject) -> None:
    """Atoms in another order have the same energy and their own forces."""
    for before in map(subject.calculated, subject.several()):
        order = np.random.default_rng(0).permutation(len(before))
        after = subject.calculated(before[order])
        what = f"{before.symbols} in another order"
        subject.expect_same_energy(
            after.get_potential_energy(), before.get_potential_energy(), what, len(before)
        )
        subject.expect_same_forces(after.get_forces(), before.get_forces()[order], what)


def distant_molecules_add_up(subject: Subject) -> None:
    """Two molecules far apart have the sum of their energies."""
    atoms = subject.molecule
    other = atoms.copy()
    other.positions += [APART, 0, 0]
    both: Atoms = atoms + other
    subject.expect_same_energy(
        subject.energy(both), 2 * subject.energy(atoms), f"{APART:.0f} Å apart", len(both)
    )
