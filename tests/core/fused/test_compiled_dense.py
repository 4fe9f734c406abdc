"""Dense layers, activations and norms of programs against autograd."""

import numpy as np
import pytest
import torch
from one_layer import CHUNKS, TOLERANCES, Copies, N, assert_agrees, copied, no_edges, random, run
from torch.nn import functional as F

from ase_biasgrad.fused.dense import (
    SHIFTED_SOFTPLUS,
    SILU,
    Activation,
    Embedding,
    Energies,
    LayerNorm,
    Linear,
)
from ase_biasgrad.fused.program import Program, widened

pytestmark = pytest.mark.parametrize("dtype", TOLERANCES)
WIDTHS = (16, 21, 48)
FUNCTIONS = {SILU: F.silu, SHIFTED_SOFTPLUS: lambda x: F.softplus(x) - np.log(2.0)}


@pytest.mark.parametrize("width", WIDTHS)
def test_embedding(dtype, width):
    p, table, numbers = Program(), random(5, width), np.arange(N) ** 2 % 5
    copies = Copies(p)
    y = Embedding(p, widened(table, (1, width))).y
    assert not y.active
    copies.results = [copied(p, y)]
    program = p.finish().as_type(dtype)
    for chunk in CHUNKS:
        memory, _ = run(program, no_edges(numbers, dtype, chunk), 2)
        rows = memory[copies.results[0].start * N :][: N * y.width].reshape(N, -1)
        np.testing.assert_array_equal(rows[:, :width], table[numbers].astype(dtype))
        assert (rows[:, width:] == 0).all()


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (21, 40), (48, 5)])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shared", [(), (0,)])
def test_linear(dtype, inputs, outputs, rows, bias, shared):
    weight, x = random(inputs, outputs), random(N, 1, rows, inputs)
    b = random(outputs) if bias else np.zeros(outputs)

    def build(p, x):
        wide = widened(weight, (1, inputs), (1, outputs))
        return Linear(p, x, wide, widened(b, (1, outputs)) if bias else None, rows).y

    def function(x):
        return x @ torch.from_numpy(weight) + torch.from_numpy(b)

    assert_agrees(build, function, [x], dtype, shared=shared)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("inactive", "shared"), [((), ()), ((0,), (1,)), ((1,), (0,))])
def test_linear_and_a_summand(dtype, bias, inactive, shared):
    weight, b = random(21, 40), random(40) if bias else np.zeros(40)

    def build(p, x, z):
        wide = widened(weight, (1, 21), (1, 40))
        return Linear(p, x, wide, widened(b, (1, 40)) if bias else None, add=z).y

    def function(x, z):
        return x @ torch.from_numpy(weight) + torch.from_numpy(b) + z

    inputs = [random(N, 1, 1, 21), random(N, 1, 1, 40)]
    assert_agrees(build, function, inputs, dtype, inactive=inactive, shared=shared)


def test_linear_of_two_parts_of_vectors(dtype):
    weight = random(21, 2 * 21)

    def build(p, x):
        return Linear(p, x, widened(weight, (1, 21), (2, 21)), rows=3).y

    def function(x):  # (n, 1, 3, f) to (n, 2, 3, f)
        return torch.stack((x[:, 0] @ torch.from_numpy(weight)).chunk(2, dim=2), dim=1)

    assert_agrees(build, function, [random(N, 1, 3, 21)], dtype)


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shared", [(), (0,)])
def test_activations(dtype, kind, width, shared):
    x = 3 * random(N, 1, 1, width)
    x[0, 0, 0, :4] = -100, 100, 0, -30
    x[1, 0, 0, :3] = 1e-5, -1e-5, 17
    assert_agrees(lambda p, x: Activation(p, x, kind).y, FUNCTIONS[kind], [x], dtype, shared=shared)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_activations_keep_nan_where_it_is(dtype, kind):
    x = random(N, 1, 1, 21)
    x[2, 0, 0, 5] = np.nan
    assert_agrees(lambda p, x: Activation(p, x, kind).y, FUNCTIONS[kind], [x], dtype)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shared", [(), (0,)])
def test_layer_norm_leaves_out_what_fills_up(dtype, parts, width, shared):
    size = parts * width
    weight, bias, x = random(size), random(size, seed=1), 1 + 3 * random(N, parts, 1, width)

    def build(p, x):
        shape = (parts, width)
        constants = (widened(array, shape) for array in (weight, bias, np.ones(size)))
        return LayerNorm(p, x, *constants, 1e-5).y

    def function(x):
        w, b = torch.from_numpy(weight), torch.from_numpy(bias)
        return F.layer_norm(x.flatten(1), (size,), w, b, 1e-5).view_as(x)

    assert_agrees(build, function, [x], dtype, shared=shared)


def test_a_layer_norm_of_equal_numbers_is_held_by_epsilon(dtype):
    weight, zero, one = random(21), np.zeros(21), np.ones(21)

    def build(p, x):
        return LayerNorm(p, x, *(widened(a, (1, 21)) for a in (weight, zero, one)), 0.3).y

    def function(x):
        return F.layer_norm(x, (21,), torch.from_numpy(weight), None, 0.3)

    assert_agrees(build, function, [np.full((N, 1, 1, 21), 0.7)], dtype)


@pytest.mark.parametrize("width", WIDTHS)
def test_energies(dtype, width):
    x, weight, p = random(N, width), random(width), Program()
    copies = Copies(p)
    variable = copies.input(p, widened(x, (1, width)), True)
    Energies(p, variable, widened(weight, (1, width)), np.full(1, 0.25))
    program = p.finish().as_type(dtype)
    for chunk in CHUNKS:
        memory, edges = run(program, no_edges(np.arange(N), dtype, chunk), 2)
        np.testing.assert_allclose(edges.energies, x @ weight + 0.25, atol=20 * TOLERANCES[dtype])
        adjoint = memory[copies.adjoints[0].start * N :][: N * variable.width].reshape(N, -1)
        expected = np.tile(widened(weight, (1, width)), (N, 1)).astype(dtype)
        np.testing.assert_array_equal(adjoint, expected)
