"""Bring in a SchNetPack model, fit its bias to data, and check that no force has changed.

Takes the model's file and the dataset as arguments; without any it makes a model with random
weights, to show the calls.
"""

import sys

import numpy as np
import torch
from ase.build import bulk
from common import copper_checkpoint

from ase_biasgrad import BiasGradCalculator, Dataset, convert_schnetpack, save_checkpoint
from ase_biasgrad.training import DeviceFrames, fit_bias

if len(sys.argv) == 3:
    model, data = torch.load(sys.argv[1], weights_only=False), sys.argv[2]
else:
    import schnetpack as spk

    model = spk.model.NeuralNetworkPotential(
        spk.representation.SchNet(32, 2, spk.nn.GaussianRBF(20, 4.5), spk.nn.CosineCutoff(4.5)),
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[spk.atomistic.Atomwise(32, output_key="energy")],
    )
    data = copper_checkpoint().parents[1] / "copper.h5"

potential = convert_schnetpack(model, energy="eV")
atoms = bulk("Cu", cubic=True)
atoms.rattle(0.1, seed=0)
before = BiasGradCalculator(potential).get_forces(atoms)
dataset = Dataset(data)
left = fit_bias(potential, DeviceFrames(dataset, range(len(dataset)), potential.cutoff), "mean")
after = BiasGradCalculator(potential).get_forces(atoms)
save_checkpoint("with_bias.safetensors", potential)
print(f"energy error left: {1000 * np.abs(left).mean():.1f} meV")
print("forces are bit-identical" if np.array_equal(before, after) else "forces CHANGED")
