"""Closed forms of the bias against search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ase_biasgrad import bias_fits

RESIDUALS = arrays(np.float64, st.integers(1, 30), elements=st.floats(-0.2, 0.2))


@given(RESIDUALS)
def test_mean_and_median_minimise_their_losses(residuals):
    grid = np.concatenate([np.linspace(-0.2, 0.2, 101), residuals])
    square = ((residuals - bias_fits.mean(residuals)) ** 2).sum()
    absolute = np.abs(residuals - bias_fits.median(residuals)).sum()
    assert square <= ((residuals[:, None] - grid) ** 2).sum(axis=0).min() + 1e-12
    assert absolute <= np.abs(residuals[:, None] - grid).sum(axis=0).min() + 1e-12


@given(RESIDUALS)
def test_efwt_window_holds_as_many_frames_as_any(residuals):
    b = bias_fits.efwt_window(residuals)
    held = (np.abs(residuals - b) < bias_fits.ENERGY_WITHIN).sum()
    edges = np.concatenate([residuals - 0.02 + 1e-9, residuals, residuals + 0.02 - 1e-9])
    best = max((np.abs(residuals - edge) < bias_fits.ENERGY_WITHIN).sum() for edge in edges)
    assert held == best


@given(RESIDUALS, st.integers(0, 2**30))
def test_frames_of_several_formula_units_minimise_the_same_losses(residuals, seed):
    m = np.random.default_rng(seed).integers(1, 9, len(residuals))
    residuals = m * -3.5 + residuals
    grid = np.concatenate([np.linspace(-3.8, -3.2, 101), residuals / m])
    differences = np.abs(residuals[:, None] - m[:, None] * grid)
    left = {
        fit: np.abs(residuals - m * fit(residuals, m)) for fit in (bias_fits.mean, bias_fits.median)
    }
    assert (left[bias_fits.mean] ** 2).sum() <= (differences**2).sum(axis=0).min() + 1e-12
    assert left[bias_fits.median].sum() <= differences.sum(axis=0).min() + 1e-12
    held = np.abs(residuals - m * bias_fits.efwt_window(residuals, m)) < bias_fits.ENERGY_WITHIN
    edges = np.concatenate([(residuals + side * 0.0199999) / m for side in (-1, 0, 1)])
    best = (np.abs(residuals[:, None] - m[:, None] * edges) < bias_fits.ENERGY_WITHIN).sum(axis=0)
    assert held.sum() >= best.max()


def test_efwt_window_counts_only_frames_with_good_forces():
    residuals = np.array([0.0, 0.001, 0.002, 1.0, 1.001])
    assert bias_fits.efwt_window(residuals) == 0.002
    good = np.array([False, False, False, True, True])
    b = bias_fits.efwt_window(residuals, forces_within=good)
    assert (np.abs(residuals - b) < bias_fits.ENERGY_WITHIN).tolist() == good.tolist()


def held(residuals: np.ndarray, b: float) -> int:
    return int((np.abs(residuals - b) < bias_fits.ENERGY_WITHIN).sum())


@given(RESIDUALS, st.integers(0, 2**30), st.sampled_from([0.0, 0.1, 0.5, 1.0]))
def test_efwt_window_is_the_best_of_all_biases_by_three_criteria(residuals, seed, share):
    good = np.random.default_rng(seed).random(len(residuals)) < share
    median = np.median(residuals)

    def merit(b: float) -> tuple[int, int, float]:
        return held(residuals[good], b), held(residuals, b), -abs(b - median)

    found = merit(bias_fits.efwt_window(residuals, forces_within=good))
    edges = np.concatenate([residuals - 0.02 + 1e-9, residuals, residuals + 0.02 - 1e-9])
    for b in (*edges, *np.linspace(-0.22, 0.22, 45), median):
        held_good, held_all, nearness = merit(b)
        assert (held_good, held_all, nearness - 1e-8) <= found


def test_few_frames_with_good_forces_do_not_pull_the_efwt_window_away():
    random, found, middles = np.random.default_rng(0), [], []
    for _ in range(200):
        residuals = random.normal(0, 0.01, 1000)
        good = np.zeros(1000, bool)
        good[random.integers(0, 1000, 3)] = True
        found.append(bias_fits.efwt_window(residuals, forces_within=good))
        middles.append(0.5 * (residuals[good].min() + residuals[good].max()))
        assert held(residuals[good], found[-1]) >= held(residuals[good], middles[-1])
    # as good for these three, and nearer to the 0 that all frames tell
    assert np.std(found) < 0.5 * np.std(middles)


def test_least_squares_is_of_minimum_norm_and_tells_the_rank():
    # CH4O and C2H6O: two compositions, three elements
    counts = np.array([[4, 1, 1], [6, 2, 1]] * 5, float)
    true = np.array([-13.0, -1000.0, -2000.0])
    fit = bias_fits.least_squares(counts @ true, counts)
    assert fit.rank == 2
    np.testing.assert_allclose(counts @ fit.values, counts @ true, rtol=1e-12)
    null = np.linalg.svd(counts)[2][-1]
    assert abs(null @ fit.values) < 1e-9 * np.linalg.norm(true)


def test_least_absolute_deviation_ignores_outliers():
    random = np.random.default_rng(0)
    counts = random.integers(0, 8, (60, 3)).astype(float)
    true = np.array([-13.6, -1030.0, -2040.0])
    residuals = counts @ true
    residuals[:10] += 50.0
    fit = bias_fits.least_absolute_deviation(residuals, counts)
    np.testing.assert_allclose(fit.values, true, atol=1e-5)
    assert np.abs(bias_fits.least_squares(residuals, counts).values - true).max() > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_least_absolute_deviation_agrees_with_the_primal_programme(seed):
    from scipy.optimize import linprog

    random = np.random.default_rng(seed)
    counts = random.integers(0, 6, (40, 3)).astype(float)
    residuals = counts @ [-13.0, -1000.0, 2.0] + random.standard_t(1, 40)
    one = np.eye(40)
    primal = linprog(
        np.concatenate([np.zeros(3), np.ones(80)]),
        A_eq=np.hstack([counts, one, -one]),
        b_eq=residuals,
        bounds=[(None, None)] * 3 + [(0, None)] * 80,
    )
    fit = bias_fits.least_absolute_deviation(residuals, counts)
    assert absolute_loss(residuals, counts, fit.values) == pytest.approx(primal.fun, abs=1e-6)


def test_least_absolute_deviation_of_one_element_is_the_median():
    residuals = np.random.default_rng(0).normal(size=31)
    fit = bias_fits.least_absolute_deviation(residuals, np.ones((31, 1)))
    assert abs(fit.values[0] - np.median(residuals)) < 1e-7


def absolute_loss(residuals: np.ndarray, counts: np.ndarray, values: np.ndarray) -> float:
    return float(np.abs(residuals - counts @ values).sum())


@pytest.mark.parametrize("seed", range(5))
def test_no_step_lowers_the_least_absolute_deviation(seed):
    random = np.random.default_rng(seed)
    counts = random.integers(0, 6, (25, 3)).astype(float)
    residuals = counts @ [-13.0, -1000.0, 2.0] + random.standard_t(1, 25)
    fit = bias_fits.least_absolute_deviation(residuals, counts)
    lowest = absolute_loss(residuals, counts, fit.values)
    for size in (1e-4, 1e-2, 1.0):
        for step in random.normal(0, size, (100, 3)):
            assert absolute_loss(residuals, counts, fit.values + step) > lowest - 1e-6


@pytest.mark.parametrize("fit", [bias_fits.least_squares, bias_fits.least_absolute_deviation])
def test_undetermined_combinations_of_elements_stay_zero(fit):
    # CH4O and C2H6O: two compositions, three elements
    counts = np.array([[4, 1, 1], [6, 2, 1]] * 5, float)
    residuals = counts @ [-13.0, -1000.0, -2000.0]
    found = fit(residuals, counts)
    assert found.rank == 2
    np.testing.assert_allclose(counts @ found.values, residuals, rtol=1e-9)
    null = np.linalg.svd(counts)[2][-1]
    assert abs(null @ found.values) < 1e-6


def test_least_squares_equals_the_plain_solution_of_all_frames():
    random = np.random.default_rng(3)
    counts = random.integers(0, 4, (80, 3)).astype(float)
    residuals = random.normal(size=80)
    plain = np.linalg.lstsq(counts, residuals, rcond=None)[0]
    found = bias_fits.least_squares(residuals, counts)
    np.testing.assert_allclose(found.values, plain, atol=1e-12)
    assert found.rank == 3


@given(RESIDUALS, st.sampled_from([-97_000.0, -4.0e5, 3.0e6]))
def test_efwt_window_holds_its_frames_at_large_energies(residuals, shift):
    shifted = residuals + shift
    b = bias_fits.efwt_window(shifted)
    held = (np.abs(shifted - b) < bias_fits.ENERGY_WITHIN).sum()
    best = max(
        (np.abs(shifted - (low + 0.0199)) < bias_fits.ENERGY_WITHIN).sum() for low in shifted
    )
    assert held >= best


def test_no_residuals_and_nan_are_errors():
    with pytest.raises(ValueError, match="no energy residuals"):
        bias_fits.mean(np.array([]))
    with pytest.raises(ValueError, match="frame 1"):
        bias_fits.median(np.array([0.0, np.nan]))


def test_huber_balances_its_clipped_residuals():
    random = np.random.default_rng(0)
    rows = random.integers(1, 8, (12, 3)).astype(float)
    row_of = random.integers(0, 12, 200)
    residuals = rows[row_of] @ [-13.0, -1000.0, 2.0] + random.standard_t(2, 200)
    values, scale = bias_fits.huber(residuals, rows, row_of)
    left = residuals - rows[row_of] @ values
    assert scale == pytest.approx(bias_fits.robust_scale(left), rel=1e-6)
    clipped = np.clip(left, -bias_fits.HUBER * scale, bias_fits.HUBER * scale)
    assert np.abs(rows[row_of].T @ clipped).max() < 1e-5
    assert (np.abs(left) > bias_fits.HUBER * scale).mean() > 0.1


def test_spans_are_told_for_many_compositions_at_once():
    rows = np.array([[4, 1, 1, 0], [6, 2, 1, 0]])
    asked = np.array([[2, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0], [10, 3, 2, 0], [4, 1, 1, 1]])
    assert bias_fits.spanned(rows, asked).tolist() == [True, True, False, True, False]
    assert bias_fits.spanned(rows[:0], asked).tolist() == [False, True, False, False, False]
