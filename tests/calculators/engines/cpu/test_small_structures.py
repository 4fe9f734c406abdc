"""Structures that threads share out: their edges, their shares, and memory that they share."""

import numpy as np
import pytest
from ase.build import bulk
from conftest import small_potential, structure_of
from helpers import as_set, fluid
from hypothesis import given
from hypothesis import strategies as st

from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine
from ase_biasgrad.calculators.engines.cpu.small_structures import joined
from ase_biasgrad.fused.runtime import Candidates
from ase_biasgrad.fused.structures import (
    Structures,
    room_for,
    share_out,
    shared_room_for,
    shares,
    structures_of,
)
from ase_biasgrad.neighbours import neighbour_list
from ase_biasgrad.numerics.threads import fixed_threads
from ase_biasgrad.potential import arrays_of

OPEN = (False, False, False)


def of_sizes(sizes: list[int]) -> Structures:
    """Structures without edges."""
    n = sum(sizes)
    return structures_of(
        np.array(sizes), np.empty((2, 0), np.int64), np.empty((0, 3), np.int32),
        np.zeros(len(sizes) + 1, np.int64), np.ones(n, np.int64), np.zeros((n, 3)),
        np.zeros((len(sizes), 3, 3)),
    )  # fmt: skip


def test_edges_are_those_of_each_structure():
    structures = [structure_of(bulk("Cu")), fluid(30, 1), fluid(1, 0, OPEN), fluid(9, 2, OPEN)]
    lists = [neighbour_list(s.positions, s.cell, s.pbc, 4.0) for s in structures]
    found = joined(structures, lists)
    np.testing.assert_array_equal(found.first_atom, [0, 1, 31, 32, 41])
    images = 0
    for k, edges in enumerate(lists):
        a, b = found.first_atom[k : k + 2]
        c, d = found.first_edge[k : k + 2]
        own = Candidates(
            found.edges.starts[a + k : b + k + 1], found.edges.inners[a:b],
            found.edges.middles[a:b], found.edges.neighbour[c:d], found.edges.shift[c:d],
        )  # fmt: skip
        count = own.starts[-1]  # mirrors within a chunk, here the structure, are left out
        i = np.repeat(np.arange(b - a), np.diff(own.starts))
        rows = as_set(i, own.neighbour[:count], own.shift[:count])
        exact = as_set(edges.centre, edges.neighbour, edges.shift)
        assert rows | {(j, i, *(-x for x in shift)) for i, j, *shift in rows} == exact
        images += sum(i == j for i, j, *_ in exact)
    assert images > 10


@given(st.lists(st.integers(1, 60), min_size=1, max_size=20), st.integers(1, 8))
def test_shares_are_all_structures_once_and_about_as_large(sizes, blocks):
    found = shares(of_sizes(sizes).first_atom, blocks)
    assert [k for a, b in found for k in range(a, b)] == list(range(len(sizes)))
    largest = max(sum(sizes[a:b]) for a, b in found)
    assert largest <= sum(sizes) / blocks + max(sizes)


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_memory_is_that_of_the_largest_of_each_block(blocks):
    (network,) = CpuEngine(
        [arrays_of(small_potential().backbone)], np.dtype("float32"), 0.5
    ).networks
    structures = of_sizes([4, 20, 9, 9, 30, 2])
    own = room_for(structures, network.program, np.dtype("float32"), None)
    shared = shared_room_for(structures, network.program, np.dtype("float32"), blocks, None)
    assert len(set(own.first.tolist())) == 6
    assert share_out(structures, 6, [shared], blocks) == shares(structures.first_atom, blocks)
    assert len(set(shared.first.tolist())) == blocks
    largest = np.diff(own.first)[4]
    assert len(shared.memory) == blocks * largest
    less = of_sizes([4, 20])
    again = shared_room_for(less, network.program, np.dtype("float32"), blocks, shared)
    assert again.memory is shared.memory


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_structures_that_leave_need_no_arrangement(threads):
    engine = CpuEngine([arrays_of(small_potential().backbone)], np.dtype("float64"), 0.5)
    structures = [fluid(n, n, OPEN) for n in (9, 5, 7, 4, 8)]
    with fixed_threads(threads):
        first = engine.evaluate_many(structures)
        there = engine._small._structures
        for count in (4, 2, 1, 3, 5):  # they may come back
            found = engine._small.evaluate(structures[:count])
            for of_all, own in zip(first, found, strict=False):
                np.testing.assert_array_equal(own.energies, of_all.energies)
                np.testing.assert_array_equal(own.forces, of_all.forces)
                np.testing.assert_array_equal(own.strain_gradient, of_all.strain_gradient)
            assert len(found) == count
            if count >= threads:
                assert engine._small._structures is there
            else:  # fewer structures than threads
                there = engine._small.evaluate(structures) and engine._small._structures
