"""The form of SchNet and PaiNN for training: the same functions, to second derivatives."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import copper, ethanol, small_potential

from ase_biasgrad.backbones.half_pairs import forward_edges, pairs_of
from ase_biasgrad.backbones.lean_forward import lean
from ase_biasgrad.backbones.pair_messages import (
    Components,
    Pairs,
    convolve,
    convolve_by_torch,
    lift,
    lift_by_torch,
)
from ase_biasgrad.backbones.smooth_activations import silu, silu_jet, softplus_jet
from ase_biasgrad.backbones.tensor_products import mixed, normalised, symmetric_product
from ase_biasgrad.backbones.tensornet import ExactMessenger
from ase_biasgrad.backbones.two_layers import two_layers
from ase_biasgrad.backbones.vector_products import norms, updates
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import Potential

NAMES = ("schnet", "painn", "tensornet")


def trained_on(potential: Potential, graph, properties) -> list[torch.Tensor]:
    """Values, and the gradients of all parameters of a loss that sees these values."""
    values = potential.evaluate(graph, properties, create_graph=True)
    loss = sum(value.square().sum() for value in values.values())
    parameters = list(potential.backbone.parameters())
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    return [*(value.detach() for value in values.values()), *gradients]


def assert_the_same(potential: Potential, graph, properties, tolerance: float) -> None:
    expected = trained_on(potential, graph, properties)
    found = trained_on(Potential(lean(potential.backbone), potential.bias), graph, properties)
    for one, two in zip(found, expected, strict=True):
        limit = tolerance * max(1.0, float(two.abs().max()))
        torch.testing.assert_close(one, two, rtol=0, atol=limit)


@pytest.mark.parametrize("basis", ["gaussian", "bessel"])
@pytest.mark.parametrize("envelope", ["cosine", "mollifier"])
@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_every_basis_and_cutoff_function(name, basis, envelope):
    potential = small_potential(name, radial_basis=basis, cutoff_function=envelope).double()
    structures = [ethanol(), copper(), Atoms("O"), copper(2)]
    graph = collate([graph_from_atoms(atoms, potential.cutoff) for atoms in structures])
    assert_the_same(potential, graph, ["energy", "forces"], 3e-5 if basis == "bessel" else 2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_energies_forces_and_their_gradients_are_those_of_the_backbone(name):
    potential = small_potential(name).double()
    structures = [ethanol(), copper(), Atoms("O"), copper(2)]
    graph = collate([graph_from_atoms(atoms, potential.cutoff) for atoms in structures])
    assert_the_same(potential, graph, ["energy", "forces"], 2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_stress_is_trained_on_too(name):
    potential = small_potential(name).double()
    graph = collate([graph_from_atoms(copper(seed), potential.cutoff) for seed in range(2)])
    assert_the_same(potential, graph, ["forces", "stress"], 2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_float32(name):
    potential = small_potential(name)
    graph = graph_from_atoms(ethanol(), potential.cutoff)
    assert_the_same(potential, graph, ["energy", "forces"], 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_no_pairs_at_all(name):
    potential = small_potential(name).double()
    far = Atoms("OH", [[0, 0, 0], [0, 0, 9.0]])
    for atoms in (Atoms("O"), far):
        graph = graph_from_atoms(atoms, potential.cutoff)
        values = Potential(lean(potential.backbone)).evaluate(graph, ["energy", "forces"])
        expected = potential.evaluate(graph, ["energy"])["energy"]
        torch.testing.assert_close(values["energy"], expected, rtol=0, atol=1e-12)
        assert (values["forces"] == 0).all()


def test_every_edge_needs_its_reverse():
    graph = graph_from_atoms(copper(), 4.0)
    kept = forward_edges(graph.edge_index, graph.edge_shift, periodic=True)
    (i, j), shift = graph.edge_index[:, kept], graph.edge_shift[kept]
    assert 2 * len(i) == graph.edge_index.shape[1]
    both = set(zip(i.tolist(), j.tolist(), *shift.T.tolist(), strict=True))
    both |= {(b, a, -x, -y, -z) for a, b, x, y, z in both}
    edges = torch.cat([graph.edge_index, graph.edge_shift.T]).T
    assert both == {tuple(edge) for edge in edges.tolist()}
    known = dataclasses.replace(graph, forward=kept)
    for one, two in zip(pairs_of(known), pairs_of(graph), strict=True):
        assert torch.equal(one, two)
    broken = dataclasses.replace(
        graph, edge_index=graph.edge_index[:, 1:], edge_shift=graph.edge_shift[1:]
    )
    with pytest.raises(ValueError, match="every edge needs its reverse"):
        pairs_of(broken)


def random_pairs(features: int = 5) -> tuple[Pairs, list[torch.Tensor]]:
    """Pairs with an image of an atom itself; scalars, components, rows, tensors."""
    random = torch.Generator().manual_seed(0)
    shapes = [(4, features), (4, 4, features), (9, 3, features), (5, 4), (5, 6)]
    *tensors, weights = (
        torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    )
    i, j = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([1, 2, 2, 2, 3])
    return Pairs(i, j, 4, torch.tensor([0, 3, 1, 2, 2]), weights), tensors


def with_derivatives(function, tensors: list[torch.Tensor]):
    """Outputs, first and second derivatives along fixed directions, of every input."""
    random = torch.Generator().manual_seed(0)

    def along(values):
        return sum(
            (v * torch.randn(v.shape, generator=random, dtype=v.dtype)).sum()
            for v in values
            if v is not None
        )

    outputs = function()
    first = torch.autograd.grad(along(outputs), tensors, create_graph=True, materialize_grads=True)
    second = torch.autograd.grad(along(first), tensors, materialize_grads=True)
    return [*(o for o in outputs if o is not None), *first, *second]


@pytest.mark.parametrize("is_lift", [False, True])
def test_messages_and_their_derivatives_are_those_of_torch(is_lift):
    pairs, (scalars, vectors, rows, tensors) = random_pairs()
    components = Components((0, 2, 2, 0), (1, -1, -1, 1))  # and a filter that none takes
    inputs = (scalars, rows, tensors) if is_lift else (vectors, rows)
    one, two = (lift, lift_by_torch) if is_lift else (convolve, convolve_by_torch)
    wanted = [*inputs, pairs.weights]
    found = with_derivatives(lambda: (one(pairs, *inputs, components),), wanted)
    expected = with_derivatives(lambda: (two(pairs, *inputs, components),), wanted)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
        assert float(b.abs().max()) > 0.1


@pytest.mark.parametrize("features", [1, 4, 9])
def test_products_of_tensors_and_their_derivatives_are_those_of_torch(features):
    random = torch.Generator().manual_seed(0)

    def some(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)

    x, y = some(3, 9, features), some(3, 9, features)
    weights = [some(features, features) for _ in range(3)]
    exact = ExactMessenger(graph_from_atoms(Atoms("O"), 4.0), 4.0, torch.float64)
    for ours, theirs, inputs in (
        (lambda: symmetric_product(x, y), lambda: exact.product(x, y), [x, y]),
        (lambda: symmetric_product(x, x), lambda: exact.product(x, x), [x]),
        (lambda: normalised(x), lambda: exact.normalised(x), [x]),
        (lambda: mixed(x, weights), lambda: exact.mixed(x, weights), [x]),
    ):
        found = with_derivatives(lambda f=ours: (f(),), inputs)
        expected = with_derivatives(lambda f=theirs: (f(),), inputs)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_matrices_that_mix_tensors_learn_from_forces():
    random = torch.Generator().manual_seed(0)
    x, *weights = (
        torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True)
        for shape in ((4, 9, 5), (5, 5), (5, 5), (5, 5))
    )
    exact = ExactMessenger(graph_from_atoms(Atoms("O"), 4.0), 4.0, torch.float64)
    gradients = []
    for function in (mixed, exact.mixed):
        mix = function(x, weights)
        (force,) = torch.autograd.grad(mix.sin().sum(), x, create_graph=True)
        gradients.append(torch.autograd.grad(force.square().sum() + mix.sum(), weights))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    with pytest.raises(RuntimeError, match="no second derivatives in its weights"):
        torch.autograd.grad(mixed(x, weights).sum(), weights, create_graph=True)


def test_vector_products_and_their_derivatives_are_those_of_torch():
    random = torch.Generator().manual_seed(0)
    halves = torch.randn(4, 3, 10, generator=random, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(4, 3, 5, generator=random, dtype=torch.float64, requires_grad=True)
    v, w = halves.chunk(2, dim=2)

    def plain():
        dot = (v * w).sum(dim=1)
        return (
            (v.square().sum(dim=1) + 0.1).sqrt(),
            factors[:, 0] + factors[:, 2] * dot,
            factors[:, 1:2] * w,
        )

    found = with_derivatives(
        lambda: (norms(halves, 0.1), *updates(factors, halves)), [factors, halves]
    )
    for one, two in zip(found, with_derivatives(plain, [factors, halves]), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_activations():
    x = torch.linspace(-30, 30, 41, dtype=torch.float64, requires_grad=True)
    found = with_derivatives(lambda: (silu(x),), [x])
    expected = with_derivatives(lambda: (torch.nn.functional.silu(x),), [x])
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("jet", [softplus_jet, silu_jet])
def test_two_layers_and_their_derivatives_are_those_of_torch(jet):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Linear(5, 3)).double()
    first, second = layers
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    plain = {
        softplus_jet: lambda z: torch.nn.functional.softplus(z) - np.log(2),
        silu_jet: torch.nn.functional.silu,
    }[jet]

    def force_loss(function) -> list[torch.Tensor]:
        """Values, slopes, and a loss of both differentiated in the parameters and x."""
        y = function(x)
        (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        loss = slope.square().sum() + y.sum()
        return [y, slope, *torch.autograd.grad(loss, [*layers.parameters(), x])]

    found = force_loss(lambda z: two_layers(z, layers, jet))
    for one, two in zip(found, force_loss(lambda z: second(plain(first(z)))), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)
    with pytest.raises(RuntimeError, match="no second derivatives in its parameters"):
        y = two_layers(x, layers, jet)
        torch.autograd.grad(y.sum(), first.weight, create_graph=True)
