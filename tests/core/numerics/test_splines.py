"""Sampled radial functions: accuracy between the knots, and what cannot be sampled."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ase_biasgrad.numerics.splines import (
    SLOPE_TOLERANCE,
    VALUE_TOLERANCE,
    Knots,
    SplineError,
    evaluate,
    sampled,
)


@settings(max_examples=20, deadline=None)
@given(st.floats(2.0, 8.0), st.floats(0.3, 1.5), st.integers(0, 1000))
@example(cutoff=7.0, width=0.5, seed=5)  # values are off by 2e-6
def test_values_and_slopes_are_within_the_stated_bound(cutoff, width, seed):
    random = np.random.default_rng(seed)
    centres = random.uniform(0, cutoff, 4)

    def function(d):
        envelope = 0.5 * (np.cos(d * np.pi / cutoff) + 1) * (d.real < cutoff)
        return np.exp(-(((d[:, None] - centres) / width) ** 2)) * envelope[:, None]

    table = sampled(function, cutoff, functions=8)
    assert table.slope_error <= SLOPE_TOLERANCE
    d = random.uniform(0, cutoff, 500)
    step = 1e-6
    slopes = (function(d + step) - function(d - step)) / (2 * step)
    value, slope = evaluate(table, d)
    # both are relative to the largest of all channels: values of at most 1, slopes of 2/width
    assert np.abs(value - function(d)).max() < 1.2 * VALUE_TOLERANCE
    assert np.abs(slope - slopes).max() < 1.2 * SLOPE_TOLERANCE * 2 / width


def test_the_slope_is_the_derivative_of_the_value():
    table = sampled(lambda d: np.sin(3 * d)[:, None], 4.0, 8)
    d, step = np.linspace(0.1, 3.9, 200), 1e-6
    numerical = (evaluate(table, d + step)[0] - evaluate(table, d - step)[0]) / (2 * step)
    np.testing.assert_allclose(evaluate(table, d)[1], numerical, atol=1e-7)


def test_a_knot_lies_at_the_cutoff():
    table = sampled(lambda d: ((3.7 - d) ** 2 * (d.real < 3.7))[:, None], 3.7, 8)
    assert (table.knots.count - 1) * table.knots.spacing == pytest.approx(3.7, abs=1e-12)
    assert evaluate(table, np.array([3.7]))[0] == pytest.approx(0.0, abs=1e-12)


def test_bases_that_divide_by_the_distance():
    table = sampled(lambda d: np.sin(2 * d)[:, None] / d[:, None], 5.0, 8)
    assert evaluate(table, np.array([0.0]))[0][0, 0] == pytest.approx(2.0, abs=1e-8)


def test_the_grid_becomes_finer_where_the_first_is_not_enough():
    narrow = sampled(lambda d: np.exp(-(((d - 2) / 0.15) ** 2))[:, None], 5.0, 8)
    assert narrow.knots.count > Knots.for_functions(5.0, 8).count
    assert narrow.value_error < 1e-6


def test_what_is_not_smooth_is_refused():
    with pytest.raises(SplineError, match="not smooth"):
        sampled(lambda d: np.sqrt((d - 1.2345) ** 2)[:, None], 3.0, 8)
    with pytest.raises(SplineError, match="finite cutoff"):
        sampled(lambda d: d[:, None], float("inf"), 8)


def test_quintic_polynomials_are_held_exactly():
    polynomial = np.polynomial.Polynomial([0.3, -1.0, 0.2, 0.7, -0.4, 0.05])

    def function(d):
        return sum(c * d[:, None] ** k for k, c in enumerate(polynomial.coef))

    table = sampled(function, 5.0, 8)
    d = np.linspace(0.01, 4.999, 200)
    values, slopes = evaluate(table, d)
    np.testing.assert_allclose(values[:, 0], polynomial(d), atol=1e-7)
    np.testing.assert_allclose(slopes[:, 0], polynomial.deriv()(d), atol=1e-6)
