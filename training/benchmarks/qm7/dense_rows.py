"""The dense network of NumPy, from raw coordinates to random Coulomb matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

import ase_biasgrad.dense as nn
from ase_biasgrad.machine import versions
from ase_biasgrad.training.benchmarks.loop import TrainingOptions, train_once
from ase_biasgrad.training.benchmarks.qm7.baselines import per_element
from ase_biasgrad.training.benchmarks.qm7.dense_stage import (
    EPOCH,
    Augment,
    predict_dense,
    train_dense,
)
from ase_biasgrad.training.benchmarks.qm7.task import Answer, Task

HIDDEN = (400, 100)
DTYPE = np.float32
DRAWS = 10  # orders or rotations that a prediction is the mean of
NOISE = 1.0  # Hartree, of the norms of random Coulomb matrices
STEP = 1.0  # Hartree, of their tanh expansion


def dense_layers(
    inputs: int, energies: np.ndarray, random: np.random.Generator, dtype: type = DTYPE
) -> list[nn.Module]:
    """inputs → 400 → tanh → 100 → tanh → 1 → `Output` of these energies."""
    layers: list[nn.Module] = []
    for m, n in zip((inputs, *HIDDEN), HIDDEN, strict=False):
        layers += [nn.Linear(m, n, random, dtype), nn.Tanh()]
    return [*layers, nn.Linear(HIDDEN[-1], 1, random, dtype), nn.Output(energies)]


def rotated(molecules: nn.PaddedMolecules, random: np.random.Generator) -> nn.PaddedMolecules:
    """Each molecule under a random rotation about the origin."""
    rotations = Rotation.random(len(molecules), random).as_matrix()  # (b, 3, 3)
    positions = np.einsum("bnk,blk->bnl", molecules.positions, rotations)
    return replace(molecules, positions=positions)


def raw(task: Task) -> Answer:
    """Positions and charges as they come, plain gradient descent, the last iterate."""
    molecules = task.molecules.padded
    random = np.random.default_rng(task.seed)
    width = 4 * molecules.charges.shape[1]
    network = nn.Sequential([nn.Input(), *dense_layers(width, task.train_energies, random)])
    return _fitted(task, network, molecules, 50_000, 0.3, average=False)


def standardised(task: Task) -> Answer:
    """The same with inputs of mean 0 and standard deviation 1."""
    return _on_coordinates(task, [], 50_000)


def centred(task: Task) -> Answer:
    """The centroid in the origin, random rotations while training, the running average."""
    return _on_coordinates(task, [nn.Centre()], 200_000, rotated)


def _on_coordinates(
    task: Task, first: Sequence[nn.Module], steps: int, augment: Augment | None = None
) -> Answer:
    molecules, random = task.molecules.padded, np.random.default_rng(task.seed)
    train, inputs = molecules[task.train], [*first, nn.Input()]
    seen = train if augment is None else augment(train, random)
    scale = nn.Standardise.of(nn.Sequential(inputs).forward(seen))
    layers = dense_layers(len(scale.mean), task.train_energies, random)
    network = nn.Sequential([*inputs, scale, *layers])
    return _fitted(task, network, molecules, steps, 1.0, augment=augment, average=bool(augment))


def sorted_matrices(task: Task) -> Answer:
    """Coulomb matrices sorted by the norms of their rows."""
    # sorted once; the network begins at the sorted entries
    entries = nn.NormOrder().forward(nn.coulomb_matrices(task.molecules.padded)).astype(DTYPE)
    train, random = entries[task.train], np.random.default_rng(task.seed)
    layers = dense_layers(entries.shape[1], task.train_energies, random)
    network = nn.Sequential([nn.Standardise.of(train), *layers])
    return _fitted(task, network, entries, 200_000, 0.7, [nn.CoulombMatrix(), nn.NormOrder()])


def random_matrices(task: Task) -> Answer:
    """Randomly sorted Coulomb matrices in the tanh expansion (Montavon et al. 2012)."""
    # matrices are made once; the network begins at their order
    matrices = nn.coulomb_matrices(task.molecules.padded).astype(DTYPE)
    train, random = matrices[task.train], np.random.default_rng(task.seed)
    order = nn.NormOrder(NOISE, task.seed)
    largest = np.max([order.forward(train).max(axis=0) for _ in range(DRAWS)], axis=0)
    expansion = nn.TanhExpansion.up_to(largest, STEP, DTYPE)
    scale = nn.Standardise.of(expansion.forward(order.forward(train)), common=True)
    layers = dense_layers(len(scale.mean), task.train_energies, random)
    network = nn.Sequential([order, expansion, scale, *layers])
    return _fitted(task, network, matrices, 1_000_000, 0.4, [nn.CoulombMatrix()], draws=DRAWS)


def bias_and_centred(task: Task) -> Answer:
    """The composition bias, and `centred` on the residual."""
    return centred(task.without(per_element(task)))


def bias_and_random_matrices(task: Task) -> Answer:
    """The composition bias, and `random_matrices` on the residual."""
    return random_matrices(task.without(per_element(task)))


def _fitted(
    task: Task,
    network: nn.Sequential,
    inputs: Any,
    steps: int,
    rate: float,
    first: Sequence[nn.Module] = (),
    augment: Augment | None = None,
    average: bool = True,
    draws: int = 1,
) -> Answer:
    """Train `network` on `inputs`, which the modules `first` make of molecules; then predict.

    The file of the task is a `DensePotential`, which does not augment what it is given.
    """
    molecules = task.molecules.padded
    options = TrainingOptions(steps // EPOCH, 25, rate, minutes=task.minutes, seed=task.seed)

    def train(state: Path | None) -> nn.DensePotential:
        of = inputs[task.train], task.train_energies
        done = train_dense(
            network, *of, options, augment, average, report=task.say, state=state
        )  # fmt: skip
        record = {"data": task.molecules.digest, **done.figures(), "versions": versions()}
        whole, elements = nn.Sequential([*first, done.network]), np.unique(molecules.charges)
        known = tuple(int(z) for z in elements if z)
        size = molecules.charges.shape[1]
        return nn.DensePotential(whole, size, known, task.per_element, draws, record)

    made = train_once(task.file, train, nn.save_dense, nn.load_dense)
    many = draws if augment is None else DRAWS
    energies = predict_dense(made.network, molecules[task.test], many, augment, task.seed)
    bias = [made.bias(numbers) for numbers in molecules.charges[task.test]]
    return Answer(energies + bias, f"{made.training['steps']} steps", made.training["cpu_seconds"])
