"""Programs of whole networks against the backbones, and against training."""

import numpy as np
import pytest
from ase import Atoms
from conftest import copper, ethanol, small_potential
from one_layer import placed_edges, run

from ase_biasgrad.fused.networks import (
    NETWORKS,
    compiled_network,
    described,
    filters_of,
)
from ase_biasgrad.fused.training import TrainingNetwork
from ase_biasgrad.graph import collate, graph_from_atoms, pairs_within
from ase_biasgrad.numerics.splines import RadialTable, interpolate
from ase_biasgrad.potential import Potential

VARIANTS = {
    "small": {},
    "widths that need padding": {"features": 20, "interactions": 3},
    "one feature": {"features": 1, "scale": 500.0},
    "one interaction": {"interactions": 1},
}


def energies_and_forces(program, knots, graph, chunk: int, blocks: int = 1):
    """Energies `(n,)` and forces `(n, 3)` of a program on the edges of a graph."""
    i, j, distances, unit = (x.numpy() for x in pairs_within(graph, knots.cutoff))
    placed = placed_edges(
        graph.numbers.numpy(), np.concatenate([i, j]), np.concatenate([j, i]),
        np.tile(distances / knots.spacing, 2), np.concatenate([unit, -unit]),
        program.weights.dtype, chunk,
    )  # fmt: skip
    _, after = run(program, placed, blocks)
    adjoints, forces = placed.adjoints(after), np.zeros((len(after.energies), 3))
    along, turning = adjoints[:, :1] / knots.spacing, adjoints[:, 1:] / distances[:, None]
    pull = along * unit + turning - (turning * unit).sum(axis=1, keepdims=True) * unit
    np.add.at(forces, i, pull)
    np.add.at(forces, j, -pull)
    return after.energies, forces


def assert_close(found, expected, tolerance: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        theirs = theirs.detach().numpy()
        limit = tolerance * max(1.0, np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


def weights_of(backbone) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in backbone.state_dict().items()}


def program_of_training(backbone):
    """The program on the grid of training, however exact its splines are, and the grid."""
    given = backbone.name, backbone.arguments, weights_of(backbone)
    knots = TrainingNetwork(backbone).knots
    at_knots = filters_of(*given)(knots.distances())
    table = RadialTable(knots, interpolate(knots.count, at_knots), 0.0, 0.0)
    return described(*given, table).finish(), knots


def results(form, graph):
    return form(graph), Potential(form).evaluate(graph, ["forces"])["forces"]


def several_structures(cutoff: float):
    atoms = [ethanol(), copper(), Atoms("O"), Atoms("OH", [[0, 0, 0], [0, 0, 9.0]])]
    return collate([graph_from_atoms(a, cutoff) for a in atoms])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_is_that_of_training(name, variant, dtype):
    """To rounding: training and programs take the same splines."""
    backbone = small_potential(name, **VARIANTS[variant]).backbone.double()
    program, knots = program_of_training(backbone)
    graph = several_structures(backbone.cutoff)
    expected = TrainingNetwork(backbone).evaluate(graph)[:2]
    assert float(expected[1].abs().max()) > 1e-3
    for chunk in (16, 5, 1):
        found = energies_and_forces(program.as_type(dtype), knots, graph, chunk)
        assert_close(found, expected, 1e-10 if dtype == np.float64 else 1e-5)
        again = energies_and_forces(program.as_type(dtype), knots, graph, chunk, blocks=3)
        for one, two in zip(found, again, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("readout_layers", [1, 3])
@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_readouts(name, readout_layers):
    backbone = small_potential(name, features=24, readout_layers=readout_layers).backbone.double()
    graph = several_structures(backbone.cutoff)
    exact = np.dtype(np.float64)
    network = compiled_network(name, backbone.arguments, weights_of(backbone), exact)
    found = energies_and_forces(network.program, network.knots, graph, 4)
    assert_close(found, results(backbone, graph), 3e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *[(name, {}) for name in NETWORKS],
        ("schnet", {"radial_basis": "bessel", "cutoff_function": "mollifier"}),
        ("painn", {"radial_basis": "bessel", "cutoff_function": "mollifier"}),
        ("tensornet", {"interactions": 0}),
        ("tensornet", {"radial_functions": 2}),
    ],
)
def test_energies_and_forces_are_those_of_the_backbone(name, arguments, dtype):
    """To what splines may be off."""
    backbone = small_potential(name, **arguments).backbone.double()
    kind = np.dtype(dtype)
    network = compiled_network(name, backbone.arguments, weights_of(backbone), kind)
    assert network.program.weights.dtype == kind
    graph = several_structures(backbone.cutoff)
    found = energies_and_forces(network.program, network.knots, graph, 4)
    assert_close(found, results(backbone, graph), 3e-6 if dtype == np.float64 else 1e-5)
