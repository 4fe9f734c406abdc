"""A learned integrator of charged particles beside the true dynamics, as a picture.

    python nbody_rollout.py [network.safetensors]

Without a network (`biasgrad benchmark nbody` trains some) the one in `potentials` is taken.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from ase_biasgrad.calculators import ChargedParticles
from ase_biasgrad.charged_particles import System, simulate
from ase_biasgrad.training import NBodyNetwork, load_network, rollout

STEPS = 6  # of half a unit of time
SHIPPED = Path(__file__).parent / "potentials" / "nbody.safetensors"

network = load_network(sys.argv[1] if len(sys.argv) > 1 else SHIPPED, NBodyNetwork)[0]
start = simulate(System(half_width=None), 1, seed=11)
positions, velocities, charges = start.positions[0, 10], start.velocities[0, 10], start.charges[0]

# the true system, by molecular dynamics in ASE
atoms = Atoms("X5", positions, masses=np.ones(5))
atoms.set_initial_charges(charges)
atoms.set_velocities(velocities)
atoms.calc = ChargedParticles(largest_force=100.0)
dynamics = VelocityVerlet(atoms, timestep=0.001)
true = [atoms.get_positions()]
for _ in range(10 * STEPS):
    dynamics.run(50)
    true.append(atoms.get_positions())

# the network, step after step from its own predictions
predicted, _ = rollout(network, positions, velocities, charges, STEPS)

straight = positions + 0.5 * np.arange(STEPS + 1)[:, None, None] * velocities
truth = np.array(true)
figure, axes = plt.subplots(figsize=(6, 6))
for k in range(5):
    color = "tab:red" if charges[k] > 0 else "tab:blue"
    axes.plot(*truth[:, k, :2].T, color=color, lw=1)
    axes.plot(*predicted[:, k, :2].T, "o--", color=color, ms=4, lw=0.5)
    axes.plot(*straight[:, k, :2].T, ":", color="gray", lw=0.8)
axes.set(xlabel="x", ylabel="y", title="true (lines), learned (points), straight on (dotted)")
axes.set_aspect("equal")
figure.savefig("nbody_rollout.png", dpi=150)

for step in (1, 2, STEPS):
    errors = [np.sqrt(np.square(p[step] - truth[10 * step]).mean()) for p in (predicted, straight)]
    print(
        f"after {0.5 * step:.1f} units of time: RMS error {errors[0]:.3f}, "
        f"{errors[1]:.3f} going straight on"
    )
