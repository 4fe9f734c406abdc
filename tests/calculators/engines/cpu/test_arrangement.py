"""Atoms and edges in memory order: the same edges, and results in the order of the structure."""

import numpy as np
import pytest
from ase.build import bulk
from conftest import small_potential
from helpers import as_set, fluid
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.calculators.engines.base import Structure
from ase_biasgrad.calculators.engines.cpu.arrangement import (
    ARRANGED_FROM,
    SortedEdges,
    arranged,
    put_back,
    z_order,
)
from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine
from ase_biasgrad.fused.runtime import Candidates, atoms_at_once
from ase_biasgrad.neighbours import Edges, neighbour_list
from ase_biasgrad.potential import arrays_of


def shuffled(structure: Structure, seed: int) -> tuple[Structure, np.ndarray]:
    s, order = structure, np.random.default_rng(seed).permutation(len(structure.numbers))
    return Structure(s.numbers[order], s.positions[order], s.cell, s.pbc), order


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.integers(0, 1000), st.tuples(*[st.booleans()] * 3))
def test_the_order_is_a_permutation(n, seed, pbc):
    order = z_order(fluid(n, seed, pbc))
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


def test_the_order_keeps_neighbours_together():
    structure = fluid(2000, 0)
    edges = neighbour_list(structure.positions, structure.cell, structure.pbc, 3.0)
    place = np.empty(2000, int)
    place[z_order(structure)] = np.arange(2000)
    apart = np.abs(place[edges.centre] - place[edges.neighbour])
    assert np.median(apart) < 0.2 * np.median(np.abs(edges.centre - edges.neighbour))


def centres(candidates: Candidates) -> np.ndarray:
    return np.repeat(np.arange(len(candidates.middles)), np.diff(candidates.starts))


def with_mirrors(candidates: Candidates) -> set[tuple[int, ...]]:
    """All directed edges, of which those within a chunk are there once.

    Inner edges come first, then other upper ones, then the lower ones.
    """
    n, i, j, s = len(candidates.middles), centres(candidates), *candidates[3:]
    place = np.arange(len(i))
    inner, upper = place < candidates.inners[i], place < candidates.middles[i]
    chunk = atoms_at_once(n)
    np.testing.assert_array_equal(inner, (i // chunk == j // chunk) & (i != j))
    lower = as_set(i[~upper], j[~upper], s[~upper])
    outer = upper & ~inner
    assert lower == as_set(j[outer], i[outer], -s[outer])
    mirrors = as_set(j[upper], i[upper], -s[upper])
    directed = as_set(i[upper], j[upper], s[upper])
    assert not directed & mirrors
    return directed | mirrors


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, False)])
def test_edges_are_those_of_the_structure(pbc):
    structure = fluid(ARRANGED_FROM + 40, 3, pbc)
    in_order, edges, order = SortedEdges(3.0, 0.5).search(structure)
    np.testing.assert_array_equal(in_order.positions, structure.positions[order])
    np.testing.assert_array_equal(in_order.numbers, structure.numbers[order])
    found = {(order[i], order[j], *s) for i, j, *s in with_mirrors(edges)}
    exact = neighbour_list(structure.positions, structure.cell, structure.pbc, 3.5)
    assert found == as_set(exact.centre, exact.neighbour, exact.shift)
    assert (edges.inners > edges.starts[:-1]).sum() > 20
    assert (edges.middles > edges.inners).sum() > 20


def test_atoms_without_edges():
    far = Structure(np.array([1, 8]), np.array([[0.0, 0, 0], [0, 0, 9]]), np.zeros((3, 3)),
                    np.zeros(3, bool))  # fmt: skip
    none = Edges(np.empty(0, np.int64), np.empty(0, np.int64), np.empty((0, 3), np.int64))
    edges = arranged(none.centre, none.neighbour, none.shift, 2)
    assert edges.starts.tolist() == [0, 0, 0]
    assert edges.inners.tolist() == edges.middles.tolist() == [0, 0]
    assert len(SortedEdges(3.0, 0.5).search(far).structure.numbers) == 2


@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_results_are_in_the_order_of_the_structure(name):
    """Shuffled atoms have shuffled results, and no list of the structure before is used."""
    engine = CpuEngine([arrays_of(small_potential(name).backbone)], np.dtype("float32"), 0.5)
    crystal = bulk("Cu", cubic=True) * (4, 4, 4)
    crystal.rattle(0.1, seed=0)
    numbers = np.random.default_rng(0).choice([1, 6, 8], len(crystal))
    first = Structure(numbers, crystal.positions, crystal.cell.array, np.ones(3, bool))
    assert len(numbers) > ARRANGED_FROM
    one = engine.evaluate(first, True)
    second, order = shuffled(first, 1)
    two = engine.evaluate(second, True)
    scale = np.abs(one.forces).max()
    np.testing.assert_allclose(two.forces, one.forces[:, order], atol=1e-5 * max(scale, 1))
    np.testing.assert_allclose(two.energies, one.energies[:, order], atol=1e-5)
    np.testing.assert_allclose(two.strain_gradient, one.strain_gradient, rtol=1e-4, atol=1e-3)
    assert engine.list.list.list.searches == 2
    few = Structure(numbers[:9], crystal.positions[:9], first.cell, first.pbc)
    assert engine.evaluate(few, True).forces.shape == (1, 9, 3)


def test_a_search_is_needed_only_when_atoms_have_moved_far():
    arranged, s = SortedEdges(3.0, 0.6), fluid(300, 5)
    assert arranged.find(s) is None
    searched = arranged.search(s)
    near = Structure(s.numbers, s.positions + 0.1, s.cell, s.pbc)  # all of them together
    assert arranged.find(near).edges is searched.edges
    np.testing.assert_array_equal(arranged.find(near).structure.numbers, s.numbers[searched.order])
    far = Structure(s.numbers, s.positions + 0.4 * np.eye(300, 3), s.cell, s.pbc)  # three atoms
    assert arranged.find(far) is None
    assert arranged.find(Structure(s.numbers[1:], s.positions[1:], s.cell, s.pbc)) is None
    arranged.reset()
    assert arranged.find(s) is None


def test_values_are_put_back():
    values = np.arange(12.0).reshape(2, 6)
    order = np.array([3, 1, 0, 5, 4, 2])
    np.testing.assert_array_equal(put_back(values[:, order], order), values)
    assert put_back(values, None) is values
