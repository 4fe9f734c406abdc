"""Places of variables in a program's memory, over random programs."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.fused.operations import Place, locate
from ase_biasgrad.fused.program import Program, widened
from ase_biasgrad.fused.runtime import (
    CHUNKS,
    LARGEST,
    SMALLEST,
    Compiled,
    atoms_at_once,
    numbers_needed,
)
from ase_biasgrad.numerics.matrix_product import COLUMNS, packed

WIDTHS = (8, 16, 32, 80)


@st.composite
def programs(draw) -> tuple[list[int], list[tuple[bool, list[int]]]]:
    """Widths of variables, and which of them each step uses; True if it begins a segment."""
    widths = draw(st.lists(st.sampled_from(WIDTHS), min_size=1, max_size=12))
    used = st.lists(st.integers(0, len(widths) - 1), min_size=1, max_size=4, unique=True)
    return widths, draw(st.lists(st.tuples(st.booleans(), used), min_size=1, max_size=25))


def built(widths: list[int], steps: list[tuple[bool, list[int]]]) -> Compiled:
    p = Program()
    variables = [p.variable(width) for width in widths]
    p.weight(np.zeros(1))
    for begins, operands in steps:
        emit = p.emit_messages if begins else p.emit
        emit(len(operands), *(variables[k] for k in operands))
    return p.finish()


def executed(compiled: Compiled, n: int, chunk: int, blocks: int):
    """Steps in the order in which they run, each with its atoms."""
    for first, last in compiled.segments:
        for block in range(blocks):
            local = compiled.kept * n + compiled.local * chunk * block
            starts = range(0, n, chunk)
            for atom in starts[block * len(starts) // blocks : (block + 1) * len(starts) // blocks]:
                for step in range(first, last):
                    yield step, Place(n, atom, min(chunk, n - atom), local, chunk)


@settings(max_examples=200, deadline=None)
@given(programs(), st.integers(1, 9), st.integers(1, 4), st.integers(1, 3))
def test_no_variable_is_overwritten_while_it_is_used(program, n, chunk, blocks):
    """The first step of a variable writes it; all later ones find what was written.

    A step that begins a segment reads the variables of segments before for all atoms.
    """
    widths, steps = program
    compiled = built(widths, steps)
    memory = np.full(compiled.kept * n + compiled.local * chunk * blocks, -1)
    segment = np.cumsum([begins for begins, _ in steps])
    users = [[s for s, (_, used) in enumerate(steps) if k in used] for k in range(len(widths))]
    for s, place in executed(compiled, n, chunk, blocks):
        row, (begins, operands) = compiled.instructions[s], steps[s]
        assert row[0] == len(operands)
        for at, k in zip(range(1, 2 * len(operands), 2), operands, strict=True):
            assert row[at + 1] == widths[k]
            several = segment[users[k][0]] != segment[users[k][-1]]
            assert (row[at] >= 0) == several  # kept, or local
            start, first, count = locate(row, at, place), place.first, place.size
            if begins and segment[users[k][0]] < segment[s]:
                start, first, count = row[at] * n, 0, n
            assert 0 <= start <= len(memory) - count * widths[k]
            numbers = memory[start : start + count * widths[k]].reshape(count, -1)
            expected = 100 * np.arange(first, first + count)[:, None] + k
            if s == users[k][0]:
                numbers[:] = expected
            assert (numbers == expected).all()


def test_variables_share_room_when_they_live_at_different_times():
    steps = [(False, [0, 1]), (False, [1, 2]), (False, [2, 3]), (False, [3, 4])]
    assert built([16] * 5, steps).local == 32
    across = [(True, [0, 1]), (True, [1, 2]), (True, [2, 3]), (True, [3, 4])]
    compiled = built([16] * 5, across)  # the first and the last are local
    assert (compiled.kept, compiled.local) == (32, 16)


def test_chunks_hold_all_atoms_of_a_molecule_and_a_share_of_many():
    assert [atoms_at_once(n) for n in (1, 21, SMALLEST - 1)] == [1, 21, SMALLEST - 1]
    assert atoms_at_once(SMALLEST) == atoms_at_once(CHUNKS * SMALLEST) == SMALLEST
    assert atoms_at_once(CHUNKS * 100 - 1) == 100
    assert atoms_at_once(10**6) == LARGEST
    compiled = built([16, 32], [(False, [0, 1]), (True, [1])])
    assert numbers_needed(compiled, 1000, 3) == 32 * 1000 + 16 * atoms_at_once(1000) * 3


def test_widened_arrays_have_whole_panels():
    array = np.arange(2 * 3 * 5.0).reshape(2, 15)
    wide = widened(array, (3, 5))
    assert wide.shape == (2, 3 * COLUMNS)
    np.testing.assert_array_equal(wide.reshape(2, 3, COLUMNS)[:, :, :5], array.reshape(2, 3, 5))
    assert wide.sum() == array.sum()
    more = COLUMNS + 1
    assert widened(np.ones((5, 2 * more)), (1, 5), (2, more)).shape == (COLUMNS, 4 * COLUMNS)
    whole = np.ones((2, COLUMNS))
    np.testing.assert_array_equal(widened(whole, (1, COLUMNS)), whole)


def test_weights_begin_at_whole_panels():
    p = Program()
    p.emit(0, p.variable(COLUMNS))
    matrix = np.arange(32.0 * COLUMNS).reshape(16, 2 * COLUMNS)
    places = [p.weight(np.ones(3)), p.weight(np.ones((2, 8))), p.matrix(matrix)]
    assert places == [0, COLUMNS, 2 * COLUMNS]
    weights = p.finish().weights
    np.testing.assert_array_equal(weights[2 * COLUMNS :].reshape(2, 16, COLUMNS), packed(matrix))
