"""Charged particles in ASE follow the simulator, and their forces are derivatives."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import InputError
from ase.calculators.fd import calculate_numerical_forces
from ase.md.verlet import VelocityVerlet

from ase_biasgrad.calculators.charged_particles import ChargedParticles
from ase_biasgrad.charged_particles import System, forces, integrate


def particles(seed: int = 0) -> Atoms:
    random = np.random.default_rng(seed)
    atoms = Atoms("X5", random.normal(0, 1, (5, 3)), masses=np.ones(5))
    atoms.set_initial_charges(random.choice([-1.0, 1.0], 5))
    atoms.set_velocities(random.normal(0, 0.3, (5, 3)))
    atoms.calc = ChargedParticles()
    return atoms


def test_forces_are_derivatives():
    atoms = particles()
    numerical = calculate_numerical_forces(atoms, 1e-5)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=1e-7)
    assert atoms.get_potential_energy() == atoms.get_potential_energy(force_consistent=True)


def test_md_is_the_simulator():
    atoms = particles(1)
    system = System(steps=400, half_width=None)
    x, v = atoms.positions.T[:, :, None], atoms.get_velocities().T[:, :, None]
    charges = atoms.get_initial_charges()[:, None]
    kept = integrate(system, x, v, charges)[0]
    # the simulator begins with a whole change of velocities, velocity Verlet with half of one
    atoms.set_velocities((v + 0.5 * system.timestep * forces(x, charges, system))[..., 0].T)
    dynamics = VelocityVerlet(atoms, timestep=system.timestep)
    for frame in kept:
        dynamics.run(100)
        np.testing.assert_allclose(atoms.positions, frame[..., 0].T, atol=1e-9)


def test_what_cannot_be_computed():
    atoms = particles()
    atoms.positions[3] = atoms.positions[1]
    with pytest.raises(InputError, match="particles 1 and 3"):
        atoms.get_forces()
    atoms = particles()
    atoms.pbc = True
    with pytest.raises(InputError, match="not periodic"):
        atoms.get_forces()


def test_changes_of_charges_and_clipping():
    atoms = particles()
    before = atoms.get_potential_energy()
    atoms.set_initial_charges(-atoms.get_initial_charges())
    assert atoms.get_potential_energy() == before
    atoms.set_initial_charges(np.ones(5))
    assert atoms.get_potential_energy() > before
    atoms.calc = ChargedParticles(largest_force=0.1)
    assert np.abs(atoms.get_forces()).max() == 0.1
