"""Layers on tensors and vectors as functions of torch, on `(n, parts, components, features)`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from one_layer import N, random
from torch import Tensor

from ase_biasgrad.backbones.tensornet import PARTS, by_part, matrix_basis, sum_by_part

EPSILON = 0.01  # of the norms of vectors


def tensors(width: int, seed: int = 0) -> np.ndarray:
    """`(n, 1, 9, f)`."""
    return random(N, 1, 9, width, seed=seed)


def of_tensors(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of `(n, 9, f)` as one of `(n, 1, 9, f)`."""
    return lambda *inputs: function(*(x[:, 0] for x in inputs))[:, None]


def irreps_linear(x: Tensor, *matrices: Tensor) -> Tensor:
    parts = zip(x[:, 0].split(PARTS, dim=1), matrices, strict=True)
    return torch.cat([part @ matrix for part, matrix in parts], dim=1)[:, None]


@of_tensors
def add_square(x: Tensor, d: Tensor) -> Tensor:
    basis = torch.from_numpy(matrix_basis())
    matrix = torch.einsum("kab,nkf->nfab", basis, d)
    return x + d + torch.einsum("kab,nfab->nkf", basis, matrix @ matrix)


def scale_irreps(x: Tensor, s: Tensor) -> Tensor:
    return by_part(x[:, 0], s[:, :, 0])[:, None]


def squared_norms(x: Tensor, parts: bool) -> Tensor:
    square = x[:, 0].square()
    sums = sum_by_part(square) if parts else square.sum(dim=1, keepdim=True)
    return sums[:, :, None]


def norms_and_products(q: Tensor, vw: Tensor) -> tuple[Tensor, Tensor]:
    v, w = vw[:, :1], vw[:, 1:]
    norms = (v.square().sum(dim=2, keepdim=True) + EPSILON).sqrt()
    return torch.cat([q, norms], dim=1), (v * w).sum(dim=2, keepdim=True)


def mix(q: Tensor, mu: Tensor, a: Tensor, dots: Tensor, vw: Tensor) -> tuple[Tensor, Tensor]:
    a1, a2, a3 = a.split(1, dim=2)
    return q + a1 + a2 * dots, mu + a3 * vw[:, 1:]


def inputs_of_mix(width: int) -> list[np.ndarray]:
    shapes = [(1, 1), (1, 3), (1, 3), (1, 1), (2, 3)]
    return [random(N, *shape, width, seed=k) for k, shape in enumerate(shapes)]


def inputs_of_norms_and_products(width: int) -> list[np.ndarray]:
    q, vw = random(N, 1, 1, width), random(N, 2, 3, width)
    vw[2, 0] = 0  # a vector without direction
    return [q, vw]
