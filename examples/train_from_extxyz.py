"""Train on an extxyz file with energies and forces, and make a calculator."""

from pathlib import Path

import numpy as np
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from ase_biasgrad import BiasGradCalculator, import_files
from ase_biasgrad.training import config_from, table, train

# your own file takes the place of this one
random = np.random.default_rng(0)
frames = []
for _ in range(120):
    atoms = molecule("CH3OH")
    atoms.positions += random.normal(0, 0.06, atoms.positions.shape)
    atoms.calc = EMT()
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    atoms.calc = SinglePointCalculator(atoms, **labels)
    frames.append(atoms)
write("methanol.extxyz", frames)

import_files(["methanol.extxyz"], "methanol.h5", progress=False)
config = config_from(
    {
        "data": {"path": "methanol.h5"},  # 80 % to train on, 10 % to validate, 10 % to test
        "backbone": {"name": "schnet", "features": 32, "interactions": 2},
        "force_stage": {"epochs": 30, "batch_size": 5, "learning_rate": 3e-3},
        "trainer": {"progress_bar": False},
    }
)
result = train(config, Path("methanol-run"))
print(table(result.test))
atoms = molecule("CH3OH")
atoms.calc = BiasGradCalculator(result.checkpoint)
print(f"energy {atoms.get_potential_energy():.3f} eV, EMT {frames[0].get_potential_energy():.3f}")
