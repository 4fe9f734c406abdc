"""Tangents of messages, and gradients of their weights, against autograd."""

from functools import partial

import pytest
from message_functions import (
    cfconv,
    tensor_cfconv,
    tensor_message,
    vector_message,
    vector_message_without_vectors,
)
from one_layer import KNOTS, TOLERANCES, N, RandomEdges, random
from one_layer_tangents import assert_tangents_agree

from ase_biasgrad.fused.messages import (
    CFConv,
    TensorCFConv,
    TensorMessage,
    VectorMessage,
)
from ase_biasgrad.fused.program import widened

pytestmark = [
    pytest.mark.parametrize("dtype", TOLERANCES),
    pytest.mark.parametrize("width", [16, 21, 40]),
]


def assert_messages_agree(build, function, inputs, weights, dtype, inactive=()):
    edges = RandomEdges()
    assert_tangents_agree(build, partial(function, edges), inputs, weights, dtype, edges, inactive)


@pytest.mark.parametrize("inactive", [(), (0,)])
def test_cfconv(dtype, width, inactive):
    def build(p, x, coefficients):
        return CFConv(p, x, widened(coefficients, (1, width))).y

    inputs, weights = [random(N, 1, 1, width)], [random(KNOTS, width)]
    assert_messages_agree(build, cfconv, inputs, weights, dtype, inactive)


@pytest.mark.parametrize("inactive", [(), (0,)])
def test_cfconvs_of_one_another(dtype, width, inactive):
    """Adjoints of the input come from two layers, and the second input moves with edges alone."""

    def build(p, x, *weights):
        one, two, three = (widened(c, (1, width)) for c in weights)
        y = CFConv(p, x, one).y
        return CFConv(p, x, two).y, CFConv(p, y, three).y

    def function(edges, x, one, two, three):
        return cfconv(edges, x, two), cfconv(edges, cfconv(edges, x, one), three)

    inputs, weights = [random(N, 1, 1, width)], [random(KNOTS, width, seed=k) for k in range(3)]
    assert_messages_agree(build, function, inputs, weights, dtype, inactive)


def test_tensor_cfconv(dtype, width):
    def build(p, x, *weights):
        return TensorCFConv(p, x, *(widened(a, (1, width)) for a in weights)).y

    inputs, weights = [random(N, 1, 9, width)], [random(KNOTS, 3, width), random(3, width)]
    assert_messages_agree(build, tensor_cfconv, inputs, weights, dtype)


def test_tensor_cfconvs_of_one_another(dtype, width):
    """Adjoints of the input come from two layers."""

    def build(p, x, *weights):
        one, own, two, other = (widened(a, (1, width)) for a in weights)
        y = TensorCFConv(p, x, one, own).y
        return TensorCFConv(p, y, two, other).y, TensorCFConv(p, x, two, other).y

    def function(edges, x, one, own, two, other):
        y = tensor_cfconv(edges, x, one, own)
        return tensor_cfconv(edges, y, two, other), tensor_cfconv(edges, x, two, other)

    weights = [random(*shape, width, seed=k) for k in (0, 1) for shape in ((KNOTS, 3), (3,))]
    assert_messages_agree(build, function, [random(N, 1, 9, width)], weights, dtype)


def test_tensor_message(dtype, width):
    def build(p, *weights):
        return TensorMessage(p, *(widened(a, (1, width)) for a in weights)).y

    weights = [random(N, width), random(N, width, seed=1), random(KNOTS, 3, width), random(width)]
    assert_messages_agree(build, tensor_message, [], weights, dtype)


@pytest.mark.parametrize("inactive", [(), (1,)])
def test_vector_message(dtype, width, inactive):
    def build(p, q, mu, x, coefficients):
        layer = VectorMessage(p, q, mu, x, widened(coefficients, (1, width)))
        return layer.out_q, layer.out_mu

    inputs = [random(N, 1, c, width, seed=k) for k, c in enumerate((1, 3, 3))]
    weights = [random(KNOTS, 3, width)]
    assert_messages_agree(build, vector_message, inputs, weights, dtype, inactive)


def test_vector_message_without_vectors(dtype, width):
    def build(p, q, x, coefficients):
        layer = VectorMessage(p, q, None, x, widened(coefficients, (1, width)))
        return layer.out_q, layer.out_mu

    inputs = [random(N, 1, 1, width), random(N, 1, 3, width)]
    weights = [random(KNOTS, 3, width)]
    assert_messages_agree(
        build, vector_message_without_vectors, inputs, weights, dtype, inactive=(0, 1)
    )
