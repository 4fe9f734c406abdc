"""Stochastic gradient descent for the NumPy network, and its predictions."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ase_biasgrad.dense.modules import Output, Sequential
from ase_biasgrad.training.benchmarks.loop import within

# the rate grows to its value in steps (step, share), as in the code of Montavon et al. 2012
WARM_UP = ((0, 0.1), (500, 0.25), (2500, 0.5), (12_500, 1.0))
AVERAGE_OVER = 10  # a_i = 10 / (10 + i): about the last tenth of the iterates
AVERAGE_EVERY = 10  # steps; an average costs about as much as a step


@dataclass(frozen=True)
class DenseOptions:
    """The training ends with the first budget used up."""

    steps: int = 100_000
    minutes: float | None = None  # of processor time
    batch_size: int = 25
    rate: float = 0.1
    warm_up: tuple[tuple[int, float], ...] = WARM_UP
    average: bool = True  # give the running average instead of the last iterate
    seed: int = 0


@dataclass(frozen=True)
class DenseFit:
    """The network to evaluate, and how many steps it took."""

    network: Sequential
    steps: int


def train_dense(
    network: Sequential,
    inputs: Any,
    energies: np.ndarray,
    options: DenseOptions,
    augment: Callable[[Any, np.random.Generator], Any] | None = None,
) -> DenseFit:
    """Minimise the squared error of `network`, whose last module is an `Output`, in place.

    Parameters
    ----------
    inputs
        What `network.forward` takes, for all molecules: indexing it by an array `(b,)` gives
        those of a batch.
    energies
        `(m,)`, in the unit of the `Output`.
    augment
        Changes the inputs of each batch, such as by rotations.

    Raises
    ------
    FloatingPointError
        If the training diverges.
    """
    output = network.modules[-1]
    assert isinstance(output, Output)
    random = np.random.default_rng(options.seed)
    average = copy.deepcopy(network)
    for step in within(options.steps, options.minutes, every=1000):
        rate = options.rate * next(
            share for start, share in reversed(options.warm_up) if step >= start
        )
        chosen = random.integers(0, len(energies), options.batch_size)
        batch = inputs[chosen]
        predicted = network.forward(batch if augment is None else augment(batch, random))
        # of half the mean squared error, in units of the energies' standard deviation
        gradient = (predicted - energies[chosen]) / output.std**2 / len(chosen)
        network.backward_to_weights(gradient)
        network.update(rate)
        if options.average and step % AVERAGE_EVERY == 0:
            average.average(network, AVERAGE_OVER / (AVERAGE_OVER + step // AVERAGE_EVERY))
        if step % 1000 == 0 and not np.isfinite(predicted).all():
            raise FloatingPointError(
                f"the dense network diverged before step {step}; lower the rate ({options.rate:g})"
            )
    return DenseFit(average if options.average else network, step + 1)


def predict_dense(
    network: Sequential,
    inputs: Any,
    draws: int = 1,
    augment: Callable[[Any, np.random.Generator], Any] | None = None,
    seed: int = 0,
    batch_size: int = 500,
) -> np.ndarray:
    """Energies `(m,)`: the mean over `draws` evaluations, each with other augmented inputs."""
    random, total = np.random.default_rng(seed), np.zeros(len(inputs))
    for _ in range(draws):
        for first in range(0, len(inputs), batch_size):
            rows = slice(first, first + batch_size)
            batch = inputs[rows]
            total[rows] += network.forward(batch if augment is None else augment(batch, random))
    return total / draws
