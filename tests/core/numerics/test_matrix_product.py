"""Packed products against NumPy's, wherever inputs and results lie."""

import numpy as np
import pytest

from ase_biasgrad.numerics.matrix_product import (
    ACCUMULATE,
    ADD_BIAS,
    COLUMNS,
    packed,
    padded,
    product,
)
from ase_biasgrad.numerics.simd import WIDTH

TOLERANCES = {np.float64: 1e-14, np.float32: 2e-6}
X, Y = 3 * WIDTH, 10_000  # where inputs and results begin in the memory, not at whole panels
BIAS, PANELS = 8, 168  # where they begin in the weights
ONE = COLUMNS  # the narrowest results


def blocks(rows: np.ndarray, interleaved: int) -> np.ndarray:
    """Rows `(groups, interleaved, width)` as `(groups, width / w, interleaved, w)`."""
    groups, count, width = rows.shape
    return np.moveaxis(rows.reshape(groups, count, width // WIDTH, WIDTH), 1, 2)


def assert_product(
    dtype, depth: int, width: int, groups: int, group: int, interleaved: int = 1, first: int = 0,
    mode: int = 0,
) -> None:  # fmt: skip
    """`group` of `interleaved` rows from `first` on are multiplied; all other numbers stay."""
    random = np.random.default_rng(depth + groups)
    a = random.normal(size=(groups, interleaved, depth)).astype(dtype)
    before = random.normal(size=(groups, interleaved, width)).astype(dtype)
    w, bias = random.normal(size=(depth, width)).astype(dtype), random.normal(size=width)
    memory = np.full(Y + 16_000, 7, dtype)
    memory[X : X + a.size] = blocks(a, interleaved).ravel()
    memory[Y : Y + before.size] = blocks(before, interleaved).ravel()
    weights = np.full(PANELS + w.size, np.nan, dtype)
    weights[PANELS:] = packed(w).ravel()
    weights[BIAS : BIAS + width] = bias
    expected = before.astype(float)
    chosen = np.s_[:, first : first + group]
    expected[chosen] = a[chosen].astype(float) @ w
    if mode & ADD_BIAS:
        expected[chosen] += weights[BIAS : BIAS + width]
    if mode & ACCUMULATE:
        expected[chosen] += before[chosen]
    untouched = memory.copy()
    x, y = X + first * WIDTH, Y + first * WIDTH
    steps = interleaved * depth, interleaved * width
    product(
        memory, weights, x, steps[0], depth, y, steps[1], width, groups * group, group,
        interleaved, PANELS, BIAS, mode,
    )  # fmt: skip
    found = memory[Y : Y + before.size].reshape(groups, width // WIDTH, interleaved, WIDTH)
    np.testing.assert_allclose(
        found, blocks(expected, interleaved), rtol=0, atol=TOLERANCES[dtype] * (depth + 2)
    )
    others = np.setdiff1d(np.arange(interleaved), np.arange(first, first + group))
    kept = blocks(before, interleaved)[:, :, others]
    np.testing.assert_array_equal(found[:, :, others], kept)
    memory[Y : Y + before.size] = untouched[Y : Y + before.size]
    np.testing.assert_array_equal(memory, untouched)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 9, 21])
@pytest.mark.parametrize(("depth", "width"), [(WIDTH, ONE), (5 * WIDTH, 2 * ONE), (128, 128)])
def test_rows(dtype, rows, depth, width):
    assert_product(dtype, depth, width, rows, 1)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("mode", [0, ADD_BIAS, ACCUMULATE, ADD_BIAS | ACCUMULATE])
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_bias_and_accumulation(dtype, mode, rows):
    assert_product(dtype, 3 * WIDTH, 2 * ONE, rows, 1, mode=mode)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("mode", [0, ADD_BIAS | ACCUMULATE])
@pytest.mark.parametrize(
    ("group", "interleaved", "first"), [(3, 3, 0), (1, 9, 0), (3, 9, 1), (5, 9, 4)]
)
@pytest.mark.parametrize("groups", [1, 4])
def test_groups_among_interleaved_rows(dtype, mode, groups, group, interleaved, first):
    assert_product(dtype, 2 * WIDTH, 2 * ONE, groups, group, interleaved, first, mode)


def test_no_rows():
    assert_product(np.float64, 2 * WIDTH, ONE, 0, 1)


def test_packed_weights():
    w = np.arange(3 * 2 * 2.0 * ONE).reshape(3, 2, 2 * ONE)
    panels = packed(w)
    assert panels.shape == (3, 2, 2, COLUMNS)
    np.testing.assert_array_equal(panels[1, 1, 0], w[1, 0, COLUMNS:])


def test_widths_are_padded_to_panels():
    assert [padded(n) for n in (1, ONE, ONE + 1, 128)] == [ONE, ONE, 2 * ONE, 128]
