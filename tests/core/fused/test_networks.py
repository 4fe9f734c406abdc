"""The form of SchNet and PaiNN for training: the same functions, to second derivatives."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import copper, ethanol, small_potential

from ase_biasgrad.fused.filters import dense_chain
from ase_biasgrad.fused.registry import fused_form
from ase_biasgrad.graph import collate, forward_edges, graph_from_atoms, pairs_of
from ase_biasgrad.numerics.activations import silu, silu_jet, softplus_jet
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
    found = trained_on(Potential(fused_form(potential.backbone), potential.bias), graph, properties)
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
        values = Potential(fused_form(potential.backbone)).evaluate(graph, ["energy", "forces"])
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


def test_activations():
    x = torch.linspace(-30, 30, 41, dtype=torch.float64, requires_grad=True)
    found = with_derivatives(lambda: (silu(x),), [x])
    expected = with_derivatives(lambda: (torch.nn.functional.silu(x),), [x])
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


def test_dense_chain():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 5), torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)]
    layers = [layer.double() for layer in layers]
    first, second, third = layers
    x = torch.randn(7, 4, dtype=torch.float64)
    parameters = [p for layer in layers for p in layer.parameters()]
    gradients = []
    for y in (
        dense_chain(x, layers, [silu_jet, None, softplus_jet]),
        torch.nn.functional.softplus(third(second(torch.nn.functional.silu(first(x))))) - np.log(2),
    ):
        gradients.append([y.detach(), *torch.autograd.grad(y.square().sum(), parameters)])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("jet", [softplus_jet, silu_jet])
@pytest.mark.parametrize("shape", [(3,), (8,), (4, 5), (145, 128)])
def test_jets_in_float32_are_those_in_float64(jet, shape):
    random = torch.Generator().manual_seed(0)
    x = 5 * torch.randn(shape, generator=random)
    for one, two in zip(jet(x), jet(x.double()), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), two, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_from_inference_can_be_trained_with(name):
    potential = small_potential(name)
    graph = graph_from_atoms(ethanol(), potential.cutoff)
    form = fused_form(potential.backbone)
    with torch.inference_mode():
        form(graph)
    values = Potential(form).evaluate(graph, ["forces"], create_graph=True)
    values["forces"].square().sum().backward()
    assert any(parameter.grad is not None for parameter in potential.backbone.parameters())


def test_layers_learn_where_one_weight_does_not():
    potential = small_potential("painn").double()
    context = potential.backbone.representation.interactions[0].interatomic_context_net
    context[0].weight.requires_grad_(False)
    graph = graph_from_atoms(ethanol(), potential.cutoff)
    learning = [context[0].bias, context[1].weight, context[1].bias]
    gradients = []
    for form in (potential.backbone, fused_form(potential.backbone)):
        forces = Potential(form).evaluate(graph, ["forces"], create_graph=True)["forces"]
        gradients.append(torch.autograd.grad(forces.square().sum(), learning))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8)
