"""Gradient descent of the NumPy network: it learns, averages, stops, and says when it diverges."""

import numpy as np
import pytest
from helpers import NAMES

from ase_biasgrad.dense import Input, Linear, Output, Sequential, Standardise, Tanh, padded
from ase_biasgrad.training.benchmarks.loop import TrainingOptions
from ase_biasgrad.training.benchmarks.qm7.dense_rows import dense_layers, rotated
from ase_biasgrad.training.benchmarks.qm7.dense_stage import predict_dense, train_dense
from ase_biasgrad.units import ENERGY

KCAL = ENERGY["kcal/mol"]


def fifty_molecules():
    """Ethanol, methane, … off their minima, with energies of the spread of QM7's."""
    from ase.build import molecule

    random = np.random.default_rng(0)
    structures = [molecule(NAMES[k % len(NAMES)]) for k in range(50)]
    for atoms in structures:
        atoms.positions += random.normal(0, 0.1, atoms.positions.shape)
    energies = random.normal(-1500, 220, 50) * KCAL
    return padded([(a.numbers, a.positions) for a in structures], 23), energies


def test_fifty_molecules_are_overfitted_below_1_kcal_mol():
    molecules, energies = fifty_molecules()
    random = np.random.default_rng(0)
    scale = Standardise.of(Input().forward(molecules))
    layers = dense_layers(92, energies, random, np.float64)
    network = Sequential([Input(), scale, *layers])
    options = TrainingOptions(epochs=8, batch_size=25, learning_rate=2.0)
    done = train_dense(
        network, molecules, energies, options, average=False
    )  # fmt: skip
    assert done.steps == 8000
    errors = predict_dense(done.network, molecules) - energies
    assert np.abs(errors).mean() / KCAL < 1.0
    assert np.abs(energies - energies.mean()).mean() / KCAL > 100


def linear_problem():
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 3))
    y = x @ np.array([1.0, -2.0, 0.5]) + 4.0
    layers = [Linear(3, 8, random), Tanh(), Linear(8, 1, random), Output(y)]
    return Sequential(layers), x, y + random.normal(0, 0.3, 400), y


def test_the_average_is_evaluated_and_is_steadier_than_the_last_iterate():
    errors = {}
    for average in (True, False):
        network, x, noisy, y = linear_problem()
        done = train_dense(network, x, noisy, TrainingOptions(3, 25, 1.0), average=average)
        errors[average] = np.abs(predict_dense(done.network, x) - y).mean()
    assert errors[True] < errors[False]


def test_it_says_when_it_diverges():
    network, x, noisy, _ = linear_problem()
    with np.errstate(all="ignore"), pytest.raises(RuntimeError, match="lower the learning rate"):
        train_dense(network, 1e6 * x, 1e6 * noisy, TrainingOptions(3, 25, 1e9))


def test_minutes_bound_the_training():
    network, x, noisy, _ = linear_problem()
    options = TrainingOptions(10**4, 25, 0.1, minutes=0.005)
    assert 0 < train_dense(network, x, noisy, options).steps < 10**6


def test_augmented_predictions_are_means_over_draws():
    molecules, _ = fifty_molecules()
    network = Sequential(
        [Input(), Linear(92, 1, np.random.default_rng(0)), Output(np.array([-1.0, 1.0]))]
    )
    drawn = [predict_dense(network, molecules, 1, rotated, seed) for seed in (0, 1)]
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2
    random, expected = np.random.default_rng(0), np.zeros(50)
    for _ in range(3):
        expected += network.forward(rotated(molecules, random)) / 3
    np.testing.assert_allclose(predict_dense(network, molecules, 3, rotated, 0), expected)


def test_rotations_keep_distances():
    molecules, _ = fifty_molecules()
    turned = rotated(molecules, np.random.default_rng(0))
    distances = [np.linalg.norm(m.positions[:, 0] - m.positions[:, 1], axis=1) for m in
                 (molecules, turned)]  # fmt: skip
    np.testing.assert_allclose(*distances, atol=1e-10)
    assert np.abs(turned.positions - molecules.positions).max() > 0.5
