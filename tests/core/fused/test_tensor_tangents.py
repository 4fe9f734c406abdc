"""Tangents of layers on tensors, and gradients of their weights, against autograd.

Layers that are there twice find adjoints of their inputs to add to.
"""

import pytest
from layer_functions import (
    add_square,
    irreps_linear,
    of_tensors,
    scale_irreps,
    squared_norms,
    tensors,
)
from one_layer import TOLERANCES, N, random
from one_layer_tangents import assert_tangents_agree
from torch.nn import functional as F

from ase_biasgrad.backbones.tensornet import normalised, symmetric_product
from ase_biasgrad.fused.dense import SILU, Activation
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
twice = pytest.mark.parametrize("times", [1, 2])
inactive = pytest.mark.parametrize("inactive", [(), (0,), (1,)])


def repeated(function, times):
    """The results of several calls."""
    return lambda *inputs: tuple(function(*inputs) for _ in range(times))


@twice
def test_irreps_linear(dtype, width, times):
    def build(p, x, *matrices):
        return IrrepsLinear(p, x, [widened(m, (1, width), (1, width)) for m in matrices]).y

    weights = list(random(3, width, width))
    arguments = [tensors(width)], weights, dtype
    assert_tangents_agree(repeated(build, times), repeated(irreps_linear, times), *arguments)


@twice
def test_normalise(dtype, width, times):
    build = repeated(lambda p, x: Normalise(p, x).y, times)
    function = repeated(of_tensors(normalised), times)
    assert_tangents_agree(build, function, [0.3 * tensors(width)], [], dtype)


@twice
@inactive
def test_symmetric_product(dtype, width, times, inactive):
    inputs = [tensors(width, seed) for seed in range(2)]
    build = repeated(lambda p, x, y: SymmetricProduct(p, x, y).z, times)
    function = repeated(of_tensors(symmetric_product), times)
    assert_tangents_agree(build, function, inputs, [], dtype, inactive=inactive)


def test_product_with_itself(dtype, width):
    function = of_tensors(lambda x: symmetric_product(x, x))
    build = lambda p, x: SymmetricProduct(p, x, x).z  # noqa: E731
    assert_tangents_agree(build, function, [tensors(width)], [], dtype)


@twice
@inactive
def test_add_square(dtype, width, times, inactive):
    inputs = [tensors(width, seed) for seed in range(2)]
    build = repeated(lambda p, x, d: AddSquare(p, x, d).y, times)
    function = repeated(add_square, times)
    assert_tangents_agree(build, function, inputs, [], dtype, inactive=inactive)


@twice
@inactive
def test_scale_irreps(dtype, width, times, inactive):
    inputs = [tensors(width), random(N, 3, 1, width)]
    build = repeated(lambda p, x, s: ScaleIrreps(p, x, s).y, times)
    function = repeated(scale_irreps, times)
    assert_tangents_agree(build, function, inputs, [], dtype, inactive=inactive)


@twice
@pytest.mark.parametrize("parts", [False, True])
def test_squared_norms(dtype, width, parts, times):
    build = repeated(lambda p, x: SquaredNorms(p, x, parts).y, times)
    function = repeated(lambda x: squared_norms(x, parts), times)
    assert_tangents_agree(build, function, [tensors(width)], [], dtype)


def test_a_chain_of_layers(dtype, width):
    """Tangents and gradients through the layers of an interaction, and their norms."""

    def build(p, x, *matrices):
        wide = [widened(m, (1, width), (1, width)) for m in matrices]
        y = IrrepsLinear(p, Normalise(p, x).y, wide[:3]).y
        product = Normalise(p, SymmetricProduct(p, x, y).z).y
        x = AddSquare(p, x, IrrepsLinear(p, product, wide[3:]).y).y
        norms = SquaredNorms(p, x, parts=True).y
        return ScaleIrreps(p, x, Activation(p, norms, SILU).y).y

    def function(x, *matrices):
        y = irreps_linear(of_tensors(normalised)(x), *matrices[:3])
        product = of_tensors(normalised)(of_tensors(symmetric_product)(x, y))
        x = add_square(x, irreps_linear(product, *matrices[3:]))
        return scale_irreps(x, F.silu(squared_norms(x, parts=True)))

    weights = list(random(6, width, width) / width**0.5)
    assert_tangents_agree(build, function, [0.5 * tensors(width)], weights, dtype)
