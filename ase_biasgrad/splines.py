"""Radial functions sampled once on a uniform grid: cubic Hermite splines.

Whatever a network computes from a distance alone can be tabulated when it is loaded. Between
knots a cubic takes on the values and derivatives at both ends, so energies and forces of a
tabulated potential belong together: both are continuous, and one is the exact derivative of the
other. DeePMD-kit (Lu et al. 2022, J. Chem. Theory Comput. 18, 5559) and Symmetrix do the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COARSEST = 0.02  # Å
REFINEMENTS = 9
FINER = 1.5
# of the largest value and slope of any channel: the rounding of float32 in the network itself
VALUE_TOLERANCE, SLOPE_TOLERANCE = 1e-6, 4e-6
# where the error of a cubic's value and of its slope are largest, in units of the spacing
BETWEEN = (0.5, 0.5 - 3**0.5 / 6, 0.5 + 3**0.5 / 6)


class SplineError(ValueError):
    """A radial function that no grid of reasonable size can hold."""


@dataclass(frozen=True)
class RadialTable:
    """Functions of a distance in Å, on knots 0, `spacing`, …, cutoff."""

    spacing: float
    values: np.ndarray  # (knots, channels)
    slopes: np.ndarray  # (knots, channels), per Å
    value_error: float  # measured between the knots, relative to the largest value
    slope_error: float

    @property
    def coefficients(self) -> np.ndarray:
        """Cubics `(intervals, 4, channels)`: Σ_k c_k t^k, t from 0 to 1 over an interval."""
        rise = self.values[1:] - self.values[:-1]
        left, right = self.slopes[:-1] * self.spacing, self.slopes[1:] * self.spacing
        cubics = [self.values[:-1], left, 3 * rise - 2 * left - right, left + right - 2 * rise]
        return np.stack(cubics, axis=1)


def evaluate(table: RadialTable, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and slopes `(len(distances), channels)` of the spline; distances within the grid."""
    cubics = table.coefficients
    k = np.minimum((distances / table.spacing).astype(int), len(cubics) - 1)
    t = (distances / table.spacing - k)[:, None]
    c0, c1, c2, c3 = (cubics[k, power] for power in range(4))
    value = c0 + t * (c1 + t * (c2 + t * c3))
    return value, (c1 + t * (2 * c2 + 3 * t * c3)) / table.spacing


def sampled(
    function: Callable[[Tensor], Tensor],
    cutoff: float,
    value_tolerance: float = VALUE_TOLERANCE,
    slope_tolerance: float = SLOPE_TOLERANCE,
) -> RadialTable:
    """Tabulate `function` from 0 to `cutoff` on the coarsest grid that is accurate enough.

    Parameters
    ----------
    function
        Maps distances `(k,)` in Å, float64, to `(k, channels)`, differentiable; called on float64.
    cutoff
        In Å. A knot lies there, where envelopes have a jump in their second derivative.
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
    intervals = max(4, int(np.ceil(cutoff / COARSEST - 1e-9)))
    for _ in range(REFINEMENTS):
        table = _on_grid(function, cutoff, intervals)
        if table.value_error <= value_tolerance and table.slope_error <= slope_tolerance:
            return table
        intervals = int(np.ceil(intervals * FINER))
    raise SplineError(
        f"at a spacing of {table.spacing:.2g} Å the table is off by {table.value_error:.1e} in "
        f"values and {table.slope_error:.1e} in slopes (relative); the function is not smooth"
    )


def _on_grid(function: Callable[[Tensor], Tensor], cutoff: float, intervals: int) -> RadialTable:
    spacing = cutoff / intervals
    values, slopes = _values_and_slopes(function, np.linspace(0.0, cutoff, intervals + 1))
    table = RadialTable(spacing, values, slopes, 0.0, 0.0)
    errors = []
    for place in BETWEEN:
        distances = (np.arange(intervals) + place) * spacing
        exact = _values_and_slopes(function, distances)
        errors.append(
            [np.abs(a - b).max() for a, b in zip(evaluate(table, distances), exact, strict=True)]
        )
    value_error, slope_error = np.max(errors, axis=0)
    return RadialTable(
        spacing,
        values,
        slopes,
        float(value_error / max(np.abs(values).max(), 1e-300)),
        float(slope_error / max(np.abs(slopes).max(), 1e-300)),
    )


def _values_and_slopes(
    function: Callable[[Tensor], Tensor], distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`function` and its derivative; a first distance of zero, where bases such as sin(x)/x
    divide by it, is extrapolated from 1e-6 and 2e-6 Å."""
    if distances[0] > 0:
        return _differentiated(function, distances)
    nearest = 1e-6
    values, slopes = _differentiated(function, np.append([nearest, 2 * nearest], distances[1:]))
    slopes[0], values[0] = 2 * slopes[0] - slopes[1], values[0] - nearest * slopes[0]
    return np.delete(values, 1, axis=0), np.delete(slopes, 1, axis=0)


def _differentiated(
    function: Callable[[Tensor], Tensor], distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    at = torch.from_numpy(distances)
    values, slopes = torch.func.jvp(function, (at,), (torch.ones_like(at),))
    return values.detach().numpy().copy(), slopes.detach().numpy().copy()
