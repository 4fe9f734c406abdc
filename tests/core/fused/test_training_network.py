"""Networks in training: forces of the backbone, and gradients of any loss of them."""

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import copper, ethanol, small_potential

from ase_biasgrad.fused.networks import NETWORKS
from ase_biasgrad.fused.training import TrainingNetwork
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import Potential, strained

VARIANTS = {
    "small": {},
    "widths that need padding": {"features": 20, "interactions": 3},
    "one interaction": {"interactions": 1},
}


@pytest.fixture
def many_knots(monkeypatch):
    """Splines so fine that everything else can be compared to 1e-6."""
    monkeypatch.setattr("ase_biasgrad.fused.training.KNOTS_PER_FUNCTION", 8)


def structures(cutoff: float):
    """Molecules, a crystal whose atoms see their own images, and an atom alone."""
    atoms = [ethanol(), copper(), Atoms("O"), Atoms("OH", [[0, 0, 0], [0, 0, 1.1]])]
    return collate([graph_from_atoms(a, cutoff) for a in atoms])


def backbone_of(name: str, **arguments):
    torch.manual_seed(0)
    return small_potential(name, **arguments).backbone.double().requires_grad_(True)


def of_backbone(backbone, graph):
    """Energies, forces and strain gradients by autograd, differentiable in the parameters."""
    positions = graph.positions.clone().requires_grad_()
    strain = torch.zeros(graph.n_structures, 3, 3, dtype=torch.float64, requires_grad=True)
    energies = backbone(strained(graph, positions, strain))
    gradients = torch.autograd.grad(
        energies.sum(), [positions, strain], create_graph=True, materialize_grads=True
    )
    return energies, -gradients[0], gradients[1]


