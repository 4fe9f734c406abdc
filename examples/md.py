"""Molecular dynamics (NVE) of a crystal."""

from ase import units
from ase.build import bulk
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from common import copper_checkpoint

from ase_biasgrad import BiasGradCalculator

atoms = bulk("Cu", cubic=True) * (2, 2, 2)
atoms.calc = BiasGradCalculator(copper_checkpoint())
thermalize_momenta(atoms, 600)
dynamics = VelocityVerlet(atoms, 2 * units.fs, trajectory="copper.traj", loginterval=10)
before = atoms.get_total_energy()
dynamics.run(100)
drift = (atoms.get_total_energy() - before) / len(atoms)
print(f"{atoms.get_temperature():.0f} K, energy changed by {1000 * drift:.4f} meV per atom")
