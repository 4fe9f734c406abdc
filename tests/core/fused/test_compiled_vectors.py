"""PaiNN's mixing in programs against autograd."""

import pytest
from layer_functions import (
    EPSILON,
    inputs_of_mix,
    inputs_of_norms_and_products,
    mix,
    norms_and_products,
)
from one_layer import TOLERANCES, assert_agrees

from ase_biasgrad.fused.vectors import Mix, NormsAndProducts

pytestmark = [
    pytest.mark.parametrize("dtype", TOLERANCES),
    pytest.mark.parametrize("width", [16, 21]),
]


@pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1)])
def test_norms_and_products(dtype, width, shared):
    def build(p, q, vw):
        layer = NormsAndProducts(p, q, vw, EPSILON)
        return layer.joint, layer.dots

    inputs = inputs_of_norms_and_products(width)
    assert_agrees(build, norms_and_products, inputs, dtype, shared=shared)


@pytest.mark.parametrize(
    ("shared", "idle"),
    [((), ()), ((0,), ()), ((0, 1), ()), ((), (1,))],  # nothing uses the last layer's vectors
)
def test_mix(dtype, width, shared, idle):
    def build(p, *inputs):
        layer = Mix(p, *inputs)
        return layer.out_q, layer.out_mu

    assert_agrees(build, mix, inputs_of_mix(width), dtype, shared=shared, idle=idle)
