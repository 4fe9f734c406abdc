"""Derivatives by finite differences, with steps and errors that follow from the energy's noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from ase import Atoms

POINTS, SPACING = 12, 1e-4  # of the line along which noise is measured, Å
LARGEST_STEP = 0.02  # Å


@dataclass(frozen=True)
class Derivative:
    """A derivative and its error."""

    value: float
    error: float


def energy_noise(atoms: Atoms, seed: int = 0) -> float:
    """Standard deviation (eV) of energies from a smooth line; `atoms` have a calculator.

    The residual of a polynomial of fourth order through energies along a random direction: what
    rounding and incomplete convergence leave.
    """
    direction = np.random.default_rng(seed).normal(size=atoms.positions.shape)
    direction /= np.abs(direction).max()
    start, places = atoms.positions.copy(), SPACING * np.arange(POINTS)
    energies = [_energy_at(atoms, start + t * direction) for t in places]
    atoms.positions = start
    relative, t = np.array(energies) - energies[0], np.linspace(-1, 1, POINTS)
    residual = relative - np.polyval(np.polyfit(t, relative, 4), t)
    rounding = np.finfo(float).eps * max(1.0, abs(energies[0]))
    return max(float(np.sqrt((residual**2).sum() / (POINTS - 5))), rounding)


def _energy_at(atoms: Atoms, positions: np.ndarray) -> float:
    atoms.positions = positions
    return float(np.asarray(atoms.get_potential_energy()).item())


def derivative(function: Callable[[float], float], noise: float) -> Derivative:
    """df/dx at 0 by the central stencil of fourth order.

    The step grows with the noise. The error is the difference to the same stencil with twice the
    step, which also shows kinks, and ten standard deviations of the noise over the step.
    """
    h = float(np.clip(0.4 * noise**0.2, 1e-3, LARGEST_STEP)) / 2
    second = [(function(k * h) - function(-k * h)) / (2 * k * h) for k in (1, 2, 4)]
    value, wide = (4 * second[0] - second[1]) / 3, (4 * second[1] - second[2]) / 3
    return Derivative(value, abs(value - wide) + 10 * noise / h)


def numerical_forces(
    atoms: Atoms, noise: float, which: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Forces on some atoms and their errors, each `(len(which), 3)`, in eV/Å."""
    found = np.zeros((2, len(which), 3))
    start = atoms.positions.copy()
    for row, atom in enumerate(which):
        for axis in range(3):

            def energy(x: float, atom: int = atom, axis: int = axis) -> float:
                moved = start.copy()
                moved[atom, axis] += x
                return _energy_at(atoms, moved)

            slope = derivative(energy, noise)
            found[:, row, axis] = -slope.value, slope.error
    atoms.positions = start
    return found[0], found[1]


def numerical_stress(atoms: Atoms, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """Stress and its errors, each `(6,)` in Voigt order, in eV/Å³."""
    cell, volume = atoms.cell.array.copy(), atoms.get_volume()
    length = volume ** (1 / 3)  # turns a step in Å into a strain
    found = np.zeros((2, 6))
    for k, (i, j) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):

        def energy(x: float, i: int = i, j: int = j) -> float:
            strain = np.eye(3)
            strain[i, j] += x / length / 2
            strain[j, i] += x / length / 2
            atoms.set_cell(cell @ strain, scale_atoms=True)
            return float(atoms.get_potential_energy())

        slope = derivative(energy, noise)
        found[:, k] = slope.value * length / volume, slope.error * length / volume
    atoms.set_cell(cell, scale_atoms=True)
    return found[0], found[1]
