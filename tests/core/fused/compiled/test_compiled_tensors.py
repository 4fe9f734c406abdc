"""Tensors of rank two in programs against autograd through the backbone's functions."""

import numpy as np
import pytest
import torch
from one_layer import TOLERANCES, N, assert_agrees, random
from torch import Tensor

from ase_biasgrad.backbones.tensornet import (
    PARTS,
    by_part,
    matrix_basis,
    normalised,
    sum_by_part,
    symmetric_product,
)
from ase_biasgrad.fused.compiled.program import widened
from ase_biasgrad.fused.compiled.tensors import (
    AddSquare,
    IrrepsLinear,
    Normalise,
    ScaleIrreps,
    SquaredNorms,
    SymmetricProduct,
)

pytestmark = [
    pytest.mark.parametrize("dtype", TOLERANCES),
    pytest.mark.parametrize("width", [16, 21]),
]


def tensors(width: int, seed: int = 0) -> np.ndarray:
    """`(n, 1, 9, f)`."""
    return random(N, 1, 9, width, seed=seed)


def of_tensors(function):
    """A function of `(n, 9, f)` as one of `(n, 1, 9, f)`."""
    return lambda *inputs: function(*(x[:, 0] for x in inputs))[:, None]


@pytest.mark.parametrize("shared", [(), (0,)])
def test_irreps_linear(dtype, width, shared):
    matrices = random(3, width, width)

    def build(p, x):
        return IrrepsLinear(p, x, [widened(m, (1, width), (1, width)) for m in matrices]).y

    def function(x: Tensor) -> Tensor:
        parts = zip(x.split(PARTS, dim=1), torch.from_numpy(matrices), strict=True)
        return torch.cat([part @ matrix for part, matrix in parts], dim=1)

    assert_agrees(build, of_tensors(function), [tensors(width)], dtype, shared=shared)


@pytest.mark.parametrize("shared", [(), (0,)])
def test_normalise(dtype, width, shared):
    inputs = [0.3 * tensors(width)]
    build = lambda p, x: Normalise(p, x).y  # noqa: E731
    assert_agrees(build, of_tensors(normalised), inputs, dtype, shared=shared)


@pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1)])
def test_symmetric_product(dtype, width, shared):
    inputs = [tensors(width, seed) for seed in range(2)]
    build = lambda p, x, y: SymmetricProduct(p, x, y).z  # noqa: E731
    assert_agrees(build, of_tensors(symmetric_product), inputs, dtype, shared=shared)


@pytest.mark.parametrize("shared", [(), (0,), (1,)])
def test_add_square(dtype, width, shared):
    basis = torch.from_numpy(matrix_basis())

    def function(x: Tensor, d: Tensor) -> Tensor:
        matrix = torch.einsum("kab,nkf->nfab", basis, d)
        return x + d + torch.einsum("kab,nfab->nkf", basis, matrix @ matrix)

    inputs = [tensors(width, seed) for seed in range(2)]
    build = lambda p, x, d: AddSquare(p, x, d).y  # noqa: E731
    assert_agrees(build, of_tensors(function), inputs, dtype, shared=shared)


@pytest.mark.parametrize("shared", [(), (0,), (1,)])
def test_scale_irreps(dtype, width, shared):
    def function(x: Tensor, s: Tensor) -> Tensor:
        return by_part(x[:, 0], s[:, :, 0])[:, None]

    inputs = [tensors(width), random(N, 3, 1, width)]
    build = lambda p, x, s: ScaleIrreps(p, x, s).y  # noqa: E731
    assert_agrees(build, function, inputs, dtype, shared=shared)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("shared", [(), (0,)])
def test_squared_norms(dtype, width, parts, shared):
    def function(x: Tensor) -> Tensor:
        square = x[:, 0].square()
        sums = sum_by_part(square) if parts else square.sum(dim=1, keepdim=True)
        return sums[:, :, None]

    build = lambda p, x: SquaredNorms(p, x, parts).y  # noqa: E731
    assert_agrees(build, function, [tensors(width)], dtype, shared=shared)
