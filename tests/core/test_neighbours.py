"""Neighbour lists against ASE's and brute force; the skin list against fresh ones."""

from unittest import mock

import numpy as np
import pytest
from ase.neighborlist import primitive_neighbor_list
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad import neighbours
from ase_biasgrad.neighbours import (
    Structure,
    VerletList,
    complete_cell,
    neighbour_list,
    pairs_within,
)

PBC = st.tuples(st.booleans(), st.booleans(), st.booleans())


def random_cell(random: np.random.Generator, size: float) -> np.ndarray:
    cell = np.diag(random.uniform(0.7, 1.3, 3) * size) + random.normal(0, 0.15 * size, (3, 3))
    return cell[random.permutation(3)]  # left-handed ones too


def as_set(edges) -> set[tuple[int, ...]]:
    columns = np.column_stack([edges.centre, edges.neighbour, edges.shift])
    assert len(np.unique(columns, axis=0)) == len(columns)
    return {tuple(row) for row in columns.tolist()}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), PBC, st.floats(1.5, 6.0), st.floats(1.0, 5.0))
def test_pairs_equal_those_of_ase(seed, n, pbc, size, cutoff):
    random = np.random.default_rng(seed)
    cell, pbc = random_cell(random, size), np.array(pbc)
    # atoms outside of the cell, on purpose
    positions = random.uniform(-1.5, 2.5, (n, 3)) @ cell
    # ASE's list counts on right-handed cells with volume as well, but reports the same pairs
    i, j, shift = primitive_neighbor_list(
        "ijS", pbc, cell, positions, cutoff, self_interaction=False
    )
    expected = {(*pair, *s) for pair, s in zip(zip(i, j, strict=True), shift.tolist(), strict=True)}
    assert as_set(pairs_within(positions, cell, pbc, cutoff)) == expected


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([(False, False, False), (True, False, False), (False, True, True)]),
    st.floats(1.0, 9.0),
    st.sampled_from([1, 100, neighbours.MOST_BINS]),
)
def test_atoms_that_flew_away_lose_and_invent_no_pair(seed, pbc, exponent, most_bins):
    random, pbc, cutoff = np.random.default_rng(seed), np.array(pbc), 3.0
    cell = np.diag([7.0, 8.0, 9.0])  # wider than two cutoffs: one image of each pair at most
    positions = random.uniform(0, 1, (20, 3)) @ cell
    away = random.normal(0, 10.0**exponent, (3, 3)) * ~pbc
    positions[:6] += np.repeat(away, 2, axis=0)  # three pairs, each flying together
    vectors = positions[None] - positions[:, None]
    vectors -= np.round(vectors / np.diag(cell)) * np.diag(cell) * pbc
    distances = np.linalg.norm(vectors, axis=2)
    expected = {tuple(p) for p in np.argwhere((distances < cutoff) & ~np.eye(20, dtype=bool))}
    with mock.patch.object(neighbours, "MOST_BINS", most_bins):
        found = pairs_within(positions, cell, pbc, cutoff)
    assert {edge[:2] for edge in as_set(found)} == expected
    assert len(found) == len(expected)


def test_edge_vectors_are_shorter_than_the_cutoff_and_come_in_pairs():
    random = np.random.default_rng(1)
    cell = random_cell(random, 4.0)
    positions = random.uniform(-1, 2, (8, 3)) @ cell
    edges = neighbour_list(positions, cell, np.array([True, True, False]), 5.0)
    vectors = edges.vectors(positions, cell)
    assert len(edges) > 50
    assert np.linalg.norm(vectors, axis=1).max() < 5.0
    assert np.abs(vectors.sum(axis=0)).max() < 1e-9


def test_slab_with_a_zero_cell_vector_and_single_atom_with_self_images():
    cell = np.diag([2.5, 2.5, 0.0])
    edges = neighbour_list(np.zeros((1, 3)), cell, np.array([True, True, False]), 2.6)
    assert as_set(edges) == {(0, 0, *s) for s in [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)]}


def test_small_molecules_get_all_pairs_and_large_ones_a_list():
    far = np.arange(3)[:, None] * np.array([[100.0, 0, 0]])
    assert len(neighbour_list(far, np.zeros((3, 3)), np.zeros(3, bool), 5.0)) == 6
    line = np.arange(40)[:, None] * np.array([[2.0, 0, 0]])
    edges = neighbour_list(line, np.zeros((3, 3)), np.zeros(3, bool), 5.0)
    assert len(edges) == 2 * (39 + 38)


def test_bad_input_is_named():
    positions = np.zeros((2, 3))
    positions[1, 1] = np.nan
    with pytest.raises(ValueError, match="atom 1 is not finite"):
        neighbour_list(positions, np.eye(3), np.ones(3, bool), 2.0)
    with pytest.raises(ValueError, match="skin"):
        VerletList(3.0, np.inf)
    with pytest.raises(ValueError, match="linearly independent"):
        complete_cell(np.diag([1.0, 0.0, 1.0]), np.ones(3, bool))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), PBC, st.sampled_from([0.0, 0.3, 1.0]))
def test_skin_list_stays_exact_under_any_change(seed, pbc, skin):
    random = np.random.default_rng(seed)
    pbc, n = np.array(pbc), 34  # more than ALL_PAIRS_UP_TO
    cell = random_cell(random, 7.0)
    positions, numbers = random.uniform(0, 1, (n, 3)) @ cell, random.integers(1, 9, n)
    skin_list = VerletList(3.0, skin)
    for _ in range(12):
        change = random.integers(6)
        if change == 0:
            positions = positions + random.normal(0, 0.4, positions.shape)
        elif change == 1:  # as in NPT: cell and atoms together
            strain = np.eye(3) + random.normal(0, 0.01, (3, 3))
            cell, positions = cell @ strain, positions @ strain
        elif change == 2:
            cell = cell @ (np.eye(3) + random.normal(0, 0.02, (3, 3)))
        elif change == 3:
            pbc = random.random(3) < 0.5
        elif change == 4:
            keep = random.permutation(len(numbers))[: random.integers(33, len(numbers) + 1)]
            positions, numbers = positions[keep], numbers[keep]
        positions = positions + random.normal(0, 0.03, positions.shape)
        fresh = neighbour_list(positions, cell, pbc, 3.0)
        assert as_set(skin_list.edges(Structure(numbers, positions, cell, pbc))) == as_set(fresh)


def test_skin_saves_searches():
    random = np.random.default_rng(0)
    positions, cell = random.uniform(0, 8, (40, 3)), np.eye(3) * 8
    skin_list = VerletList(3.0, 0.5)
    for _ in range(20):
        positions = positions + random.normal(0, 0.005, positions.shape)
        cell = cell * 1.0005
        positions = positions * 1.0005
        skin_list.edges(Structure(np.ones(40), positions, cell, np.ones(3, bool)))
    assert skin_list.searches < 5
