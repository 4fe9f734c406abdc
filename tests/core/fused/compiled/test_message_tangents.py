"""Tangents of messages, and gradients of their weights, against autograd."""

import pytest
from one_layer import KNOTS, TOLERANCES, N, RandomEdges, random
from one_layer_tangents import assert_tangents_agree
from torch import Tensor
from torch.nn.functional import pad

from ase_biasgrad.backbones.tensornet import PART_OF, pair_tensors
from ase_biasgrad.fused.compiled.messages import (
    CFConv,
    TensorCFConv,
    TensorMessage,
    VectorMessage,
)
from ase_biasgrad.fused.compiled.program import widened

pytestmark = [
    pytest.mark.parametrize("dtype", TOLERANCES),
    pytest.mark.parametrize("width", [16, 21, 40]),
]


def cfconv(edges: RandomEdges, x: Tensor, coefficients: Tensor) -> Tensor:
    """Formula of `CFConv`."""
    sent = edges.filters(coefficients) * x[edges.neighbour, 0, 0]
    return edges.gathered(sent)[:, None, None]


@pytest.mark.parametrize("inactive", [(), (0,)])
def test_cfconv(dtype, width, inactive):
    edges = RandomEdges()

    def build(p, x, coefficients):
        return CFConv(p, x, widened(coefficients, (1, width))).y

    inputs, weights = [random(N, 1, 1, width)], [random(KNOTS, width)]
    assert_tangents_agree(
        build, lambda *given: cfconv(edges, *given), inputs, weights, dtype, edges, inactive
    )


@pytest.mark.parametrize("inactive", [(), (0,)])
def test_cfconvs_of_one_another(dtype, width, inactive):
    """Adjoints of the input come from two layers, and the second input moves with edges alone."""
    edges = RandomEdges()

    def build(p, x, one, two, three):
        one, two, three = (widened(c, (1, width)) for c in (one, two, three))
        y = CFConv(p, x, one).y
        return CFConv(p, x, two).y, CFConv(p, y, three).y

    def function(x, one, two, three):
        return cfconv(edges, x, two), cfconv(edges, cfconv(edges, x, one), three)

    weights = [random(KNOTS, width, seed=k) for k in range(3)]
    assert_tangents_agree(
        build, function, [random(N, 1, 1, width)], weights, dtype, edges, inactive
    )


def tensor_cfconv(edges: RandomEdges, x: Tensor, coefficients: Tensor, own: Tensor) -> Tensor:
    """Formula of `TensorCFConv`."""
    sent = edges.filters(coefficients)[:, PART_OF] * x[edges.neighbour, 0]
    return (edges.gathered(sent) + own[None, PART_OF] * x[:, 0])[:, None]


def test_tensor_cfconv(dtype, width):
    edges = RandomEdges()

    def build(p, x, *weights):
        return TensorCFConv(p, x, *(widened(a, (1, width)) for a in weights)).y

    inputs, weights = [random(N, 1, 9, width)], [random(KNOTS, 3, width), random(3, width)]
    assert_tangents_agree(
        build, lambda *given: tensor_cfconv(edges, *given), inputs, weights, dtype, edges
    )


def test_tensor_cfconvs_of_one_another(dtype, width):
    """Adjoints of the input come from two layers."""
    edges = RandomEdges()

    def build(p, x, *weights):
        one, own, two, other = (widened(a, (1, width)) for a in weights)
        return TensorCFConv(p, TensorCFConv(p, x, one, own).y, two, other).y, TensorCFConv(
            p, x, two, other
        ).y

    def function(x, one, own, two, other):
        y = tensor_cfconv(edges, x, one, own)
        return tensor_cfconv(edges, y, two, other), tensor_cfconv(edges, x, two, other)

    weights = [random(*shape, width, seed=k) for k in (0, 1) for shape in ((KNOTS, 3), (3,))]
    assert_tangents_agree(build, function, [random(N, 1, 9, width)], weights, dtype, edges)


def test_tensor_message(dtype, width):
    edges = RandomEdges()

    def function(centre, neighbour, coefficients, own):
        lifted = edges.filters(coefficients)[:, PART_OF] * pair_tensors(edges.unit)[:, :, None]
        sent = centre[edges.centre] + neighbour[edges.neighbour]  # an element for each atom
        received = edges.gathered(lifted * sent[:, None])
        alone = own * (centre + neighbour)
        return (received + pad(alone[:, None], (0, 0, 0, 8)))[:, None]

    def build(p, *weights):
        return TensorMessage(p, *(widened(a, (1, width)) for a in weights)).y

    weights = [random(N, width), random(N, width, seed=1), random(KNOTS, 3, width), random(width)]
    assert_tangents_agree(build, function, [], weights, dtype, edges)


def vector_message(
    edges: RandomEdges, q: Tensor, mu: Tensor, x: Tensor, coefficients: Tensor
) -> tuple[Tensor, Tensor]:
    """Formulas of `VectorMessage`."""
    sent = edges.filters(coefficients) * x[edges.neighbour, 0]
    one, two, three = sent.split(1, dim=1)
    along = two * edges.unit[:, :, None] + three * mu[edges.neighbour, 0]
    return q + edges.gathered(one)[:, None], mu + edges.gathered(along)[:, None]


@pytest.mark.parametrize("inactive", [(), (1,)])
def test_vector_message(dtype, width, inactive):
    edges = RandomEdges()

    def build(p, q, mu, x, coefficients):
        layer = VectorMessage(p, q, mu, x, widened(coefficients, (1, width)))
        return layer.out_q, layer.out_mu

    inputs = [random(N, 1, c, width, seed=k) for k, c in enumerate((1, 3, 3))]
    assert_tangents_agree(
        build, lambda *given: vector_message(edges, *given), inputs, [random(KNOTS, 3, width)],
        dtype, edges, inactive,
    )  # fmt: skip


def test_vector_message_without_vectors(dtype, width):
    edges = RandomEdges()

    def build(p, q, x, coefficients):
        layer = VectorMessage(p, q, None, x, widened(coefficients, (1, width)))
        return layer.out_q, layer.out_mu

    def function(q, x, coefficients):
        return vector_message(edges, q, q.new_zeros(N, 1, 3, width), x, coefficients)

    inputs = [random(N, 1, 1, width), random(N, 1, 3, width)]
    weights = [random(KNOTS, 3, width)]
    assert_tangents_agree(build, function, inputs, weights, dtype, edges, inactive=(0, 1))