def weighted(results, seed: int = 3):
    """A loss: the sum of all results times random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return sum(
        (r * torch.randn(r.shape, generator=generator, dtype=torch.float64)).sum() for r in results
    )


def trained_on(results, backbone) -> list[torch.Tensor]:
    """Results, and the gradients of all parameters of a loss of them."""
    parameters = list(backbone.parameters())
    gradients = torch.autograd.grad(
        weighted(results), parameters, materialize_grads=True, allow_unused=True
    )
    return [*(value.detach() for value in results), *gradients]


def assert_the_same(backbone, graph, tolerance: float) -> None:
    """Results and gradients are those of autograd through the backbone, but for the splines."""
    found = trained_on(TrainingNetwork(backbone).evaluate(graph), backbone)
    expected = trained_on(of_backbone(backbone, graph), backbone)
    for one, two in zip(found, expected, strict=True):
        limit = tolerance * max(1.0, float(two.abs().max()))
        torch.testing.assert_close(one.double(), two.double(), rtol=0, atol=limit)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_results_and_gradients_are_those_of_the_backbone(name, variant, many_knots):
    backbone = backbone_of(name, **VARIANTS[variant])
    assert_the_same(backbone, structures(backbone.cutoff), 2e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_few_knots_are_enough_in_training(name):
    backbone = backbone_of(name, features=32, radial_functions=20)
    assert_the_same(backbone, structures(backbone.cutoff), 1e-4)


@pytest.mark.parametrize("basis", ["gaussian", "bessel"])
@pytest.mark.parametrize("envelope", ["cosine", "mollifier"])
@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_every_basis_and_cutoff_function(name, basis, envelope, many_knots):
    backbone = backbone_of(name, radial_basis=basis, cutoff_function=envelope)
    tolerance = 2e-6 if (basis, envelope) == ("gaussian", "cosine") else 3e-5
    assert_the_same(backbone, structures(backbone.cutoff), tolerance)


@pytest.mark.parametrize("name", NETWORKS)
def test_float32(name):
    backbone = backbone_of(name).float()
    assert_the_same(backbone, graph_from_atoms(ethanol(), backbone.cutoff), 2e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_pairs_at_all(name):
    backbone = backbone_of(name)
    for atoms in (Atoms("O"), Atoms("OH", [[0, 0, 0], [0, 0, 9.0]])):
        graph = graph_from_atoms(atoms, backbone.cutoff)
        energies, forces, strain_gradient = TrainingNetwork(backbone).evaluate(graph)
        torch.testing.assert_close(energies, backbone(graph), rtol=0, atol=1e-12)
        assert (forces == 0).all()
        assert (strain_gradient == 0).all()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_kept_from_inference_can_be_trained_with(name):
    backbone = backbone_of(name).float()
    graph, network = graph_from_atoms(ethanol(), backbone.cutoff), TrainingNetwork(backbone)
    with torch.inference_mode():
        network.evaluate(graph)
    network.evaluate(graph)[1].square().sum().backward()
    assert any(parameter.grad is not None for parameter in backbone.parameters())


def test_layers_learn_where_one_weight_does_not(many_knots):
    backbone = backbone_of("painn")
    context = backbone.representation.interactions[0].interatomic_context_net
    context[0].weight.requires_grad_(False)
    graph = graph_from_atoms(ethanol(), backbone.cutoff)
    learning = [context[0].bias, context[1].weight, context[1].bias]
    one, two = (
        torch.autograd.grad(results[1].square().sum(), learning)
        for results in (TrainingNetwork(backbone).evaluate(graph), of_backbone(backbone, graph))
    )
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_exact(name, variant):
    """Central differences of the same function along random directions of the parameters."""
    backbone = backbone_of(name, **VARIANTS[variant])
    graph, network = structures(backbone.cutoff), TrainingNetwork(backbone)
    parameters = list(backbone.parameters())
    gradients = torch.autograd.grad(weighted(network.evaluate(graph)), parameters)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        along = [
            p.detach().abs().mean() * torch.randn(p.shape, generator=generator, dtype=p.dtype)
            for p in parameters
        ]
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for p, v in zip(parameters, along, strict=True):
                    p += step * v
                values.append(float(weighted(network.evaluate(graph))))
                for p, v in zip(parameters, along, strict=True):
                    p -= step * v
        slope = (values[0] - values[1]) / 2e-5
        ours = float(sum((g * v).sum() for g, v in zip(gradients, along, strict=True)))
        assert abs(slope) > 1e-3
        assert ours == pytest.approx(slope, rel=1e-6, abs=1e-7)


def test_another_evaluation_or_gradient_in_between_changes_nothing():
    backbone = backbone_of("tensornet")
    network, parameters = TrainingNetwork(backbone), list(backbone.parameters())
    one, two = structures(backbone.cutoff), graph_from_atoms(ethanol(), backbone.cutoff)
    first = torch.autograd.grad(weighted(network.evaluate(one)), parameters)
    loss = weighted(network.evaluate(one))
    network.evaluate(two)
    for again in (True, False):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=again)
        for a, b in zip(first, gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_gradients_of_a_batch_are_the_sums_of_those_of_its_structures():
    backbone = backbone_of("painn")
    network, parameters = TrainingNetwork(backbone), list(backbone.parameters())
    graphs = [graph_from_atoms(a, backbone.cutoff) for a in (ethanol(), copper())]

    def gradients(graph):
        energies, forces, strain = network.evaluate(graph)
        loss = energies.square().sum() + forces.square().sum() + strain.square().sum()
        return torch.autograd.grad(loss, parameters)

    apart = [gradients(graph) for graph in graphs]
    for together, a, b in zip(gradients(collate(graphs)), *apart, strict=True):
        torch.testing.assert_close(together, a + b, rtol=1e-9, atol=1e-9)


def test_threads_share_the_structures():
    """Each structure is evaluated as on one thread; gradients are summed in another order."""
    backbone = backbone_of("tensornet")
    network, graph = TrainingNetwork(backbone), structures(backbone.cutoff)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results = network.evaluate(graph)
            found.append((results, torch.autograd.grad(weighted(results), backbone.parameters())))
    finally:
        torch.set_num_threads(before)
    for one, several in zip(*(results for results, _ in found), strict=True):
        assert torch.equal(one, several)
    for one, several in zip(*(gradients for _, gradients in found), strict=True):
        torch.testing.assert_close(one, several, rtol=0, atol=1e-11 * float(one.abs().max() + 1))


def test_edges_in_disorder_are_refused():
    backbone = backbone_of("schnet")
    graph = structures(backbone.cutoff)
    order = torch.arange(graph.edge_index.shape[1]).flip(0)
    shuffled = type(graph)(
        **{
            **vars(graph),
            "edge_index": graph.edge_index[:, order],
            "edge_shift": graph.edge_shift[order],
        }
    )
    with pytest.raises(ValueError, match="structure by structure"):
        TrainingNetwork(backbone).evaluate(shuffled)


def test_nothing_is_trained_twice():
    """The network has no parameters of its own."""
    backbone = backbone_of("schnet")
    network = TrainingNetwork(backbone)
    before = network.evaluate(structures(backbone.cutoff))[1]
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter *= 1.1
    after = network.evaluate(structures(backbone.cutoff))[1]
    assert float((before - after).abs().max()) > 1e-4
    exact = Potential(backbone).evaluate(structures(backbone.cutoff), ["forces"])["forces"]
    np.testing.assert_allclose(after.detach(), exact, atol=1e-4 * float(exact.abs().max()))
