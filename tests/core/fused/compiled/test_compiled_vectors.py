"""PaiNN's mixing in programs against autograd."""

import pytest
import torch
from one_layer import TOLERANCES, N, assert_agrees, random
from torch import Tensor

from ase_biasgrad.fused.compiled.vectors import Mix, NormsAndProducts

pytestmark = [
    pytest.mark.parametrize("dtype", TOLERANCES),
    pytest.mark.parametrize("width", [16, 21]),
]
EPSILON = 0.01


@pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1)])
def test_norms_and_products(dtype, width, shared):
    def build(p, q, vw):
        layer = NormsAndProducts(p, q, vw, EPSILON)
        return layer.joint, layer.dots

    def function(q: Tensor, vw: Tensor) -> tuple[Tensor, Tensor]:
        v, w = vw[:, :1], vw[:, 1:]
        norms = (v.square().sum(dim=2, keepdim=True) + EPSILON).sqrt()
        return torch.cat([q, norms], dim=1), (v * w).sum(dim=2, keepdim=True)

    inputs = [random(N, 1, 1, width), random(N, 2, 3, width)]
    inputs[1][2, 0] = 0  # a vector without direction
    assert_agrees(build, function, inputs, dtype, shared=shared)


@pytest.mark.parametrize(
    ("shared", "idle"),
    [((), ()), ((0,), ()), ((0, 1), ()), ((), (1,))],  # nothing uses the last layer's vectors
)
def test_mix(dtype, width, shared, idle):
    def build(p, *inputs):
        layer = Mix(p, *inputs)
        return layer.out_q, layer.out_mu

    def function(q: Tensor, mu: Tensor, a: Tensor, dots: Tensor, vw: Tensor) -> tuple[Tensor, ...]:
        a1, a2, a3 = a.split(1, dim=2)
        return q + a1 + a2 * dots, mu + a3 * vw[:, 1:]

    shapes = [(1, 1), (1, 3), (1, 3), (1, 1), (2, 3)]
    inputs = [random(N, *shape, width, seed=k) for k, shape in enumerate(shapes)]
    assert_agrees(build, function, inputs, dtype, shared=shared, idle=idle)
