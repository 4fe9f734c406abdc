"""Messages of programs over random directed edges against autograd, distances included."""

import pytest
import torch
from one_layer import KNOTS, TOLERANCES, N, RandomEdges, assert_agrees, random
from torch import Tensor

from ase_biasgrad.backbones.tensornet import PART_OF, pair_tensors
from ase_biasgrad.fused.compiled.messages import (
    CFConv,
    TensorCFConv,
    TensorMessage,
    VectorMessage,
)
from ase_biasgrad.fused.compiled.program import widened

each = [
    pytest.mark.parametrize("dtype", TOLERANCES),
    pytest.mark.parametrize("width", [16, 21, 40]),
]


def every(test):
    for mark in each:
        test = mark(test)
    return test


@every
@pytest.mark.parametrize(("inactive", "shared"), [((), ()), ((), (0,)), ((0,), ())])
def test_cfconv(dtype, width, inactive, shared):
    edges, coefficients = RandomEdges(), random(KNOTS, width)

    def function(x: Tensor) -> Tensor:
        sent = edges.filters(coefficients) * x[edges.neighbour, 0, 0]
        return edges.gathered(sent)[:, None, None]

    def build(p, x):
        return CFConv(p, x, widened(coefficients, (1, width))).y

    assert_agrees(build, function, [random(N, 1, 1, width)], dtype, edges, inactive, shared)


@every
@pytest.mark.parametrize("shared", [(), (0,)])
def test_tensor_cfconv(dtype, width, shared):
    edges, coefficients, own = RandomEdges(), random(KNOTS, 3, width), random(3, width)

    def function(x: Tensor) -> Tensor:
        sent = edges.filters(coefficients)[:, PART_OF] * x[edges.neighbour, 0]
        received = edges.gathered(sent) + torch.from_numpy(own)[None, PART_OF] * x[:, 0]
        return received[:, None]

    def build(p, x):
        return TensorCFConv(p, x, *(widened(a, (1, width)) for a in (coefficients, own))).y

    assert_agrees(build, function, [random(N, 1, 9, width)], dtype, edges, shared=shared)


@every
def test_tensor_message(dtype, width):
    edges, coefficients, own = RandomEdges(), random(KNOTS, 3, width), random(width)
    centre, neighbour = random(N, width), random(N, width, seed=1)  # an element for each atom

    def function() -> Tensor:
        c, s = torch.from_numpy(centre), torch.from_numpy(neighbour)
        lifted = edges.filters(coefficients)[:, PART_OF] * pair_tensors(edges.unit)[:, :, None]
        received = edges.gathered(lifted * (c[edges.centre] + s[edges.neighbour])[:, None])
        alone = torch.from_numpy(own) * (c + s)
        return (received + torch.nn.functional.pad(alone[:, None], (0, 0, 0, 8)))[:, None]

    def build(p):
        constants = (widened(a, (1, width)) for a in (centre, neighbour, coefficients, own))
        return TensorMessage(p, *constants).y

    assert_agrees(build, function, [], dtype, edges)


def vector_message(edges: RandomEdges, q: Tensor, mu: Tensor, x: Tensor, filters: Tensor):
    """Formulas of `VectorMessage`, without its axis of parts."""
    one, two, three = (filters * x[edges.neighbour]).split(1, dim=1)
    along = two * edges.unit[:, :, None] + three * mu[edges.neighbour]
    return q + edges.gathered(one), mu + edges.gathered(along)


@every
@pytest.mark.parametrize("shared", [(), (0,)])
def test_vector_message(dtype, width, shared):
    edges, coefficients = RandomEdges(), random(KNOTS, 3, width)

    def function(q: Tensor, mu: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        filters = edges.filters(coefficients)
        results = vector_message(edges, q[:, 0], mu[:, 0], x[:, 0], filters)
        return tuple(y[:, None] for y in results)

    def build(p, *inputs):
        layer = VectorMessage(p, *inputs, widened(coefficients, (1, width)))
        return layer.out_q, layer.out_mu

    inputs = [random(N, 1, c, width, seed=k) for k, c in enumerate((1, 3, 3))]
    assert_agrees(build, function, inputs, dtype, edges, shared=shared)


@every
def test_vector_message_without_vectors(dtype, width):
    edges, coefficients = RandomEdges(), random(KNOTS, 3, width)

    def function(q: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        mu = torch.zeros((N, 3, width), dtype=torch.float64)
        results = vector_message(edges, q[:, 0], mu, x[:, 0], edges.filters(coefficients))
        return tuple(y[:, None] for y in results)

    def build(p, q, x):
        layer = VectorMessage(p, q, None, x, widened(coefficients, (1, width)))
        return layer.out_q, layer.out_mu

    inputs = [random(N, 1, 1, width), random(N, 1, 3, width)]
    assert_agrees(build, function, inputs, dtype, edges, inactive=(0, 1))
