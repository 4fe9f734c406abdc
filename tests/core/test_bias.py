"""The bias: what it knows, and forces that no fit can touch."""

import numpy as np
import pytest
import torch
from conftest import BACKBONES, copper, ethanol, small_potential
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_biasgrad.bias import N_ELEMENTS, Bias
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import freeze_energy_shifts

METHODS = ["mean", "median", "efwt", "gradient", "least-squares", "least-absolute-deviation"]


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


def test_bad_residuals_and_methods_are_named():
    with pytest.raises(ValueError, match="unknown"):
        Bias().fit(np.zeros(1), counts_of({1: 2}), "mode")
    with pytest.raises(ValueError, match="no energy residuals"):
        Bias().fit(np.zeros(0), np.zeros((0, N_ELEMENTS), int), "mean")
    with pytest.raises(ValueError, match="need compositions of shape"):
        Bias().fit(np.zeros(2), counts_of({1: 2}), "mean")


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
