"""Repulsion of nuclei that come closer than any did in training: Ziegler, Biersack and Littmark.

V(d) = s(d) e²/(4πε₀) Z₁ Z₂/d φ(d/a), with the universal screening function φ, a = 0.46850 Å /
(Z₁^0.23 + Z₂^0.23), and a switch s that falls from 1 at `FULL_BELOW` times the range to 0 at the
range. Value, first and second derivative vanish there, so forces and Hessian are continuous.

J. F. Ziegler, J. P. Biersack, U. Littmark, The Stopping and Range of Ions in Matter (1985).
"""

from __future__ import annotations

import numpy as np
from ase import units
from ase.data import covalent_radii

# terms of the screening function: amplitudes and rates (1/a)
AMPLITUDES = np.array([0.18175, 0.50986, 0.28022, 0.02817])
RATES = np.array([3.19980, 0.94229, 0.40290, 0.20162])
SCREENING = 0.46850  # Å
EXPONENT = 0.23
COULOMB = units.Hartree * units.Bohr  # e²/(4πε₀) in eV Å
FULL_BELOW = 0.6  # of the range


def repulsion_ranges(closest: np.ndarray, unseen: float) -> np.ndarray:
    """Distances in Å at which the repulsion of two elements begins, `(elements, elements)`.

    They are the closest distances seen in training. Elements whose table entry is `unseen` (Å), of
    which no pair was seen, repel each other below the sum of their covalent radii: to begin further
    out would forbid a bond that nobody knows of.
    """
    radii = np.zeros(len(closest))
    radii[1 : len(covalent_radii)] = covalent_radii[1 : len(closest)]
    bond = np.minimum(radii[:, None] + radii[None, :], unseen)
    return np.where(closest < unseen, closest, bond)


def repulsion(
    first: np.ndarray, second: np.ndarray, distances: np.ndarray, ranges: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """V, ∂V/∂d and ∂²V/∂d² of pairs, each `(p,)` in eV and Å.

    first, second: atomic numbers `(p,)`; distances and ranges `(p,)` in Å.
    """
    d = np.asarray(distances, np.float64)
    value, first_order, second_order = np.zeros((3, len(d)))
    for amplitude, rate in zip(AMPLITUDES, RATES, strict=True):
        k = rate * (first**EXPONENT + second**EXPONENT) / SCREENING  # (p,) 1/Å
        term = COULOMB * first * second * amplitude * np.exp(-k * d) / d
        value += term
        first_order -= term * (k + 1 / d)
        second_order += term * (k**2 + 2 * k / d + 2 / d**2)
    s, ds, d2s = _switch(d, ranges)
    return (
        s * value,
        ds * value + s * first_order,
        d2s * value + 2 * ds * first_order + s * second_order,
    )


def _switch(d: np.ndarray, ranges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """10 t³ − 15 t⁴ + 6 t⁵ of t = 0 at the range to 1 at `FULL_BELOW` of it, and derivatives."""
    width = (1 - FULL_BELOW) * ranges
    t = np.clip((ranges - d) / width, 0, 1)
    value = t**3 * (10 - 15 * t + 6 * t**2)
    first_order = -30 * t**2 * (1 - t) ** 2 / width
    second_order = 60 * t * (1 - t) * (1 - 2 * t) / width**2
    return value, first_order, second_order
