"""OpenMM-ML takes our calculator: energies, forces and dynamics in OpenMM are those of ASE."""

from __future__ import annotations

import numpy as np
import pytest
from ase import units
from ase.md.verlet import VelocityVerlet
from conftest import copper, ethanol, small_potential

from ase_biasgrad.calculators import BiasGradCalculator

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed")
openmmml = pytest.importorskip("openmmml", reason="OpenMM-ML is not installed")

from openmm import app, unit  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::ase_biasgrad.calculators.EnergyZeroWarning")
KJ = units.kJ / units.mol


def triangular():
    """Copper in a cell of the form that OpenMM takes, three times the cutoff wide."""
    atoms = copper().repeat((3, 3, 3))
    cell = np.diag(atoms.cell.lengths()) + np.tril(np.full((3, 3), 0.3), -1)
    atoms.set_cell(cell, scale_atoms=True)
    return atoms


def simulation(atoms, calculator):
    """The atoms in OpenMM, on its reference platform, at their positions."""
    topology = app.Topology()
    residue = topology.addResidue("ALL", topology.addChain())
    for number, atom in enumerate(atoms):
        element = app.Element.getByAtomicNumber(int(atom.number))
        topology.addAtom(f"{atom.symbol}{number}", element, residue)
    if atoms.pbc.all():
        topology.setPeriodicBoxVectors(atoms.cell.array * unit.angstrom)
    system = openmmml.MLPotential("ase").createSystem(
        topology, calculator=calculator, removeCMMotion=False
    )
    for k, mass in enumerate(atoms.get_masses()):
        system.setParticleMass(k, mass * unit.dalton)
    integrator = openmm.VerletIntegrator(0.5 * unit.femtosecond)
    platform = openmm.Platform.getPlatformByName("Reference")
    made = app.Simulation(topology, system, integrator, platform)
    made.context.setPositions(atoms.positions * unit.angstrom)
    return made


@pytest.mark.parametrize("make", [ethanol, triangular])
def test_energies_and_forces(make):
    atoms, calc = make(), BiasGradCalculator(small_potential(), device="cpu", dtype="float64")
    state = simulation(atoms, calc).context.getState(energy=True, forces=True)
    atoms.calc = calc
    energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
    # OpenMM's nanometres round positions
    assert energy * KJ == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    np.testing.assert_allclose(forces * KJ, atoms.get_forces(), atol=1e-6)


def test_dynamics():
    """Leapfrog from rest: the positions of velocity Verlet, whose half step it starts with."""
    atoms, calc = ethanol(), BiasGradCalculator(small_potential(), device="cpu", dtype="float64")
    run = simulation(atoms, calc)
    atoms.calc = calc.copy()
    # OpenMM's velocities belong to half a step before: those that ASE's have there
    dt = 0.5 * units.fs
    velocities = -0.5 * dt * atoms.get_forces() / atoms.get_masses()[:, None]
    to_openmm = 1000 * units.fs / 10  # Å and ASE's time to nm/ps
    run.context.setVelocities(velocities * to_openmm * unit.nanometer / unit.picosecond)
    run.step(20)
    VelocityVerlet(atoms, dt).run(20)
    state = run.context.getState(positions=True)
    positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    np.testing.assert_allclose(positions, atoms.positions, atol=1e-5)
