"""Langevin dynamics in OpenMM, by OpenMM-ML (`pip install openmm openmmml`)."""

import numpy as np
from ase import units
from ase.build import molecule
from openmm import LangevinMiddleIntegrator, app, unit
from openmmml import MLPotential

from ase_biasgrad import BiasGradCalculator

atoms = molecule("CH3CH2OH")
topology = app.Topology()
residue = topology.addResidue("ETH", topology.addChain())
for number, atom in enumerate(atoms):
    element = app.Element.getByAtomicNumber(int(atom.number))
    topology.addAtom(f"{atom.symbol}{number}", element, residue)

calculator = BiasGradCalculator("potentials/ethanol_rmd17.safetensors", dtype="float64")
system = MLPotential("ase").createSystem(topology, calculator=calculator)
integrator = LangevinMiddleIntegrator(
    300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond
)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(atoms.positions * unit.angstrom)
simulation.minimizeEnergy(tolerance=10 * unit.kilojoule_per_mole / unit.nanometer)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
energies = []
for _ in range(20):
    simulation.step(10)
    state = simulation.context.getState(energy=True, positions=True)
    energies.append(state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole))
atoms.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
atoms.calc = calculator
print(f"OpenMM: {np.mean(energies):.1f} kJ/mol on average, {energies[-1]:.3f} kJ/mol at the end")
energy = atoms.get_potential_energy() / (units.kJ / units.mol)
print(f"ASE at the same positions: {energy:.3f} kJ/mol")
