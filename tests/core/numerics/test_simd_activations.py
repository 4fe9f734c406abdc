"""Activation functions and their slopes against float64, and NaN that must not be lost."""

import numpy as np
import pytest

from ase_biasgrad.numerics.simd_activations import shifted_softplus, silu


def logistic(x):
    return np.where(x > 0, 1 / (1 + np.exp(-np.abs(x))), 1 - 1 / (1 + np.exp(-np.abs(x))))


EXACT = {
    shifted_softplus: (lambda x: np.logaddexp(0, x) - np.log(2), logistic),
    silu: (
        lambda x: x * logistic(x),
        lambda x: logistic(x) * (1 + x * (1 - logistic(x))),
    ),
}


@pytest.mark.parametrize("function", EXACT)
def test_values_and_slopes(function):
    random = np.random.default_rng(0)
    x = np.concatenate(
        [random.normal(0, scale, 800) for scale in (1e-6, 1e-2, 1.0, 10.0, 100.0)] + [[0.0] * 8]
    ).astype(np.float32)
    rows, bias = x.reshape(-1, 8).copy(), random.normal(size=8).astype(np.float32)
    slopes = np.empty_like(rows)
    exact = (rows + bias).astype(float)
    function(rows, bias, slopes, 0, len(rows))
    value, slope = EXACT[function]
    assert np.abs(rows - value(exact)).max() < 3e-7 * np.abs(exact).max()
    np.testing.assert_allclose(rows, value(exact), rtol=1e-6, atol=3e-7)
    np.testing.assert_allclose(slopes, slope(exact), atol=1e-6)


@pytest.mark.parametrize("function", EXACT)
def test_nan_stays_nan_and_other_rows_stay(function):
    rows = np.zeros((3, 8), np.float32)
    rows[1, 2] = np.nan
    slopes, bias = np.zeros_like(rows), np.zeros(8, np.float32)
    function(rows, bias, slopes, 1, 2)
    assert np.isnan(rows[1, 2])
    assert np.isnan(slopes[1, 2])
    assert np.isfinite(np.delete(rows[1], 2)).all()
    assert (slopes[[0, 2]] == 0).all()
