"""Weights by distance: the original's definition, entry for entry, and derivatives."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from conftest import copper, ethanol
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.differentiable_graph import (
    cutoff_adjacency,
    exp_decay,
    inverse_square,
    smooth_envelope,
    weights_cutoff,
    within_neighbour_limit,
)
from ase_biasgrad.graph import AtomGraph, collate, graph_from_arrays, graph_from_atoms


def edges_of(graph: AtomGraph, cutoff: float) -> tuple[torch.Tensor, ...]:
    """Centre, neighbour and distance of the edges shorter than `cutoff`."""
    distances = graph.edge_vectors().norm(dim=1)
    near = distances.detach() < cutoff
    return (*graph.edge_index[:, near], distances[near])


def as_in_the_original(i, j, distances, max_neighbors, decay) -> np.ndarray:
    """The loop of AtomGraphs.jl, on NumPy float64."""
    n = max(i) + 1
    count, longest, weights = [0] * n, [0.0] * n, np.zeros((n, n))
    for k in np.argsort(distances, kind="stable"):
        centre, d = i[k], distances[k]
        tie = abs(longest[centre] - d) <= np.sqrt(np.finfo(float).eps) * max(longest[centre], d)
        if count[centre] < max_neighbors or tie:
            weights[centre, j[k]] += decay(d)
            longest[centre] = d
            count[centre] += 1
    weights = 0.5 * (weights + weights.T)
    return weights / weights.max()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_weights_are_those_of_the_original_loop(data):
    n = data.draw(st.integers(1, 5))
    atoms = st.integers(0, n - 1)
    # few lengths make ties; some differ by less and by more than the tolerance for ties
    lengths = st.sampled_from([1.0, 1.0 + 1e-9, 1.0 + 1e-7, 1.5, 2.0, 2.0 - 3e-8, 3.0])
    edges = data.draw(st.lists(st.tuples(atoms, atoms, lengths), min_size=1, max_size=40))
    i, j = np.array([e[0] for e in edges]), np.array([e[1] for e in edges])
    distances = np.array([e[2] for e in edges])
    size = max(i.max(), j.max()) + 1
    i, j, distances = np.append(i, size - 1), np.append(j, 0), np.append(distances, 2.5)
    limit = data.draw(st.integers(1, 8))
    for ours, theirs in ((inverse_square, lambda d: d**-2), (exp_decay, lambda d: np.exp(-d))):
        expected = as_in_the_original(i, j, distances, limit, theirs)
        got = weights_cutoff(
            torch.tensor(i), torch.tensor(j), torch.tensor(distances), limit, decay=ours
        )
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("n", [5, 1000])
def test_the_regression_vector_of_the_original_discussion(n):
    random = np.random.default_rng(n)
    distances = torch.tensor(random.uniform(1, 9, n), requires_grad=True)
    own = torch.arange(n)
    (gradient,) = torch.autograd.grad(weights_cutoff(own, own, distances).sum(), distances)
    d = distances.detach().numpy()
    m = int(d.argmin())
    expected = -2 * d[m] ** 2 / d**3
    expected[m] = sum(2 * d[m] / d[k] ** 2 for k in range(n) if k != m)
    np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-12)


def test_the_l12_crystal_of_the_originals_tests():
    # HoPt3 (mp-195): all twelve neighbours of each atom at one distance
    atoms = Atoms("HoPt3", cell=[4.1] * 3, pbc=True)
    atoms.set_scaled_positions([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    weights = weights_cutoff(*edges_of(graph_from_atoms(atoms, 8.0), 8.0))
    np.testing.assert_allclose(weights.numpy(), 1 - np.eye(4), atol=1e-12)


def test_whole_shells_are_accepted_and_images_of_an_atom_count_on_the_diagonal():
    centre, neighbour, distances = edges_of(graph_from_atoms(bulk("Cu"), 5.0), 5.0)
    shells = {1: 12, 7: 12, 12: 12, 13: 18, 18: 18, 19: 42}
    for limit, expected in shells.items():
        assert int(within_neighbour_limit(centre, distances, limit).sum()) == expected
    assert weights_cutoff(centre, neighbour, distances).tolist() == [[1.0]]
    # twelve images at 2.55 Å in one entry, against none elsewhere
    atoms = Atoms("CuAu", cell=bulk("Cu").cell, pbc=True, positions=[[0, 0, 0], [0.1, 0.2, 1.8]])
    weights = weights_cutoff(*edges_of(graph_from_atoms(atoms, 8.0), 8.0))
    assert float(weights.max()) == 1
    assert float(weights.diagonal().min()) > 0


@pytest.mark.parametrize("decay", [inverse_square, exp_decay])
def test_gradcheck_in_distances_positions_and_cell(decay):
    graph = graph_from_atoms(copper(), 4.0)
    centre, neighbour, distances = edges_of(graph, 4.0)
    few = torch.randperm(len(centre), generator=torch.Generator().manual_seed(0))[:40]
    assert torch.autograd.gradcheck(
        lambda d: weights_cutoff(centre[few], neighbour[few], d, 4, decay, n_atoms=4),
        distances[few].requires_grad_(),
    )

    def weights(positions, cell):
        return weights_cutoff(*edges_of(graph.with_geometry(positions, cell), 4.0), 12, decay).sum(
            dim=1
        )

    inputs = (graph.positions.requires_grad_(), graph.cell.requires_grad_())
    assert torch.autograd.gradcheck(weights, inputs)
    assert torch.autograd.gradgradcheck(weights, inputs)


def test_a_perfect_crystal_gets_a_symmetric_derivative():
    # all distances tie, and so do all largest entries
    graph = graph_from_atoms(bulk("Cu", cubic=True) * (2, 2, 2), 4.0)
    positions = graph.positions.requires_grad_()
    moved = graph.with_geometry(positions, graph.cell)
    weights_cutoff(*edges_of(moved, 4.0)).square().sum().backward()
    assert float(positions.grad.abs().max()) < 1e-12


def test_a_batch_is_blocks_each_with_its_own_largest_entry():
    graphs = [graph_from_atoms(atoms, 4.0) for atoms in (ethanol(), copper(), Atoms("O"))]
    batch = collate(graphs)
    adjacency = cutoff_adjacency(*edges_of(batch, 4.0), batch.batch, 5)
    alone = [weights_cutoff(*edges_of(g, 4.0), 5, n_atoms=len(g.numbers)) for g in graphs]
    torch.testing.assert_close(adjacency.dense(), torch.block_diag(*alone), rtol=0, atol=1e-14)
    torch.testing.assert_close(adjacency.sparse().to_dense(), adjacency.dense())
    assert torch.equal(adjacency.dense(), adjacency.dense().T)


def test_atoms_without_edges_have_weight_zero():
    graph = graph_from_arrays([8, 8], np.array([[0, 0, 0], [0, 0, 90.0]]), 5.0)
    assert weights_cutoff(*edges_of(graph, 5.0), n_atoms=2).tolist() == [[0, 0], [0, 0]]
    nothing = torch.zeros(0, dtype=torch.int64)
    assert weights_cutoff(nothing, nothing, torch.zeros(0)).shape == (0, 0)


def test_bad_edges_are_named():
    index = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="edge 1 from atom 1 to atom 0"):
        weights_cutoff(index, index.flip(0), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="2, 2 and 1"):
        weights_cutoff(index, index, torch.ones(1))
    with pytest.raises(ValueError, match="max_neighbors=0"):
        weights_cutoff(index, index, torch.ones(2), max_neighbors=0)


def test_the_envelope_leaves_with_no_slope_nor_curvature():
    d = torch.tensor([1e-9, 2.0, 3.0 - 1e-4, 3.0, 4.0], dtype=torch.float64, requires_grad=True)
    values = smooth_envelope(d, 3.0)
    (slope,) = torch.autograd.grad(values.sum(), d, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), d)
    assert float(values[0].detach()) == pytest.approx(1)
    assert values[3:].tolist() == [0, 0]
    assert slope[3:].abs().max() < 1e-15
    assert abs(float(curvature[2])) < 2e-3
    assert float(slope[1]) < -0.3
