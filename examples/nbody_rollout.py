"""A learned integrator of charged particles beside the true dynamics, as a picture.

    python nbody_rollout.py [network.safetensors]

Without a network (`biasgrad benchmark nbody` trains some) a small one is trained first.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import Atoms
from ase.md.verlet import VelocityVerlet

from ase_biasgrad.calculators import ChargedParticles
from ase_biasgrad.charged_particles import System, simulate
from ase_biasgrad.training.benchmarks.loop import TrainingOptions, load_network, save_network
from ase_biasgrad.training.benchmarks.nbody.network import NBodyNetwork, NBodyOptions
from ase_biasgrad.training.benchmarks.nbody.training import Task, samples, train_network

TASK = Task(ahead=5, start=None, interval=0.1)  # half a unit of time
STEPS = 6


def small_network(path: Path = Path("nbody-example.safetensors")) -> Path:
    """Train once, and find the file again afterwards."""
    if not path.exists():
        options = NBodyOptions(layers=2, channels=4, max_degree=1, odd_paths=False,
                               division=2, pair_scalars=True)  # fmt: skip
        training, held_out = simulate(System(), 400, seed=1), simulate(System(), 50, seed=2)
        how = TrainingOptions(epochs=40, batch_size=32, learning_rate=1e-2, ema_decay=0.95)
        validation = samples(held_out, TASK, per_simulation=8)
        save_network(path, train_network(options, how, TASK, training, validation).network)
    return path


path = sys.argv[1] if len(sys.argv) > 1 else small_network()
network = load_network(path, NBodyNetwork)[0]
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
x, v, q = (torch.tensor(a, dtype=torch.float32)[None] for a in (positions, velocities, charges))
learned = [x[0].numpy()]
with torch.no_grad():
    for _ in range(STEPS):
        displacement, change = network(x, v, q)
        x, v = x + displacement, v + change
        learned.append(x[0].numpy())

straight = positions + 0.5 * np.arange(STEPS + 1)[:, None, None] * velocities
truth, predicted = np.array(true), np.array(learned)
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
