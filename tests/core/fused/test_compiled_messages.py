"""Messages of programs over random directed edges against autograd, distances included."""

import pytest
import torch
from message_functions import (
    cfconv,
    tensor_cfconv,
    tensor_message,
    vector_message,
    vector_message_without_vectors,
)
from one_layer import KNOTS, TOLERANCES, N, RandomEdges, assert_agrees, random

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


def with_weights(function, edges, weights):
    """The function of inputs alone."""
    tensors = [torch.from_numpy(w) for w in weights]
    return lambda *inputs: function(edges, *inputs, *tensors)


@pytest.mark.parametrize(("inactive", "shared"), [((), ()), ((), (0,)), ((0,), ())])
def test_cfconv(dtype, width, inactive, shared):
    edges, coefficients = RandomEdges(), random(KNOTS, width)
    function = with_weights(cfconv, edges, [coefficients])

    def build(p, x):
        return CFConv(p, x, widened(coefficients, (1, width))).y

    assert_agrees(build, function, [random(N, 1, 1, width)], dtype, edges, inactive, shared)


@pytest.mark.parametrize("shared", [(), (0,)])
def test_tensor_cfconv(dtype, width, shared):
    edges, weights = RandomEdges(), [random(KNOTS, 3, width), random(3, width)]
    function = with_weights(tensor_cfconv, edges, weights)

    def build(p, x):
        return TensorCFConv(p, x, *(widened(a, (1, width)) for a in weights)).y

    assert_agrees(build, function, [random(N, 1, 9, width)], dtype, edges, shared=shared)


def test_tensor_message(dtype, width):
    edges, tables = RandomEdges(), [random(N, width), random(N, width, seed=1)]
    weights = [*tables, random(KNOTS, 3, width), random(width)]

    def build(p):
        return TensorMessage(p, *(widened(a, (1, width)) for a in weights)).y

    assert_agrees(build, with_weights(tensor_message, edges, weights), [], dtype, edges)


@pytest.mark.parametrize("shared", [(), (0,)])
def test_vector_message(dtype, width, shared):
    edges, coefficients = RandomEdges(), random(KNOTS, 3, width)
    function = with_weights(vector_message, edges, [coefficients])

    def build(p, *inputs):
        layer = VectorMessage(p, *inputs, widened(coefficients, (1, width)))
        return layer.out_q, layer.out_mu

    inputs = [random(N, 1, c, width, seed=k) for k, c in enumerate((1, 3, 3))]
    assert_agrees(build, function, inputs, dtype, edges, shared=shared)


def test_vector_message_without_vectors(dtype, width):
    edges, coefficients = RandomEdges(), random(KNOTS, 3, width)
    function = with_weights(vector_message_without_vectors, edges, [coefficients])

    def build(p, q, x):
        layer = VectorMessage(p, q, None, x, widened(coefficients, (1, width)))
        return layer.out_q, layer.out_mu

    inputs = [random(N, 1, 1, width), random(N, 1, 3, width)]
    assert_agrees(build, function, inputs, dtype, edges, inactive=(0, 1))
