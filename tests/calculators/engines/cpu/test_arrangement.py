"""Atoms and pairs in memory order: the same pairs, and results in the order of the structure."""

import numpy as np
import pytest
from ase.build import bulk
from conftest import small_potential
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.calculators.engines.base import Structure
from ase_biasgrad.calculators.engines.cpu import arrangement
from ase_biasgrad.calculators.engines.cpu.arrangement import (
    ARRANGED_FROM,
    SortedPairs,
    put_back,
    z_order,
)
from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine
from ase_biasgrad.neighbours import half, neighbour_list


def fluid(n: int, seed: int, pbc=(True, True, True), sheared: bool = True) -> Structure:
    random = np.random.default_rng(seed)
    side = (n / 0.08) ** (1 / 3)
    cell = side * (np.eye(3) + sheared * np.triu(random.uniform(-0.3, 0.3, (3, 3)), 1))
    positions = random.uniform(-0.5, 1.5, (n, 3)) @ cell  # some outside of the cell
    return Structure(random.choice([1, 6, 8], n), positions, cell, np.array(pbc))


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


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, False)])
def test_pairs_are_those_of_the_structure(pbc):
    structure = fluid(ARRANGED_FROM + 40, 3, pbc)
    arranged, pairs, order = SortedPairs(3.0, 0.5).search(structure)
    np.testing.assert_array_equal(arranged.positions, structure.positions[order])
    np.testing.assert_array_equal(arranged.numbers, structure.numbers[order])
    once = half(neighbour_list(structure.positions, structure.cell, structure.pbc, 3.5))
    expected = {
        key
        for i, j, s in zip(once.i.tolist(), once.j.tolist(), once.shift.tolist(), strict=True)
        for key in ((i, j, *s), (j, i, *(-k for k in s)))
    }
    ours = list(zip(order[pairs.i].tolist(), order[pairs.j].tolist(), pairs.shift.tolist(),
                    strict=True))  # fmt: skip
    assert len(ours) == len(once.i)
    mirrored = [(j, i, *(-k for k in s)) for i, j, s in ours]
    assert {(i, j, *s) for i, j, s in ours} | set(mirrored) == expected


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_results_are_in_the_order_of_the_structure(name):
    """Shuffled atoms have shuffled results, and no list of the structure before is used."""
    engine = CpuEngine([small_potential(name).backbone], 0.5)
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
    arranged, s = SortedPairs(3.0, 0.6), fluid(300, 5)
    assert arranged.find(s) is None
    searched = arranged.search(s)
    near = Structure(s.numbers, s.positions + 0.1, s.cell, s.pbc)  # all of them together
    assert arranged.find(near).pairs is searched.pairs
    np.testing.assert_array_equal(arranged.find(near).structure.numbers, s.numbers[searched.order])
    far = Structure(s.numbers, s.positions + 0.4 * np.eye(300, 3), s.cell, s.pbc)  # three atoms
    assert arranged.find(far) is None
    assert arranged.find(Structure(s.numbers[1:], s.positions[1:], s.cell, s.pbc)) is None
    arranged.reset()
    assert arranged.find(s) is None


def test_pairs_are_ordered_by_length_in_blocks(monkeypatch):
    """Sorting in several goes loses no pair."""
    monkeypatch.setattr(arrangement, "AT_ONCE", 3 * arrangement.TOGETHER)
    s = fluid(300, 6)
    edges = neighbour_list(s.positions, s.cell, s.pbc, 4.0)
    pairs, before = half(edges), half(edges)
    arrangement.by_length(pairs, s)
    vectors = s.positions[pairs.j] - s.positions[pairs.i] + pairs.shift @ s.cell
    lengths, block = np.linalg.norm(vectors, axis=1), pairs.i // arrangement.TOGETHER
    assert (np.diff(block) >= 0).all()
    within = np.diff(block) == 0
    assert np.diff(lengths)[within].min() > -4.0 / (arrangement.LENGTHS - 1) - 1e-9
    rows = [np.column_stack([p.i, p.j, p.shift]) for p in (pairs, before)]
    np.testing.assert_array_equal(*(np.unique(r, axis=0) for r in rows))
    assert len(rows[0]) == len(np.unique(rows[0], axis=0))


def test_values_are_put_back():
    values = np.arange(12.0).reshape(2, 6)
    order = np.array([3, 1, 0, 5, 4, 2])
    np.testing.assert_array_equal(put_back(values[:, order], order), values)
    assert put_back(values, None) is values
