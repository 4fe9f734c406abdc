"""Predictions without a network: the mean, and the package's bias."""

from __future__ import annotations

import numpy as np

from ase_biasgrad.bias import Bias
from ase_biasgrad.training.benchmarks.qm7.task import Answer, Task


def mean(task: Task) -> Answer:
    """The mean energy of the training molecules for every molecule."""
    return Answer(np.full(len(task.test), task.train_energies.mean()))


def composition(task: Task) -> Answer:
    """The bias with no backbone: one energy per element, by least squares."""
    return Answer(task.molecules.counts[task.test] @ per_element(task))


def per_element(task: Task) -> np.ndarray:
    """Energies of the elements `(N_ELEMENTS,)` eV, fitted to the molecules to train on."""
    bias = Bias()
    bias.fit(task.train_energies, task.molecules.counts[task.train], "least-squares")
    return bias.per_element.numpy()
