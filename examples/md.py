"""Molecular dynamics (NVE) of a crystal."""

import matplotlib.pyplot as plt
import numpy as np
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
energies: list[tuple[float, float]] = []
dynamics.attach(lambda: energies.append((atoms.get_potential_energy(), atoms.get_total_energy())))
dynamics.run(500)
potential, total = 1000 * (np.array(energies) - energies[0]).T / len(atoms)
drift = (energies[-1][1] - energies[0][1]) / len(atoms)
print(f"{atoms.get_temperature():.0f} K, energy changed by {1000 * drift:.4f} meV per atom")

figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
axes.plot(np.arange(len(total)) * 2e-3, potential, lw=1, label="potential energy")
axes.plot(np.arange(len(total)) * 2e-3, total, color="black", label="total energy")
axes.set(xlabel="time, ps", ylabel="change, meV per atom", title="32 atoms of copper, NVE")
axes.legend(frameon=False)
figure.savefig("md.png", dpi=100)
