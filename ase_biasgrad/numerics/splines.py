"""Radial functions sampled at equidistant knots: quintic splines, in training and in engines.

Whatever a network computes from a distance alone is a smooth function, which is evaluated at a
few hundred knots instead of at every pair and interpolated by the quintic B-spline through these
values: four times differentiable, error of order (spacing)⁶. Energies and forces of a sampled
potential belong together: one is the exact derivative of the other. The spline is linear in the
values, so that in training weights and positions both get exact derivatives of the function that
is evaluated; engines begin with the knots of training. DeePMD-kit (Lu et al. 2022, J. Chem. Theory
Comput. 18, 5559) and Symmetrix tabulate, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil, comb

import numpy as np

DEGREE = 5
N_WEIGHTS = DEGREE + 1  # coefficients that matter in each bin
# the narrowest feature of a basis is as wide as the spacing of its functions
KNOTS_PER_FUNCTION = 7
REFINEMENTS = 9
FINER = 1.5
# of the largest value and slope of any channel: they are reached at distances where atoms never
# come; elsewhere errors are a thousand times smaller, and a finer table would leave the cache
VALUE_TOLERANCE, SLOPE_TOLERANCE = 1e-5, 4e-5
STEP = 1e-30  # of complex steps, Å
# where errors are measured, in units of the spacing: near knots, where values are furthest off in
# the middle, and slopes at a quarter (those of Bernoulli polynomials)
BETWEEN = np.array([0.002, 0.24, 0.5, 0.76, 0.998])


class SplineError(ValueError):
    """A radial function that no grid of reasonable size can hold."""


@dataclass(frozen=True)
class Knots:
    """Equidistant distances from 0 to `cutoff` Å, both included."""

    cutoff: float
    count: int

    @classmethod
    def for_functions(cls, cutoff: float, functions: int) -> Knots:
        """Knots enough for a basis of `functions` radial functions on [0, cutoff]."""
        return cls(cutoff, KNOTS_PER_FUNCTION * max(functions, 8) + 1)

    @property
    def spacing(self) -> float:
        return self.cutoff / (self.count - 1)

    @property
    def n_coefficients(self) -> int:
        """Coefficients of the spline."""
        return self.count + DEGREE - 1

    def distances(self) -> np.ndarray:
        """Distances to sample, `(n_coefficients,)`: the knots, and two places at each end.

        The first is not quite 0, where SchNetPack's Bessel basis jumps.
        """
        return np.maximum(self.spacing * _sites(self.count), 1e-9)


@dataclass(frozen=True)
class RadialTable:
    """Functions of a distance as splines."""

    knots: Knots
    coefficients: np.ndarray  # (n_coefficients, channels) float64
    value_error: float  # measured between the knots, relative to the largest value
    slope_error: float  # and to the largest slope


def evaluate(table: RadialTable, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes (per Å) `(len(distances), channels)`; distances within the grid."""
    spacing = table.knots.spacing
    bin = np.clip((distances / spacing).astype(int), 0, table.knots.count - 2)
    powers = (distances / spacing - bin)[:, None] ** np.arange(N_WEIGHTS)  # (d, 6)
    near = table.coefficients[bin[:, None] + np.arange(N_WEIGHTS)]  # (d, 6, channels)
    value = np.einsum("dt,dtc->dc", powers @ polynomials(), near)
    slope = np.einsum("dt,dtc->dc", powers[:, :DEGREE] @ slope_polynomials(), near)
    return value, slope / spacing


def sampled(
    function: Callable[[np.ndarray], np.ndarray],
    cutoff: float,
    functions: int,
    value_tolerance: float = VALUE_TOLERANCE,
    slope_tolerance: float = SLOPE_TOLERANCE,
) -> RadialTable:
    """Sample `function` from 0 to `cutoff` on the coarsest grid that is accurate enough.

    Parameters
    ----------
    function
        Maps distances `(k,)` in Å to `(k, channels)`. It is analytic, and takes complex arrays:
        slopes come from complex steps.
    cutoff
        In Å. A knot lies there, where envelopes have a jump in their second derivative.
    functions
        Number of radial functions that it is made of. The first grid is `Knots.for_functions`,
        that of training.
    value_tolerance, slope_tolerance
        Largest errors between the knots, relative to the largest value and slope of all channels.

    Raises
    ------
    SplineError
        If the cutoff is not finite, or the finest grid is not accurate enough: the function has
        a jump or a kink.
    """
    if not 0 < cutoff < np.inf:
        raise SplineError(f"a table needs a finite cutoff, not {cutoff} Å")
    knots = Knots.for_functions(cutoff, functions)
    for _ in range(REFINEMENTS):
        table = _on_knots(function, knots)
        if table.value_error <= value_tolerance and table.slope_error <= slope_tolerance:
            return table
        knots = Knots(cutoff, ceil(FINER * knots.count))
    raise SplineError(
        f"at a spacing of {table.knots.spacing:.2g} Å the table is off by {table.value_error:.1e} "
        f"in values and {table.slope_error:.1e} in slopes (relative): the function is not smooth "
        "at this scale"
    )


