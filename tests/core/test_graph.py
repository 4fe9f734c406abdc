"""Graphs: edges, batches and sums over structures."""

import dataclasses

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import copper, ethanol
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.graph import (
    collate,
    forward_edges,
    graph_from_arrays,
    graph_from_atoms,
    pairs_within,
    sum_per_structure,
)


def edges_of(graph) -> set[tuple[int, ...]]:
    return {tuple(row) for row in torch.cat([graph.edge_index, graph.edge_shift.T]).T.tolist()}


def test_edge_vectors_point_from_centre_to_the_image_of_the_neighbour():
    atoms = copper()
    graph = graph_from_atoms(atoms, 4.0)
    vectors = graph.edge_vectors().numpy()
    for k in range(0, len(vectors), 7):
        centre, neighbour = graph.edge_index[:, k].tolist()
        shift = graph.edge_shift[k].numpy() @ atoms.cell.array
        expected = atoms.positions[neighbour] + shift - atoms.positions[centre]
        np.testing.assert_allclose(vectors[k], expected, atol=1e-12)
    assert np.linalg.norm(vectors, axis=1).max() < 4.0
    assert len(vectors) > 50


def test_every_edge_has_its_reverse():
    edges = edges_of(graph_from_atoms(copper(), 4.0))
    assert {(j, i, -a, -b, -c) for i, j, a, b, c in edges} == edges


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["ethanol", "copper", "none", "atom"]), min_size=1, max_size=5))
def test_a_batch_holds_its_graphs_in_order(names):
    make = {"ethanol": ethanol, "copper": copper, "none": Atoms, "atom": lambda: Atoms("O")}
    graphs = [graph_from_atoms(make[name](), 4.0) for name in names]
    batch = collate(graphs)
    assert batch.n_structures == len(names)
    assert batch.batch.bincount(minlength=len(names)).tolist() == [len(g.numbers) for g in graphs]
    assert torch.equal(batch.numbers, torch.cat([g.numbers for g in graphs]))
    vectors = torch.cat([g.edge_vectors() for g in graphs])
    torch.testing.assert_close(batch.edge_vectors(), vectors, rtol=0, atol=1e-12)
    # no edge joins two structures
    assert torch.equal(*batch.batch[batch.edge_index])
    atoms = sum_per_structure(torch.ones(len(batch.numbers)), batch)
    assert atoms.tolist() == [len(g.numbers) for g in graphs]


def test_positions_are_float64_copies_and_edges_at_hand_are_taken():
    atoms = ethanol()
    graph = graph_from_arrays(atoms.numbers, atoms.positions.astype(np.float32), 4.0)
    assert graph.positions.dtype == graph.cell.dtype == torch.float64
    original = graph_from_atoms(atoms, 4.0)
    atoms.positions[0] += 1.0
    assert original.positions[0, 0] != pytest.approx(atoms.positions[0, 0])


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
    for one, two in zip(pairs_within(known, np.inf), pairs_within(graph, np.inf), strict=True):
        assert torch.equal(one, two)
    broken = dataclasses.replace(
        graph, edge_index=graph.edge_index[:, 1:], edge_shift=graph.edge_shift[1:]
    )
    with pytest.raises(ValueError, match="every edge needs its reverse"):
        pairs_within(broken, np.inf)
