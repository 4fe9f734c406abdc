"""Bases of the equivariant kernels: what of a kernel depends on directions alone.

The kernel from degree l to degree k along x is::

    W^{lk}(x) = Σ_J φ_J(|x|) Σ_M Y_{JM}(x/|x|) Q_{JM}^{lk},   |l − k| ≤ J ≤ l + k

with real spherical harmonics Y and Wigner's 3j symbols Q, both from e3nn, normalised such that
a kernel with φ of unit variance maps features of unit variance to features of unit variance.
A pair (k, J) is a path out of degree l. Paths with l + k + J odd change sign under reflections
relative to the others; a network without them is equivariant under reflections too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor


@dataclass(frozen=True)
class BasisShape:
    """Bases from one degree to several, with or without the paths odd under reflection."""

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
    def components(self) -> int:
        """Components of the degrees out: Σ (2k + 1)."""
        return sum(2 * k + 1 for k in self.degrees_out)

    @property
    def rows(self) -> int:
        """Components of degree l times paths."""
        return (2 * self.degree_in + 1) * len(self.paths)

    @property
    def highest_order(self) -> int:
        """Highest J."""
        return max(J for _, J in self.paths)


KernelBases = dict[BasisShape, Tensor]  # (edges, (2l + 1) · paths, components)


def path_orders(degree_in: int, degree_out: int, odd_paths: bool) -> list[int]:
    """Orders J of the harmonics that couple two degrees."""
    orders = range(abs(degree_in - degree_out), degree_in + degree_out + 1)
    return [J for J in orders if odd_paths or (degree_in + degree_out + J) % 2 == 0]


def spherical_harmonics(vectors: Tensor, highest_order: int) -> Tensor:
    """Real spherical harmonics of unit vectors, `(edges, (highest_order + 1)²)`.

    They are e3nn's with Σ_M Y_{JM}² = 2J + 1; those of order 1 are √3 (x, y, z). The length of
    `vectors` `(edges, 3)` does not matter.
    """
    from e3nn.o3 import spherical_harmonics

    orders = list(range(highest_order + 1))
    return spherical_harmonics(orders, vectors, normalize=True, normalization="component")


@cache
def coupling(degree_in: int, degree_out: int, order: int) -> Tensor:
    """√(2k + 1) Q_{JM}^{lk} as `(2J + 1, 2l + 1, 2k + 1)`, float64."""
    from e3nn.o3 import wigner_3j

    symbols = wigner_3j(order, degree_in, degree_out, dtype=torch.float64)
    return math.sqrt(2 * degree_out + 1) * symbols


@cache
def coupling_matrix(shape: BasisShape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """All couplings of `shape` as one matrix from harmonics to bases.

    `((highest_order + 1)², (2l + 1) · paths · components)`. A path fills the columns of its own
    degree out; the rest is zero, so that one product applies all paths.
    """
    paths = shape.paths
    orders = (shape.highest_order + 1) ** 2
    matrix = torch.zeros(
        orders, 2 * shape.degree_in + 1, len(paths), shape.components, dtype=torch.float64
    )
    first = dict(zip(shape.degrees_out, _starts(shape.degrees_out), strict=True))
    for index, (k, J) in enumerate(paths):
        columns = slice(first[k], first[k] + 2 * k + 1)
        matrix[J**2 : (J + 1) ** 2, :, index, columns] = coupling(shape.degree_in, k, J)
    return matrix.reshape(orders, -1).to(dtype=dtype, device=device)


def kernel_bases(harmonics: Tensor, shapes: Iterable[BasisShape]) -> KernelBases:
    """Contract harmonics `(edges, orders)` with the constant couplings, for every shape wanted."""
    bases: KernelBases = {}
    for shape in shapes:
        if shape not in bases:
            matrix = coupling_matrix(shape, harmonics.dtype, harmonics.device)
            flat = harmonics[:, : matrix.shape[0]] @ matrix
            bases[shape] = flat.view(len(harmonics), shape.rows, shape.components)
    return bases


def _starts(degrees: tuple[int, ...]) -> list[int]:
    starts = [0]
    for degree in degrees[:-1]:
        starts.append(starts[-1] + 2 * degree + 1)
    return starts