def _on_knots(function: Callable[[np.ndarray], np.ndarray], knots: Knots) -> RadialTable:
    at_knots = function(knots.distances())
    table = RadialTable(knots, interpolate(knots.count, at_knots), 0.0, 0.0)
    errors, sizes = [], []
    for t in BETWEEN:
        distances = (np.arange(knots.count - 1) + t) * knots.spacing
        exact = values_and_slopes(function, distances)
        errors.append(
            [np.abs(a - b).max() for a, b in zip(evaluate(table, distances), exact, strict=True)]
        )
        sizes.append([np.abs(part).max() for part in exact])
    value_error, slope_error = np.max(errors, axis=0) / np.maximum(np.max(sizes, axis=0), 1e-300)
    return RadialTable(knots, table.coefficients, float(value_error), float(slope_error))


def values_and_slopes(
    function: Callable[[np.ndarray], np.ndarray], distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes of an analytic function by a complex step, exact to rounding.

    f′(r) = Im f(r + iε)/ε (Squire and Trapp 1998, SIAM Review 40, 110).
    """
    values = function(distances + 1j * STEP)
    return values.real, values.imag / STEP


@cache
def polynomials() -> np.ndarray:
    """Column s holds the coefficients of 1, t, … t⁵ in weight s: B-spline pieces.

    t goes from 0 to 1 over a bin;
    B(x) = Σ_k (−1)^k C(6, k) (x − k)₊⁵ / 5! on [0, 6]; weight s sees x = t + 5 − s.
    """
    columns = np.zeros((N_WEIGHTS, N_WEIGHTS))
    for s in range(N_WEIGHTS):
        for k in range(DEGREE - s + 1):
            shift = DEGREE - s - k  # (t + shift)⁵
            for power in range(N_WEIGHTS):
                columns[power, s] += (
                    (-1) ** k * comb(6, k) * comb(5, power) * float(shift) ** (5 - power) / 120
                )
    return columns


@cache
def slope_polynomials() -> np.ndarray:
    """`polynomials` of the derivatives by t: coefficients of 1, t, … t⁴."""
    return polynomials()[1:] * np.arange(1, N_WEIGHTS)[:, None]


def _sites(count: int) -> np.ndarray:
    """The knots 0, 1, … and four places between the outer ones, `(count + 4,)` ascending.

    As many as coefficients; anything else at the ends costs two digits of the slopes there.
    """
    between = np.array([0.5, 1.5, count - 2.5, count - 1.5])
    return np.sort(np.concatenate([np.arange(count), between]))


@lru_cache(maxsize=8)
def interpolation(count: int) -> np.ndarray:
    """Matrix from values at the sites to coefficients, `(count + 4,) * 2`."""
    return interpolate(count, np.eye(len(_sites(count))))


def collocation(count: int) -> tuple[np.ndarray, np.ndarray]:
    """The matrix from coefficients to values at all sites: for each site the first of its six
    coefficients `(count + 4,)`, and their weights `(count + 4, 6)`."""
    sites = _sites(count)
    bin = np.minimum(sites.astype(int), count - 2)
    return bin, (sites - bin)[:, None] ** np.arange(N_WEIGHTS) @ polynomials()


def interpolate(count: int, values: np.ndarray) -> np.ndarray:
    """Spline coefficients `(count + 4, channels)` from values at all sites, of the same shape."""
    from scipy.linalg import solve_banded  # takes longer to import than all of a short evaluation

    bin, weights = collocation(count)
    # row r has its six entries at most five places off the diagonal
    rows, columns = np.arange(len(weights))[:, None], bin[:, None] + np.arange(N_WEIGHTS)
    bands = np.zeros((2 * DEGREE + 1, len(weights)))
    bands[DEGREE + rows - columns, columns] = weights
    return solve_banded((DEGREE, DEGREE), bands, values)
