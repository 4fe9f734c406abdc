"""Tangents of PaiNN's mixing against autograd."""

import pytest
from layer_functions import (
    EPSILON,
    inputs_of_mix,
    inputs_of_norms_and_products,
    mix,
    norms_and_products,
)
from one_layer import TOLERANCES
from one_layer_tangents import assert_tangents_agree
from torch.nn import functional as F

from ase_biasgrad.fused.dense import SILU, Activation
from ase_biasgrad.fused.vectors import Mix, NormsAndProducts

pytestmark = [
    pytest.mark.parametrize("dtype", TOLERANCES),
    pytest.mark.parametrize("width", [16, 21]),
]


@pytest.mark.parametrize("times", [1, 2])  # the second finds adjoints to add to
@pytest.mark.parametrize("inactive", [(), (0,), (1,)])
def test_norms_and_products(dtype, width, times, inactive):
    def build(p, q, vw):
        layers = [NormsAndProducts(p, q, vw, EPSILON) for _ in range(times)]
        return tuple(x for layer in layers for x in (layer.joint, layer.dots))

    def function(q, vw):
        return times * norms_and_products(q, vw)

    inputs = inputs_of_norms_and_products(width)
    assert_tangents_agree(build, function, inputs, [], dtype, inactive=inactive)


@pytest.mark.parametrize("inactive", [(), (0,), (1,), (2,), (3,), (4,), (2, 3, 4)])
@pytest.mark.parametrize("idle", [(), (1,)])  # nothing uses the last layer's vectors
def test_mix(dtype, width, inactive, idle):
    def build(p, *inputs):
        layer = Mix(p, *inputs)
        return layer.out_q, layer.out_mu

    arguments = inputs_of_mix(width), [], dtype
    assert_tangents_agree(build, mix, *arguments, inactive=inactive, idle=idle)


@pytest.mark.parametrize("idle", [(), (1,)])
def test_mix_of_what_others_use(dtype, width, idle):
    def build(p, *inputs):
        layer = Mix(p, *inputs)
        others = [Activation(p, x, SILU).y for x in inputs[:2]]
        return layer.out_q, layer.out_mu, *others

    def function(*inputs):
        return *mix(*inputs), *(F.silu(x) for x in inputs[:2])

    assert_tangents_agree(build, function, inputs_of_mix(width), [], dtype, idle=idle)


def test_a_chain_of_layers(dtype, width):
    """Both layers, with a that follows from the norms."""

    def build(p, q, mu, a, vw):
        of_vw = NormsAndProducts(p, q, vw, EPSILON)
        layer = Mix(p, q, mu, Activation(p, a, SILU).y, of_vw.dots, vw)
        return layer.out_q, layer.out_mu, of_vw.joint

    def function(q, mu, a, vw):
        joint, dots = norms_and_products(q, vw)
        return *mix(q, mu, F.silu(a), dots, vw), joint

    q, mu, a, _, vw = inputs_of_mix(width)
    assert_tangents_agree(build, function, [q, mu, a, vw], [], dtype)
