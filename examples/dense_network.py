"""The dense network of NumPy: trained on energies alone, and run in ASE with its own forces.

The data are distorted molecules with EMT energies; take your own dataset, or QM7, instead.
"""

import matplotlib.pyplot as plt
import numpy as np
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.calculators.fd import calculate_numerical_forces

from ase_biasgrad.calculators import DenseCalculator
from ase_biasgrad.dense import (
    Centre,
    DensePotential,
    Input,
    Linear,
    Output,
    Sequential,
    Standardise,
    Tanh,
    padded,
    save_dense,
)
from ase_biasgrad.training import TrainingOptions, predict_dense, train_dense

random = np.random.default_rng(0)
structures = [molecule(name) for name in ("CH3OH", "H2O") for _ in range(150)]
for atoms in structures:
    atoms.positions += random.normal(0, 0.08, atoms.positions.shape)
    atoms.calc = EMT()
molecules = padded([(atoms.numbers, atoms.positions) for atoms in structures])
energies = np.array([atoms.get_potential_energy() for atoms in structures])
train, test = np.arange(300) % 5 > 0, np.arange(300) % 5 == 0

inputs = Sequential([Centre(), Input()])
scale = Standardise.of(inputs.forward(molecules[train]))
layers = [Linear(len(scale.mean), 100, random), Tanh(), Linear(100, 1, random)]
network = Sequential([inputs, scale, *layers, Output(energies[train])])
options = TrainingOptions(epochs=20, batch_size=25, learning_rate=0.5)  # of 1000 steps each
network = train_dense(network, molecules[train], energies[train], options).network
predicted = predict_dense(network, molecules[test])
errors = predicted - energies[test]
print(f"test MAE {np.abs(errors).mean():.3f} eV, spread {energies[test].std():.3f} eV")

save_dense("dense.safetensors", DensePotential(network, molecules.charges.shape[1], (1, 6, 8)))
atoms = structures[0].copy()
atoms.calc = DenseCalculator("dense.safetensors")
difference = atoms.get_forces() - calculate_numerical_forces(atoms, 1e-4)
print(f"forces differ from finite differences by {np.abs(difference).max():.1e} eV/Å")

figure, axes = plt.subplots(figsize=(5, 3.5), layout="constrained")
axes.plot(energies[test], predicted, ".")
axes.axline((energies[test].mean(),) * 2, slope=1, color="0.6", zorder=0)
axes.set(xlabel="EMT energy, eV", ylabel="energy of the dense network, eV", title="CH₃OH and H₂O")
figure.savefig("dense_network.png", dpi=100)
