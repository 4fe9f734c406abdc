"""The dense network of NumPy, from raw coordinates to random Coulomb matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from ase_biasgrad.dense.coulomb_matrix import PaddedMolecules, coulomb_matrices
from ase_biasgrad.dense.inputs import Centre, Input, NormOrder, TanhExpansion
from ase_biasgrad.dense.modules import Linear, Module, Output, Sequential, Standardise, Tanh
from ase_biasgrad.training.benchmarks.qm7.baselines import composition_energies
from ase_biasgrad.training.benchmarks.qm7.dense_stage import (
    DenseOptions,
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
) -> list[Module]:
    """inputs → 400 → tanh → 100 → tanh → 1 → `Output` of these energies."""
    layers: list[Module] = []
    for m, n in zip((inputs, *HIDDEN), HIDDEN, strict=False):
        layers += [Linear.random(m, n, random, dtype), Tanh()]
    return [*layers, Linear.random(HIDDEN[-1], 1, random, dtype), Output.of(energies)]


def rotated(molecules: PaddedMolecules, random: np.random.Generator) -> PaddedMolecules:
    """Each molecule under a random rotation about the origin."""
    rotations = Rotation.random(len(molecules), random).as_matrix()  # (b, 3, 3)
    positions = np.einsum("bnk,blk->bnl", molecules.positions, rotations)
    return replace(molecules, positions=positions)


def raw(task: Task) -> Answer:
    """Positions and charges as they come, plain gradient descent, the last iterate."""
    molecules = task.molecules.padded
    random = np.random.default_rng(task.seed)
    width = 4 * molecules.charges.shape[1]
    network = Sequential([Input(), *dense_layers(width, task.train_energies, random)])
    options = DenseOptions(50_000, rate=0.3, average=False, seed=task.seed, minutes=task.minutes)
    done = train_dense(network, molecules[task.train], task.train_energies, options)
    return Answer(predict_dense(done.network, molecules[task.test]), f"{done.steps} steps")


def standardised(task: Task) -> Answer:
    """The same with inputs of mean 0 and standard deviation 1."""
    return _on_coordinates(task, [], DenseOptions(50_000, rate=1.0, average=False), rotate=False)


def centred(task: Task) -> Answer:
    """The centroid in the origin, random rotations while training, the running average."""
    return _on_coordinates(task, [Centre()], DenseOptions(200_000, rate=1.0), rotate=True)


def bias_and_centred(task: Task) -> Answer:
    """The composition bias, and `centred` on the residual."""
    return _on_residual(task, centred)


def _on_coordinates(
    task: Task, first: Sequence[Module], options: DenseOptions, rotate: bool
) -> Answer:
    molecules = task.molecules.padded
    train, random = molecules[task.train], np.random.default_rng(task.seed)
    augment = rotated if rotate else None
    inputs = Sequential([*first, Input()])
    scale = Standardise.of(inputs.forward(rotated(train, random) if rotate else train))
    layers = dense_layers(len(scale.mean), task.train_energies, random)
    network = Sequential([inputs, scale, *layers])
    options = replace(options, seed=task.seed, minutes=task.minutes)
    done = train_dense(network, train, task.train_energies, options, augment)
    draws = DRAWS if rotate else 1
    energies = predict_dense(done.network, molecules[task.test], draws, augment, task.seed)
    return Answer(energies, f"{done.steps} steps")


def sorted_matrices(task: Task) -> Answer:
    """Coulomb matrices sorted by the norms of their rows."""
    # sorted once; the network begins at the sorted entries
    entries = NormOrder().forward(coulomb_matrices(task.molecules.padded)).astype(DTYPE)
    train, random = entries[task.train], np.random.default_rng(task.seed)
    layers = dense_layers(entries.shape[1], task.train_energies, random)
    network = Sequential([Standardise.of(train), *layers])
    options = DenseOptions(200_000, rate=0.7, seed=task.seed, minutes=task.minutes)
    done = train_dense(network, train, task.train_energies, options)
    return Answer(predict_dense(done.network, entries[task.test]), f"{done.steps} steps")


def random_matrices(task: Task) -> Answer:
    """Randomly sorted Coulomb matrices in the tanh expansion (Montavon et al. 2012)."""
    # matrices are made once; the network begins at their order
    matrices = coulomb_matrices(task.molecules.padded).astype(DTYPE)
    train, random = matrices[task.train], np.random.default_rng(task.seed)
    order = NormOrder(NOISE, task.seed)
    largest = np.max([order.forward(train).max(axis=0) for _ in range(DRAWS)], axis=0)
    expansion = TanhExpansion.up_to(largest, STEP, DTYPE)
    scale = Standardise.of(expansion.forward(order.forward(train)), common=True)
    layers = dense_layers(len(scale.mean), task.train_energies, random)
    network = Sequential([order, expansion, scale, *layers])
    options = DenseOptions(1_000_000, rate=0.4, seed=task.seed, minutes=task.minutes)
    done = train_dense(network, train, task.train_energies, options)
    return Answer(predict_dense(done.network, matrices[task.test], DRAWS), f"{done.steps} steps")


def bias_and_random_matrices(task: Task) -> Answer:
    """The composition bias, and `random_matrices` on the residual."""
    return _on_residual(task, random_matrices)


def _on_residual(task: Task, fit: Callable[[Task], Answer]) -> Answer:
    bias = composition_energies(task)
    answer = fit(task.with_energies(task.molecules.energies - bias))
    return Answer(answer.energies + bias[task.test], answer.note)
