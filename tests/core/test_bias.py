"""The bias: closed forms against search, and forces that no fit can touch."""

import numpy as np
import pytest
import torch
from conftest import BACKBONES, copper, ethanol, small_potential
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ase_biasgrad import bias_fits
from ase_biasgrad.bias import N_ELEMENTS, Bias
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import freeze_energy_shifts

RESIDUALS = arrays(np.float64, st.integers(1, 30), elements=st.floats(-0.2, 0.2))
METHODS = ["mean", "median", "efwt", "gradient", "least-squares", "least-absolute-deviation"]


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


def test_efwt_window_counts_only_frames_with_good_forces():
    residuals = np.array([0.0, 0.001, 0.002, 1.0, 1.001])
    assert abs(bias_fits.efwt_window(residuals) - 0.001) < 1e-12
    good = np.array([False, False, False, True, True])
    assert abs(bias_fits.efwt_window(residuals, good) - 1.0005) < 1e-12


def test_gradient_descent_finds_the_median():
    residuals = np.random.default_rng(0).normal(0.3, 0.1, 101)
    found = bias_fits.gradient_descent(residuals)
    assert abs(found - bias_fits.median(residuals)) < 2e-3


def test_least_squares_is_of_minimum_norm_and_tells_the_rank():
    # CH4O and C2H6O: two compositions, three elements
    counts = np.array([[4, 1, 1], [6, 2, 1]] * 5, float)
    true = np.array([-13.0, -1000.0, -2000.0])
    fit = bias_fits.least_squares(counts @ true, counts)
    assert fit.rank == 2
    assert not fit.is_determined
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


def test_least_absolute_deviation_of_one_element_is_the_median():
    residuals = np.random.default_rng(0).normal(size=31)
    fit = bias_fits.least_absolute_deviation(residuals, np.ones((31, 1)))
    assert abs(fit.values[0] - np.median(residuals)) < 1e-7


def test_no_residuals_and_nan_are_errors():
    with pytest.raises(ValueError, match="no energy residuals"):
        bias_fits.mean(np.array([]))
    with pytest.raises(ValueError, match="frame 1"):
        bias_fits.median(np.array([0.0, np.nan]))
    with pytest.raises(ValueError, match="unknown"):
        Bias().fit(np.zeros(1), np.zeros((1, N_ELEMENTS), int), "mode")


def counts_of(*compositions: dict[int, int]) -> np.ndarray:
    counts = np.zeros((len(compositions), N_ELEMENTS), np.int64)
    for row, composition in zip(counts, compositions, strict=True):
        for z, count in composition.items():
            row[z] = count
    return counts


def test_what_a_bias_knows():
    water, peroxide, methane = {1: 2, 8: 1}, {1: 2, 8: 2}, {6: 1, 1: 4}
    bias = Bias()
    assert not bias.knows(counts_of(water)[0])
    bias.fit(np.array([1.0, 1.2]), counts_of(water, water), "mean")
    assert bias.zero == "scalar"
    assert bias.knows(counts_of(water)[0])
    assert not bias.knows(counts_of(peroxide)[0])
    bias.fit(np.array([1.0, 2.0]), counts_of(water, peroxide), "median")
    assert bias.zero == "per-composition"
    assert bias.knows(counts_of(peroxide)[0])
    assert not bias.knows(counts_of({1: 4, 8: 2})[0])
    bias.fit(np.array([1.0, 2.0]), counts_of(water, peroxide), "least-squares")
    assert bias.knows(counts_of({1: 4, 8: 3})[0])
    assert not bias.knows(counts_of(methane)[0])


def test_per_atom_parts_sum_to_the_bias():
    bias = Bias()
    numbers, batch = torch.tensor([1, 8, 1, 1, 8, 8, 1]), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    counts = counts_of({1: 2, 8: 1}, {1: 2, 8: 2})
    for method in METHODS:
        bias.fit(np.array([-3.0, 5.0]), counts, method)
        total = torch.zeros(2, dtype=torch.float64).index_add(
            0, batch, bias.per_atom(numbers, batch)
        )
        torch.testing.assert_close(total, bias(numbers, batch), rtol=0, atol=1e-12)


def test_bias_stays_float64():
    bias = Bias()
    bias.fit(np.array([-97_000.123456789]), counts_of({1: 2}), "mean")
    for changed in (
        bias.float(),
        bias.to(torch.float32),
        bias.half(),
        torch.nn.Sequential(bias).float()[0],
    ):
        assert changed.constant.dtype == torch.float64
        assert float(changed.constant) == -97_000.123456789
        assert changed.compositions.dtype == torch.int64


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BACKBONES)
def test_no_fit_changes_forces_or_stress_by_a_bit(name, method):
    potential = small_potential(name)
    torch.nn.init.constant_(potential.backbone.energy_shifts()[0], 0.7)
    graph = collate([graph_from_atoms(a, potential.cutoff) for a in (copper(), copper(1))])
    single = graph_from_atoms(ethanol(), potential.cutoff)
    before = potential.evaluate(graph, ["forces", "stress"])
    forces = potential.evaluate(single, ["forces"])["forces"]
    freeze_energy_shifts(potential)
    counts = counts_of({29: 4}, {29: 4}, {6: 2, 1: 6, 8: 1})
    potential.bias.fit(np.array([-1e5, -1.1e5, 3e4]), counts, method)
    after = potential.evaluate(graph, ["energy", "forces", "stress"])
    assert abs(float(after["energy"][0])) > 1e3
    assert torch.equal(before["forces"], after["forces"])
    assert torch.equal(before["stress"], after["stress"])
    assert torch.equal(forces, potential.evaluate(single, ["energy", "forces"])["forces"])


@settings(max_examples=10, deadline=None)
@given(st.floats(-5, 5))
def test_folding_a_readout_shift_keeps_the_energy(shift):
    potential = small_potential()
    torch.nn.init.constant_(potential.backbone.energy_shifts()[0], shift)
    graph = graph_from_atoms(ethanol(), potential.cutoff)
    before = float(potential.evaluate(graph, ["energy"])["energy"])
    freeze_energy_shifts(potential)
    assert abs(float(potential.evaluate(graph, ["energy"])["energy"]) - before) < 1e-4
    assert float(potential.backbone.energy_shifts()[0]) == 0.0
    assert not potential.backbone.energy_shifts()[0].requires_grad
