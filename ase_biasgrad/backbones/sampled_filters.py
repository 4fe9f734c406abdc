"""Radial functions of a network, sampled at equidistant knots: quintic splines of float accuracy.

A filter network is a smooth function of one distance. It is evaluated at a few hundred knots
instead of at every pair, and interpolated by the quintic B-spline through these values: four
times differentiable, error of order (spacing)⁶. The spline is linear in the values, so weights
and positions both get exact derivatives of the function that is evaluated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import ceil, comb

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.backbones.pair_messages import TAPS

DEGREE = TAPS - 1


@dataclass(frozen=True)
class Knots:
    """Equidistant distances from 0 to `cutoff` Å, both included."""

    cutoff: float
    count: int

    @classmethod
    def for_functions(cls, cutoff: float, functions: int) -> Knots:
        """Enough for a basis of `functions` radial functions on [0, cutoff]."""
        return cls(cutoff, ceil(KNOTS_PER_FUNCTION * max(functions, 8)) + 1)

    @property
    def spacing(self) -> float:
        return self.cutoff / (self.count - 1)

    @property
    def n_rows(self) -> int:
        """Coefficients of the spline."""
        return self.count + DEGREE - 1

    def distances(self) -> Tensor:
        """`(count,)` float64. The first is not quite 0, where SchNetPack's Bessel basis jumps."""
        return torch.linspace(0.0, self.cutoff, self.count, dtype=torch.float64).clamp_min(1e-6)

    def interpolation(self) -> Tensor:
        """Matrix `(n_rows, count)` float64 from values at the knots to spline coefficients."""
        return torch.from_numpy(_interpolation(self.count))

    def weights(self, distances: Tensor) -> tuple[Tensor, Tensor]:
        """First coefficient `(p,)` int64 and weights `(p, 6)` float64 of distances `(p,)` < cutoff.

        The weights are differentiable in the distances.
        """
        place = distances / self.spacing
        interval = place.detach().floor().clamp_(0, self.count - 2)  # (p,)
        powers = torch.stack(_powers(place - interval), dim=1)  # (p, 6)
        polynomials = torch.from_numpy(_polynomials()).to(distances.device)
        return interval.long(), powers @ polynomials


# The narrowest feature of a basis is as wide as the spacing of its functions.
KNOTS_PER_FUNCTION = 7


def _powers(t: Tensor) -> list[Tensor]:
    """1, t, … t⁵."""
    square = t * t
    return [torch.ones_like(t), t, square, square * t, square * square, square * square * t]


@cache
def _polynomials() -> np.ndarray:
    """Column s holds the coefficients of 1, t, … t⁵ in the weight of tap s: B-spline pieces.

    B(x) = Σ_k (−1)^k C(6, k) (x − k)₊⁵ / 5! on [0, 6]; tap s sees x = t + 5 − s.
    """
    columns = np.zeros((TAPS, TAPS))
    for tap in range(TAPS):
        for k in range(DEGREE - tap + 1):
            shift = DEGREE - tap - k  # (t + shift)⁵
            for power in range(TAPS):
                columns[power, tap] += (
                    (-1) ** k * comb(6, k) * comb(5, power) * float(shift) ** (5 - power) / 120
                )
    return columns


@cache
def _interpolation(count: int) -> np.ndarray:
    """Inverse of: the spline passes through all values, and Δ⁶c = 0 twice at either end."""
    rows = count + DEGREE - 1
    equations = np.zeros((rows, rows))
    at_knot = _polynomials()[0, :DEGREE]  # weights at t = 0; that of the last tap is zero
    for knot in range(count):
        equations[2 + knot, knot : knot + DEGREE] = at_knot
    difference = [(-1) ** k * comb(6, k) for k in range(7)]
    for row, first in ((0, 0), (1, 1), (rows - 2, rows - 8), (rows - 1, rows - 7)):
        equations[row, first : first + 7] = difference
    return np.ascontiguousarray(np.linalg.inv(equations)[:, 2:-2])
