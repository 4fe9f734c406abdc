"""Forces through the graph: a graph network trained on energies alone, and on forces.

The graph is built differentiably, so that forces follow from any network's energy by the chain
rule. Whether they are any good is another question: here the same network sees the same crystals
once with their energies and once with their forces.
"""

from pathlib import Path

import numpy as np
import torch
from ase.build import bulk
from ase.calculators.emt import EMT

from ase_biasgrad import Dataset, DatasetWriter, Potential, build_backbone, load_checkpoint
from ase_biasgrad.training import (
    DeviceFrames,
    TrainingOptions,
    config_from,
    evaluate,
    fit_energies,
    train,
)

network = {"features": 16, "interactions": 2, "cutoff": 4.5, "radial_functions": 16}
epochs = 20


def crystals(path: Path, frames: int, seed: int) -> Dataset:
    """Rattled and strained copper; your own reference data takes its place."""
    random = np.random.default_rng(seed)
    with DatasetWriter(path) as writer:
        for _ in range(frames):
            atoms = bulk("Cu", cubic=True) * (2, 1, 1)
            strain = np.eye(3) + random.normal(0, 0.02, (3, 3))
            atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            atoms.positions += random.normal(0, 0.12, atoms.positions.shape)
            atoms.calc = EMT()
            labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
            writer.append(
                atoms.numbers, atoms.positions, **labels, cell=atoms.cell.array, pbc=atoms.pbc
            )
    return Dataset(path)


def trained_on_energies(dataset: Dataset) -> Potential:
    """The bias first, then the network on the energies that are left."""
    torch.manual_seed(0)
    potential = Potential(build_backbone("graph_convolution", network), elements=[29])
    frames = DeviceFrames(dataset, range(60), network["cutoff"])
    fit_energies(potential, frames, TrainingOptions(epochs, 4, 5e-3, ema_decay=0.95))
    return potential


def trained_on_forces(path: Path) -> Potential:
    """The two-stage recipe: forces, then the bias."""
    config = {
        "data": {"path": str(path), "train": 60, "validation": 10, "test": 0},
        "backbone": {"name": "graph_convolution", **network},
        "force_stage": {
            "epochs": epochs,
            "batch_size": 4,
            "learning_rate": 5e-3,
            "ema_decay": 0.95,
            "schedule": {"warmup_steps": 20},
        },
        "trainer": {"progress_bar": False},
    }
    return load_checkpoint(train(config_from(config), "copper-graphs-run").checkpoint).potential


training = crystals(Path("copper-graphs.h5"), 70, seed=0)
test = DeviceFrames(crystals(Path("copper-graphs-test.h5"), 20, seed=1), range(20), 4.5)
print(f"no forces at all     {1000 * test.forces.abs().mean():6.1f} meV/Å")
for labels, potential in {
    "energies": trained_on_energies(training),
    "forces": trained_on_forces(training.path),
}.items():
    report = evaluate(potential, test)
    print(
        f"trained on {labels:8}  {1000 * report.forces.mae:6.1f} meV/Å, "
        f"energy {1000 * report.energy_per_atom.mae:.2f} meV per atom"
    )
