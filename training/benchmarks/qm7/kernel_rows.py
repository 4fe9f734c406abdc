"""Kernel ridge regression on Coulomb matrices.

Widths and regularisation are chosen on training molecules alone, by a split within them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from warnings import catch_warnings, simplefilter

import numpy as np
from scipy.linalg import LinAlgWarning, solve
from scipy.spatial.distance import cdist

from ase_biasgrad.dense.coulomb_matrix import coulomb_matrices, eigenspectra, norm_order, triangles
from ase_biasgrad.training.benchmarks.qm7.task import Answer, Task

WIDTHS = tuple(2.0**k for k in range(6, 15))  # Hartree
RIDGES = tuple(10.0**k for k in range(-12, -1, 2))
CHOICE = 1500  # molecules on which width and ridge are chosen


def spectrum(task: Task) -> Answer:
    """Gaussian kernel on sorted eigenvalues (Rupp et al. 2012)."""
    spectra = eigenspectra(coulomb_matrices(task.molecules.padded))
    return _with_best_width(task, spectra, "sqeuclidean", [width**2 / 8 for width in WIDTHS])


def sorted_matrices(task: Task) -> Answer:
    """Laplacian kernel on sorted Coulomb matrices (Hansen et al. 2013)."""
    matrices = coulomb_matrices(task.molecules.padded)
    entries = triangles(matrices, norm_order(matrices))
    return _with_best_width(task, entries, "cityblock", WIDTHS)


def _with_best_width(
    task: Task, features: np.ndarray, metric: str, widths: Sequence[float]
) -> Answer:
    """Kernel ridge regression with exp(−distance / width)."""
    distances = partial(cdist, metric=metric)
    some, held, fit = _choice(task)
    between = distances(features[some], features[some])
    width, ridge = _best(
        [(w, np.exp(-between / w)) for w in widths], held, fit, task.molecules.energies[some]
    )
    seen = features[task.train]
    kernel = np.exp(-distances(seen, seen) / width)
    to_test = np.exp(-distances(features[task.test], seen) / width)
    energies = _regression(kernel, to_test, task.train_energies, ridge)
    return Answer(energies, f"width {width:g}, ridge {ridge:.0e}")


def _choice(task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training molecules to choose on, and which places of them are held out and fitted to."""
    random = np.random.default_rng(task.seed)
    train = random.permutation(task.train)[:CHOICE]
    held = len(train) // 4
    return train, np.arange(held), np.arange(held, len(train))


def _best(
    kernels: Sequence[tuple[float, np.ndarray]],
    held: np.ndarray,
    fit: np.ndarray,
    energies: np.ndarray,
) -> tuple[float, float]:
    """Width and ridge with the least mean absolute error on the held-out molecules."""
    errors = {}
    for width, kernel in kernels:
        for ridge in RIDGES:
            predicted = _regression(
                kernel[np.ix_(fit, fit)], kernel[np.ix_(held, fit)], energies[fit], ridge
            )
            errors[width, ridge] = np.abs(predicted - energies[held]).mean()
    return min(errors, key=lambda chosen: errors[chosen])


def _regression(
    kernel: np.ndarray, to_test: np.ndarray, energies: np.ndarray, ridge: float
) -> np.ndarray:
    """Mean + k (K + ridge)⁻¹ (E − mean); rounding can leave small ridges indefinite."""
    regularised = kernel.copy()
    regularised[np.diag_indices_from(regularised)] += ridge
    mean = energies.mean()
    with catch_warnings():
        simplefilter("ignore", LinAlgWarning)  # small ridges are among those tried
        weights = solve(regularised, energies - mean, assume_a="sym", overwrite_a=True)
    return mean + to_test @ weights
