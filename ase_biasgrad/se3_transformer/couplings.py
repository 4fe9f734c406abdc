"""Couplings of the equivariant kernels: constant numbers that tie degrees together.

The kernel from degree l to degree k along x is::

    W^{lk}(x) = Σ_J φ_J(|x|) Σ_M Y_{JM}(x/|x|) Q_{JM}^{lk},   |l − k| ≤ J ≤ l + k

with real spherical harmonics Y and Wigner's 3j symbols Q, both as in e3nn, normalised such that
a kernel with φ of unit variance maps features of unit variance to features of unit variance.
A pair (k, J) is a path out of degree l. Paths with l + k + J odd change sign under reflections
relative to the others; a network without them is equivariant under reflections too.

Along the pole only Y_{J0} = √(2J + 1) is left, and W ties a component m to m, by the same number
as −m to −m (even paths), or m to −m, by the number that with the other sign ties −m to m (odd
paths): as many numbers as there are paths, each a linear combination of the φ_J.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class KernelShape:
    """Kernels from one degree to several, with or without the paths odd under reflection."""

    degree_in: int
    degrees_out: tuple[int, ...]
    odd_paths: bool

    @property
    def paths(self) -> tuple[tuple[int, int], ...]:
        """Pairs (k, J) in order."""
        return tuple(
            (k, J) for k in self.degrees_out for J in path_orders(self.degree_in, k, self.odd_paths)
        )

    @property
    def highest_order(self) -> int:
        """Highest order, without its sign, that is coupled."""
        return min(self.degree_in, max(self.degrees_out))

    @property
    def numbers(self) -> list[tuple[int, bool, tuple[int, ...]]]:
        """Order m, whether odd, and degrees out, of all numbers in the frame, block by block."""
        blocks = []
        for m in range(self.highest_order + 1):
            degrees = tuple(k for k in self.degrees_out if k >= m)
            blocks += [(m, odd, degrees) for odd in (False, True)[: 1 + (self.odd_paths and m > 0)]]
        return blocks


def path_orders(degree_in: int, degree_out: int, odd_paths: bool) -> list[int]:
    """Orders J of the harmonics that couple two degrees."""
    orders = range(abs(degree_in - degree_out), degree_in + degree_out + 1)
    return [J for J in orders if odd_paths or (degree_in + degree_out + J) % 2 == 0]


@cache
def clebsch_gordan(one: int, two: int, degree: int) -> Tensor:
    """√(2k + 1) Q of degrees one and two to degree k, `(2·one + 1, 2·two + 1, 2k + 1)`, float64."""
    from e3nn.o3 import wigner_3j

    return math.sqrt(2 * degree + 1) * wigner_3j(one, two, degree, dtype=torch.float64)


@cache
def frame_couplings(shape: KernelShape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Values of each path in the frame of the edge: a square matrix `(numbers, paths)`."""
    degree, rows = shape.degree_in, []
    for m, odd, degrees in shape.numbers:
        for k in degrees:
            rows.append([0.0] * len(shape.paths))
            for index, (out, J) in enumerate(shape.paths):
                if out == k:
                    along_pole = math.sqrt(2 * J + 1) * clebsch_gordan(J, degree, k)[J]
                    rows[-1][index] = float(along_pole[degree + (-m if odd else m), k + m])
    return torch.tensor(rows, dtype=torch.float64).to(dtype=dtype, device=device)
