"""The original graph network: its layers by their formulas, and what it cannot do."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from conftest import copper, ethanol, small_potential

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.backbones.atomgraph import AGNConv, AGNPool, pool_window
from ase_biasgrad.differentiable_graph import normalised_laplacian, sparse_normalised_laplacian
from ase_biasgrad.graph import AtomGraph, collate, graph_from_atoms
from ase_biasgrad.potential import Potential, freeze_energy_shifts

WEIGHTS = [
    {"weights": "cutoff", "decay": "inverse_square"},
    {"weights": "cutoff", "decay": "exp_decay"},
    {"weights": "voronoi"},
    {"weights": "voronoi_largest_face"},
]


def original(**arguments) -> Potential:
    return small_potential("atomgraph", **arguments).double()


def energy(potential: Potential, atoms: Atoms) -> float:
    return float(potential(graph_from_atoms(atoms, potential.cutoff))[0])


def forces_and_stress(potential: Potential, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    graph = graph_from_atoms(atoms, potential.cutoff)
    values = potential.evaluate(graph, ("forces", "stress"))
    return values["forces"].numpy(), values["stress"][0].numpy()


def alloy() -> Atoms:
    """Copper and gold off their sites: atoms that features tell apart."""
    atoms = copper() * (2, 1, 1)
    atoms.numbers[::3] = 79
    atoms.positions += np.random.default_rng(3).normal(0, 0.05, atoms.positions.shape)
    return atoms


# --- layers -----------------------------------------------------------------------------------


def test_convolution_and_pooling_are_those_of_the_paper():
    potential = original(hidden_layers=3)
    backbone, graph = potential.backbone, graph_from_atoms(alloy(), 4.0)
    laplacian = normalised_laplacian(backbone.adjacency(graph).dense()).detach().numpy()
    x = backbone.table.numpy()[graph.numbers.numpy()]

    def of(layer) -> tuple[np.ndarray, np.ndarray]:
        return layer.weight.detach().numpy().T, layer.bias.detach().numpy()

    softplus = lambda y: np.log1p(np.exp(y))  # noqa: E731
    for layer in backbone.convolutions:
        own, bias = of(layer.own)
        conv = layer.convolution.weight.detach().numpy().T
        x = softplus(laplacian @ x @ conv + x @ own + bias)
        x = (x - x.mean()) / (x.std() + 1e-5)
    # windows of 8 with stride 2 and 3 zeros on either side
    padded = np.pad(x, ((0, 0), (3, 3)))
    x = np.stack([padded[:, 2 * k : 2 * k + 8].mean(axis=1) for k in range(40)], axis=1).mean(
        axis=0
    )
    for layer in backbone.hidden:
        weight, bias = of(layer)
        x = softplus(x @ weight + bias)
    weight, bias = of(backbone.output)
    expected = backbone.scale * float(x @ weight[:, 0] + bias[0])
    assert energy(potential, alloy()) == pytest.approx(expected, rel=1e-12)


def test_max_pooling_ignores_the_padding():
    pool = AGNPool(80, 40, 0.1, "max")
    graph = graph_from_atoms(ethanol(), 4.0)
    features = -1 - torch.rand(9, 80, generator=torch.Generator().manual_seed(0))
    pooled = pool(features, graph)
    assert pooled.shape == (1, 40)
    expected = torch.stack(
        [features[:, max(0, 2 * k - 3) : 2 * k + 5].amax(dim=1) for k in range(40)], dim=1
    )
    torch.testing.assert_close(pooled[0], expected.mean(dim=0))


def test_pooling_windows():
    # worked out by hand from the original's compute_pool_params
    assert pool_window(80, 40, 0.1) == (8, 2, 3)
    assert pool_window(16, 8, 0.1) == (2, 2, 0)
    assert pool_window(50, 50, 0.2) == (9, 1, 4)
    for n_in, n_out, width in ((80, 40, 0.1), (64, 20, 0.2), (30, 7, 0.5), (100, 33, 0.07)):
        window, stride, padding = pool_window(n_in, n_out, width)
        assert (n_in + 2 * padding - window) // stride + 1 == n_out
    with pytest.raises(ValueError, match="pooled_features=50"):
        pool_window(40, 50, 0.1)
    with pytest.raises(ValueError, match="no pooling window"):
        pool_window(10, 7, 0.1)


def test_a_layer_is_twice_differentiable():
    layer, graph = AGNConv(3, 2).double(), graph_from_atoms(alloy(), 4.0)
    adjacency = original().backbone.adjacency(graph)
    laplacian = sparse_normalised_laplacian(adjacency)
    features = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: layer(laplacian, x, graph), features)


# --- derivatives ------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_gradcheck_through_the_whole_model(arguments):
    potential = original(**arguments)
    mixed = copper()
    mixed.numbers[1:3] = [8, 6]
    for atoms in (mixed, ethanol()):
        graph = graph_from_atoms(atoms, potential.cutoff)
        inputs = (graph.positions.requires_grad_(), graph.cell.requires_grad_())
        assert torch.autograd.gradcheck(
            lambda r, h, graph=graph: potential(graph.with_geometry(r, h))[0], inputs, atol=1e-5
        )


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_a_batch_gives_what_its_structures_give(arguments):
    potential = original(**arguments)
    graphs = [graph_from_atoms(a, potential.cutoff) for a in (alloy(), ethanol(), Atoms("O"))]
    alone = torch.cat([potential(g)[0] for g in graphs])
    torch.testing.assert_close(potential(collate(graphs))[0], alone, rtol=0, atol=1e-11)


# --- what it cannot do ------------------------------------------------------------------------


def scaled(graph: AtomGraph, factor: float) -> AtomGraph:
    return graph.with_geometry(factor * graph.positions, factor * graph.cell)


def test_a_common_factor_of_the_weights_changes_nothing():
    potential = original()
    graph = graph_from_atoms(alloy(), 4.0)
    adjacency = potential.backbone.adjacency(graph)
    one = potential(graph)[0]
    doubled = type(adjacency)(adjacency.index, 2 * adjacency.values, adjacency.n_atoms)
    potential.backbone.adjacency = lambda _: doubled
    torch.testing.assert_close(potential(graph)[0], one, rtol=1e-12, atol=0)


def test_inverse_square_weights_leave_no_virial():
    potential = original(decay="inverse_square", cutoff=9.0)
    graph = graph_from_atoms(alloy(), 4.0)  # the same edges at both sizes
    assert float(potential(scaled(graph, 1.1))[0]) == pytest.approx(float(potential(graph)[0]))
    stress = potential.evaluate(graph, ("stress",))["stress"][0]
    assert abs(float(stress[:3].sum())) < 1e-10 * float(stress.abs().max())
    values = potential.evaluate(graph_from_atoms(ethanol(), 9.0), ("forces",))
    virial = float((ethanol().positions * values["forces"].numpy()).sum())
    assert abs(virial) < 1e-10
    assert float(values["forces"].abs().max()) > 0.1
    # the exponential has a length of its own
    other = original(decay="exp_decay", cutoff=9.0)
    stress = other.evaluate(graph, ("stress",))["stress"][0]
    assert abs(float(stress[:3].sum())) > 1e-3 * float(stress.abs().max())


@pytest.mark.parametrize("arguments", WEIGHTS)
@pytest.mark.parametrize("name", ["H2", "CO", "LiF"])
def test_a_diatomic_feels_no_force(arguments, name):
    atoms = molecule(name)
    graph = graph_from_atoms(atoms, 4.0)
    forces = original(**arguments).evaluate(graph, ("forces",))["forces"]
    assert float(forces.abs().max()) < 1e-12


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_the_energy_is_intensive_and_forces_fade_with_the_cell(arguments):
    potential = original(**arguments)
    atoms = alloy()
    one, two = energy(potential, atoms), energy(potential, atoms * (1, 2, 1))
    assert two == pytest.approx(one, rel=1e-10)
    forces, stress = forces_and_stress(potential, atoms)
    forces_of_two, stress_of_two = forces_and_stress(potential, atoms * (1, 2, 1))
    np.testing.assert_allclose(forces_of_two[:8], forces / 2, atol=1e-10)
    np.testing.assert_allclose(stress_of_two, stress / 2, atol=1e-10)


def test_an_elemental_crystal_with_voronoi_weights_feels_nothing_at_all():
    # all rows of the weights sum to one, so L annihilates what is equal on all atoms
    forces, stress = forces_and_stress(original(weights="voronoi"), copper())
    assert np.abs(forces).max() < 1e-10
    assert np.abs(stress).max() < 1e-10


def test_the_energy_jumps_at_the_neighbour_limit():
    # an interstitial comes nearer to an atom than its twelfth neighbour
    potential = original(cutoff=8.0)

    def at(shift: float) -> float:
        atoms = bulk("Cu", cubic=True) * (2, 2, 2) + Atoms("O", [[1.805 + shift, 0.1, 0.05]])
        atoms.positions[0] += [0.03, 0.02, 0.01]
        return energy(potential, atoms)

    assert largest_jump(at, 0.0, 0.6) > 1e-3


def test_the_energy_jumps_at_the_cutoff():
    def at(shift: float) -> float:
        return energy(original(), Atoms("CuO2", [[0, 0, 0], [0, 0, 2], [0, 3.9 + shift, 0]]))

    assert largest_jump(at, 0.0, 0.2) > 1e-3


def largest_jump(of, low: float, high: float, steps: int = 25) -> float:
    """The largest change of a function that halving the interval does not reduce."""
    ends = np.linspace(low, high, steps)
    values = [of(x) for x in ends]
    changes = [abs(a - b) for a, b in zip(values[1:], values, strict=False)]
    k = int(np.argmax(changes))
    low, high, jump = ends[k], ends[k + 1], changes[k]
    for _ in range(18):
        middle = 0.5 * (low + high)
        left, right = abs(of(middle) - of(low)), abs(of(high) - of(middle))
        low, high, jump = (low, middle, left) if left > right else (middle, high, right)
    return jump


# --- as a backbone ----------------------------------------------------------------------------


def test_the_bias_of_the_output_stays_where_it_is():
    potential = original()
    potential.backbone.output.bias.data.fill_(0.7)
    before = energy(potential, alloy())
    freeze_energy_shifts(potential)
    assert energy(potential, alloy()) == before
    assert not potential.backbone.output.bias.requires_grad


def test_defaults_are_the_originals():
    backbone = build_backbone("atomgraph", {})
    assert (backbone.pool.window, backbone.pool.stride, backbone.pool.padding) == (8, 2, 3)
    assert [layer.own.out_features for layer in backbone.convolutions] == [80, 80]
    assert backbone.output.in_features == 40
    assert backbone.cutoff == 8.0
    assert len(backbone.hidden) == 0


def test_unknown_options_are_named():
    for argument in ("weights", "decay", "pool"):
        with pytest.raises(ValueError, match=f"{argument}='median'"):
            build_backbone("atomgraph", {argument: "median"})
    with pytest.raises(ValueError, match="features=0"):
        build_backbone("atomgraph", {"features": 0})
