"""Functions of vectors against float64, and NaN that must not be lost."""

import numpy as np
import pytest
from numba import njit

from ase_biasgrad.numerics.simd import WIDTH, load, store
from ase_biasgrad.numerics.simd_activations import (
    exp_negative,
    log1p,
    logistic,
)

NEGATIVE = -np.concatenate([[0.0], np.geomspace(1e-7, 87, 799)]).astype(np.float32)
BOTH = np.concatenate([NEGATIVE, -NEGATIVE])
UNIT = np.concatenate([[0.0], np.geomspace(1e-30, 1, 799)]).astype(np.float32)


def applied(function, x: np.ndarray) -> np.ndarray:
    """A function of vectors on the numbers x, filled up to whole vectors."""

    @njit
    def loop(x, y):
        for k in range(0, x.size, WIDTH):
            store(y, k, function(load(x, k)))

    whole = np.pad(x, (0, -len(x) % WIDTH))
    y = np.full_like(whole, np.nan)
    loop(whole, y)
    return y[: len(x)]


def sigmoid(x):
    return np.exp(-np.logaddexp(0, -x))


@pytest.mark.parametrize(
    ("function", "exact", "x"),
    [(exp_negative, np.exp, NEGATIVE), (log1p, np.log1p, UNIT)],
)
def test_functions_have_all_digits(function, exact, x):
    np.testing.assert_allclose(applied(function, x), exact(x.astype(float)), rtol=3e-7)


def test_logistic_is_exact_to_the_rounding_of_one():
    exact = sigmoid(BOTH.astype(float))
    np.testing.assert_allclose(applied(logistic, BOTH), exact, rtol=0, atol=1.2e-7)


def test_beyond_the_smallest_numbers():
    x = np.array([-88, -100, -1e4, -np.inf] * 2, np.float32)
    np.testing.assert_array_equal(applied(exp_negative, x), np.full(8, np.exp(-87), np.float32))
    x = np.array([100, 1e4, np.inf, 88, -100, -1e4, -np.inf, -88], np.float32)
    np.testing.assert_allclose(applied(logistic, x), [1] * 4 + [0] * 4, atol=1e-37)


@pytest.mark.parametrize("function", [exp_negative, logistic])
def test_nan_stays_nan_where_it_is(function):
    x = np.full(16, -1, np.float32)
    x[3] = np.nan
    np.testing.assert_array_equal(np.isnan(applied(function, x)), np.isnan(x))
