"""Stochastic gradient descent for the NumPy network, and its predictions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ase_biasgrad.dense import Linear, NormOrder, Output, Sequential
from ase_biasgrad.dense.potential import flat
from ase_biasgrad.training.benchmarks.loop import Learner, Trained, TrainingOptions, train

# the rate grows to its value in steps (step, share), as in the code of Montavon et al. 2012
WARM_UP = ((0, 0.1), (500, 0.25), (2500, 0.5), (12_500, 1.0))
AVERAGE_OVER = 10  # a_i = 10 / (10 + i): about the last tenth of the iterates
AVERAGE_EVERY = 10  # steps; an average costs about as much as a step
EPOCH = 1000  # steps
Augment = Callable[[Any, np.random.Generator], Any]


class _Weights(nn.Module):
    """The arrays of a network's layers as buffers that share their memory."""

    def __init__(self, network: Sequential) -> None:
        super().__init__()
        layers = [module for module in flat(network.modules) if isinstance(module, Linear)]
        for k, layer in enumerate(layers):
            for name, values in layer.state().items():
                self.register_buffer(f"{name}{k}", torch.from_numpy(values))


class DenseLearner(Learner[Sequential, tuple[Any, np.ndarray]]):
    """A `Sequential` that ends in an `Output`, and its running average where that is kept."""

    def __init__(self, network: Sequential, rate: float, average: bool) -> None:
        output = network.modules[-1]
        assert isinstance(output, Output)
        self.trained, self.std, self.rate = network, output.std, rate
        self.average = copy.deepcopy(network) if average else network
        self.kept = _Weights(self.average)
        self.parts = {"trained": _Weights(network), "average": self.kept}

    def step(self, batch: tuple[Any, np.ndarray], number: int, used: float) -> float:
        """Half the mean squared error, in units of the energies' standard deviation."""
        inputs, energies = batch
        left = (self.trained.forward(inputs) - energies) / self.std
        self.trained.backward_to_weights(left / self.std / len(left))
        share = next(share for start, share in reversed(WARM_UP) if number >= start)
        self.trained.update(self.rate * share)
        if self.average is not self.trained and number % AVERAGE_EVERY == 0:
            a = AVERAGE_OVER / (AVERAGE_OVER + number // AVERAGE_EVERY)
            self.average.average(self.trained, a)
        return float(np.mean(left**2) / 2)

    def network(self, weights: dict[str, Tensor]) -> Sequential:
        network = copy.deepcopy(self.trained)
        _Weights(network).load_state_dict(weights)
        return network


def train_dense(
    network: Sequential,
    inputs: Any,
    energies: np.ndarray,
    options: TrainingOptions,
    augment: Augment | None = None,
    average: bool = True,
    report: Callable[[str], None] = lambda line: None,
    state: Path | None = None,
) -> Trained[Sequential]:
    """Minimise the squared error of `network`, whose last module is an `Output`, by plain descent.

    Parameters
    ----------
    inputs
        What `network.forward` takes, for all molecules: indexing it by an array `(b,)` gives
        those of a batch.
    energies
        `(m,)`, in the unit of the `Output`.
    options
        Epochs count 1000 steps each; warm-up, averaging and norms are not taken from here.
    augment
        Changes the inputs of each batch, such as by rotations.
    average
        Give the running average of the weights instead of the last iterate.
    report, state
        Those of the loop, whose errors it raises.
    """
    orders = [module for module in flat(network.modules) if isinstance(module, NormOrder)]

    def batches(random: np.random.Generator) -> Iterator[tuple[Any, np.ndarray]]:
        for module in orders:
            module.random = random  # so that an interrupted training draws the same orders
        for _ in range(EPOCH):
            chosen = random.integers(0, len(energies), options.batch_size)
            batch = inputs[chosen]
            yield batch if augment is None else augment(batch, random), energies[chosen]

    learner = DenseLearner(network, options.learning_rate, average)
    return train(learner, options, EPOCH, batches, None, report, every=100, state=state)


def predict_dense(
    network: Sequential,
    inputs: Any,
    draws: int = 1,
    augment: Augment | None = None,
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
