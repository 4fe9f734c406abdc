"""Tangents and gradients of dense layers, activations and norms against autograd."""

import numpy as np
import pytest
from one_layer import TOLERANCES, N, random
from one_layer_tangents import assert_tangents_agree
from torch.nn import functional as F

from ase_biasgrad.fused.dense import (
    SHIFTED_SOFTPLUS,
    SILU,
    Activation,
    LayerNorm,
    Linear,
)
from ase_biasgrad.fused.program import widened

pytestmark = pytest.mark.parametrize("dtype", TOLERANCES)
FUNCTIONS = {SILU: F.silu, SHIFTED_SOFTPLUS: lambda x: F.softplus(x) - np.log(2.0)}


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (21, 40)])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(dtype, inputs, outputs, rows, bias):
    weights = [random(inputs, outputs), *([random(outputs)] if bias else [])]

    def build(p, x, weight, *b):
        wide = widened(weight, (1, inputs), (1, outputs))
        return Linear(p, x, wide, *(widened(v, (1, outputs)) for v in b), rows=rows).y

    def function(x, weight, *b):
        return x @ weight + sum(b)

    assert_tangents_agree(build, function, [random(N, 1, rows, inputs)], weights, dtype)


@pytest.mark.parametrize("inactive", [(), (0,), (1,)])
def test_linear_and_a_summand(dtype, inactive):
    def build(p, x, z, weight, b):
        wide = widened(weight, (1, 21), (1, 40))
        return Linear(p, x, wide, widened(b, (1, 40)), add=z).y

    def function(x, z, weight, b):
        return x @ weight + b + z

    inputs = [random(N, 1, 1, 21), random(N, 1, 1, 40)]
    weights = [random(21, 40), random(40)]
    assert_tangents_agree(build, function, inputs, weights, dtype, inactive=inactive)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_activation(dtype, kind):
    def build(p, x):
        return Activation(p, x, kind).y

    x = 4 * random(N, 1, 1, 21)
    assert_tangents_agree(build, FUNCTIONS[kind], [x], [], dtype)


@pytest.mark.parametrize("parts", [1, 3])
def test_layer_norm(dtype, parts):
    features = 21

    def build(p, x, weight, b):
        mask = widened(np.ones(parts * features), (parts, features))
        wide = [widened(v, (parts, features)) for v in (weight, b)]
        return LayerNorm(p, x, *wide, mask, 1e-2).y

    def function(x, weight, b):
        shape = (parts * features,)
        y = F.layer_norm(x.reshape(N, *shape), shape, weight, b, 1e-2)
        return y.reshape(x.shape)

    weights = [random(parts * features), random(parts * features, seed=1)]
    assert_tangents_agree(build, function, [random(N, parts, 1, features)], weights, dtype)


def test_a_chain_of_layers(dtype):
    """Results that several layers use, and gradients through activations."""

    def build(p, x, one, two):
        wide = [widened(w, (1, 21), (1, 21)) for w in (one, two)]
        hidden = Activation(p, Linear(p, x, wide[0]).y, SILU).y
        return Linear(p, hidden, wide[1], add=x).y

    def function(x, one, two):
        return F.silu(x @ one) @ two + x

    weights = [random(21, 21), random(21, 21, seed=1)]
    assert_tangents_agree(build, function, [random(N, 1, 1, 21)], weights, dtype)
