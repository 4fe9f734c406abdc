"""Tensors of rank two in programs against autograd through the backbone's functions."""

import pytest
import torch
from layer_functions import (
    add_square,
    irreps_linear,
    of_tensors,
    scale_irreps,
    squared_norms,
    tensors,
)
from one_layer import TOLERANCES, N, assert_agrees, random
from torch import Tensor

from ase_biasgrad.backbones.tensornet import normalised, symmetric_product
from ase_biasgrad.fused.program import widened
from ase_biasgrad.fused.tensors import (
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


@pytest.mark.parametrize("shared", [(), (0,)])
def test_irreps_linear(dtype, width, shared):
    matrices = random(3, width, width)

    def build(p, x):
        return IrrepsLinear(p, x, [widened(m, (1, width), (1, width)) for m in matrices]).y

    def function(x: Tensor) -> Tensor:
        return irreps_linear(x, *torch.from_numpy(matrices))

    assert_agrees(build, function, [tensors(width)], dtype, shared=shared)


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
    inputs = [tensors(width, seed) for seed in range(2)]
    build = lambda p, x, d: AddSquare(p, x, d).y  # noqa: E731
    assert_agrees(build, add_square, inputs, dtype, shared=shared)


@pytest.mark.parametrize("shared", [(), (0,), (1,)])
def test_scale_irreps(dtype, width, shared):
    inputs = [tensors(width), random(N, 3, 1, width)]
    build = lambda p, x, s: ScaleIrreps(p, x, s).y  # noqa: E731
    assert_agrees(build, scale_irreps, inputs, dtype, shared=shared)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("shared", [(), (0,)])
def test_squared_norms(dtype, width, parts, shared):
    build = lambda p, x: SquaredNorms(p, x, parts).y  # noqa: E731
    function = lambda x: squared_norms(x, parts)  # noqa: E731
    assert_agrees(build, function, [tensors(width)], dtype, shared=shared)
