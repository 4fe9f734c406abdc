"""The bias: extensive, of minimum norm, aware of what it knows; forces that no fit can touch."""

from typing import get_args

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import BACKBONES, EXTENSIVE, copper, ethanol, small_potential
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from ase_biasgrad.bias import N_ELEMENTS, Bias, BiasMethod
from ase_biasgrad.checkpoint import load_checkpoint, save_checkpoint
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import freeze_energy_shifts

METHODS = get_args(BiasMethod)
WATER, PEROXIDE, METHANE, ETHENE, ETHANE = (
    {1: 2, 8: 1},
    {1: 2, 8: 2},
    {6: 1, 1: 4},
    {6: 2, 1: 4},
    {6: 2, 1: 6},
)
CHO = (1, 6, 8)


def counts_of(*compositions: dict[int, int]) -> np.ndarray:
    counts = np.zeros((len(compositions), N_ELEMENTS), np.int64)
    for row, composition in zip(counts, compositions, strict=True):
        for z, count in composition.items():
            row[z] = count
    return counts


def value(bias: Bias, counts: np.ndarray) -> float:
    """b of one composition, by the atoms."""
    numbers = torch.from_numpy(np.repeat(np.arange(N_ELEMENTS), counts))
    batch = torch.zeros_like(numbers)
    whole = float(bias(numbers, batch, 1))
    assert float(bias.per_atom(numbers, batch, 1).sum()) == pytest.approx(whole, rel=1e-12)
    return whole


def compositions(random: np.random.Generator, m: int) -> np.ndarray:
    counts = np.zeros((m, N_ELEMENTS), np.int64)
    counts[:, CHO] = random.integers(0, 4, (m, 3))
    counts[counts.sum(axis=1) == 0, 1] = 2
    return counts[random.integers(0, m, 3 * m)]


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**30), m=st.integers(1, 6), copies=st.integers(2, 200))
def test_copies_of_a_structure_have_a_multiple_of_its_bias(method, seed, m, copies):
    random = np.random.default_rng(seed)
    counts = compositions(random, m)
    bias = Bias()
    bias.fit(
        counts @ random.normal(-500, 500, N_ELEMENTS) + random.normal(size=3 * m), counts, method
    )
    for row in np.unique(counts, axis=0):
        assert value(bias, copies * row) == pytest.approx(copies * value(bias, row), rel=1e-12)
        assert bias.knows(row) == bias.knows(copies * row)


@pytest.mark.parametrize("method", METHODS)
def test_one_composition_gets_its_number_as_a_vector_along_it(method):
    residuals = np.random.default_rng(1).normal(-4000.0, 0.05, 41)
    counts = np.repeat(counts_of({6: 2, 1: 6, 8: 1}), 41, axis=0)
    bias = Bias()
    bias.fit(residuals, counts, method, forces_within=None)
    expected = {"median": np.median, "least-absolute-deviation": np.median}.get(method, np.mean)
    close = {"efwt": 0.05, "huber": 0.01}.get(method, 1e-6)
    assert value(bias, counts[0]) == pytest.approx(expected(residuals), abs=close)
    along = bias.per_element.numpy() / counts[0].clip(1)
    assert along[[1, 6, 8]] == pytest.approx(along[1])  # minimum norm
    assert bias.fit_report["rank"] == 1
    assert bias.zero == "scalar"
    assert bias.knows(2 * counts[0])
    assert not bias.knows(counts_of(METHANE)[0])


def test_fits_of_frames_of_several_sizes_minimise_their_loss():
    # Cu4 and Cu32 share a formula unit
    random = np.random.default_rng(2)
    multiples = random.choice([4, 32], 60)
    counts = multiples[:, None] * counts_of({29: 1})
    residuals = -3.5 * multiples + random.standard_t(2, 60)
    grid = np.linspace(-3.8, -3.2, 40_001)
    for method, power in (("mean", 2), ("median", 1)):
        bias = Bias()
        bias.fit(residuals, counts, method)
        losses = (np.abs(residuals[:, None] - multiples[:, None] * grid) ** power).sum(axis=0)
        assert value(bias, counts_of({29: 1})[0]) == pytest.approx(grid[losses.argmin()], abs=2e-5)


def test_mean_of_dependent_compositions_keeps_offsets_for_these_alone():
    counts = counts_of(METHANE, ETHENE, ETHANE)
    residuals = np.array([1.0, 5.0, 2.0])
    bias = Bias()
    bias.fit(residuals, counts, "mean")
    assert bias.zero == "per-composition"
    for row, residual in zip(counts, residuals, strict=True):
        assert value(bias, row) == pytest.approx(residual)
        assert value(bias, 2 * row) == pytest.approx(2 * residual)
        assert bias.knows(row)
        assert bias.knows(3 * row)
    assert not bias.knows(counts[0] + counts[1])
    both = np.linalg.lstsq(counts[:, [1, 6]].astype(float), residuals, rcond=None)[0]
    np.testing.assert_allclose(bias.per_element[[1, 6]], both)
    bias.fit(residuals[:2], counts[:2], "mean")  # independent: no offset is needed
    assert bias.zero == "per-element"
    assert bias.knows(counts[0] + counts[1])
    assert value(bias, counts[0] + counts[1]) == pytest.approx(6.0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**30))
def test_least_squares_equals_lstsq_and_tells_the_rank(seed):
    random = np.random.default_rng(seed)
    counts = compositions(random, 4)
    residuals = random.normal(-1000, 100, 12)
    expected, _, rank, _ = np.linalg.lstsq(counts.astype(float), residuals, rcond=None)
    bias = Bias()
    bias.fit(residuals, counts, "least-squares")
    np.testing.assert_allclose(bias.per_element, expected, atol=1e-8)
    assert bias.fit_report["rank"] == rank
    compositions_of_fit = bias.compositions.numpy()
    for row, left in zip(compositions_of_fit, bias.residuals.numpy(), strict=True):
        own = (counts == row).all(axis=1)
        assert left == pytest.approx((residuals - counts @ expected)[own].mean(), abs=1e-8)


def test_what_a_bias_knows():
    bias = Bias()
    assert not bias.knows(counts_of(WATER)[0])
    bias.fit(np.array([1.0, 2.0]), counts_of(WATER, PEROXIDE), "least-squares")
    assert bias.knows(counts_of({1: 4, 8: 3})[0])
    assert bias.knows(counts_of({8: 1})[0])
    assert not bias.knows(counts_of(METHANE)[0])
    # one composition that the others contradict by eVs is not known, whatever spans it
    counts = np.repeat(counts_of(METHANE, ETHANE, ETHENE), [20, 20, 1], axis=0)
    energies = counts[:, [1, 6]] @ [-13.0, -1030.0]
    energies[-1] += 5.0
    bias.fit(energies, counts, "least-squares")
    assert bias.knows(counts[0])
    assert bias.knows(counts[20])
    assert not bias.knows(counts[-1])
    assert not bias.knows(2 * counts[-1])
    assert bias.residuals.abs().max() > 1.0


@pytest.mark.parametrize("method", METHODS)
def test_isolated_atoms_leave_the_molecules_alone(method):
    random = np.random.default_rng(3)
    molecules = np.repeat(counts_of({6: 2, 1: 6, 8: 1}, WATER), 10, axis=0)
    residuals = molecules[:, [1, 6, 8]] @ [-4.0, -8.0, -6.0] + random.normal(0, 0.02, 20)
    alone, together = Bias(), Bias()
    alone.fit(residuals, molecules, method)
    counts = np.concatenate([molecules, counts_of({1: 1}, {6: 1}, {8: 1})])
    isolated = np.arange(23) >= 20
    together.fit(np.append(residuals, [0.0, 0.0, 0.0]), counts, method, isolated=isolated)
    for row in (molecules[0], molecules[-1], molecules[0] + 3 * molecules[-1]):
        assert value(together, row) == pytest.approx(value(alone, row), abs=1e-6)
        assert together.knows(row)
    atoms = counts[20:]
    off = [abs(value(together, atom)) for atom in atoms]
    # two compositions, three elements: one number is left for three atoms
    assert sum(off) > 5.0
    for atom, error in zip(atoms, off, strict=True):
        assert together.knows(atom, isolated=True) == (error <= 0.1)
    assert together.fit_report["isolated_atoms"] == 3
    assert together.fit_report["frames"] == 23


def test_isolated_atoms_fix_what_the_molecules_leave_open():
    counts = np.concatenate([np.repeat(counts_of(WATER), 5, axis=0), counts_of({1: 1})])
    residuals = np.append(np.full(5, -10.0), -3.0)
    bias = Bias()
    bias.fit(residuals, counts, "mean", isolated=np.arange(6) == 5)
    np.testing.assert_allclose(bias.per_element[[1, 8]], [-3.0, -4.0])
    assert bias.knows(counts_of({1: 1})[0], isolated=True)
    assert bias.knows(counts_of({8: 1})[0])
    assert bias.fit_report["rank"] == 2
    assert bias.zero == "per-element"
    assert bias.residuals.abs().max() < 1e-9


def test_an_isolated_atom_does_not_speak_for_the_crystal_of_one_atom():
    counts = np.repeat(counts_of({29: 1}), 4, axis=0)
    bias = Bias()
    bias.fit(np.array([-3.5, -3.5, -3.5, 0.0]), counts, "mean", isolated=np.arange(4) == 3)
    assert value(bias, counts[0]) == pytest.approx(-3.5)
    assert bias.knows(counts[0])
    assert bias.knows(8 * counts[0])
    assert not bias.knows(counts[0], isolated=True)


def test_isolated_atoms_alone_are_the_data():
    bias = Bias()
    counts = counts_of({1: 1}, {8: 1})
    bias.fit(np.array([-13.6, -2000.0]), counts, "mean", isolated=np.ones(2, bool))
    np.testing.assert_allclose(bias.per_element[[1, 8]], [-13.6, -2000.0])
    assert bias.knows(counts[0], isolated=True)
    assert bias.knows(counts_of(WATER)[0])


def test_bad_residuals_and_methods_are_named():
    with pytest.raises(ValueError, match="unknown"):
        Bias().fit(np.zeros(1), counts_of({1: 2}), "gradient")
    with pytest.raises(ValueError, match="no energy residuals"):
        Bias().fit(np.zeros(0), np.zeros((0, N_ELEMENTS), int), "mean")
    with pytest.raises(ValueError, match="need compositions of shape"):
        Bias().fit(np.zeros(2), counts_of({1: 2}), "mean")


def test_bias_stays_float64():
    bias = Bias()
    bias.fit(np.array([-97_000.123456789]), counts_of({1: 1}), "mean")
    for changed in (
        bias.float(),
        bias.to(torch.float32),
        bias.half(),
        torch.nn.Sequential(bias).float()[0],
    ):
        assert changed.per_element.dtype == changed.offsets.dtype == torch.float64
        assert float(changed.per_element[1]) == -97_000.123456789
        assert changed.compositions.dtype == torch.int64


def written_by_version_1(path, bias_tensors: dict[str, torch.Tensor], zero: str) -> None:
    """A checkpoint of format version 1, whose bias had a constant for every structure."""
    import json

    from safetensors.torch import load_file, save_file

    save_checkpoint(path, small_potential())
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["ase_biasgrad"])
    metadata |= {"version": 1, "bias": {"zero": zero, "fit": {"method": "mean"}}}
    tensors = {k: v for k, v in load_file(path).items() if not k.startswith("bias.")}
    tensors |= {f"bias.{name}": tensor for name, tensor in bias_tensors.items()}
    save_file(tensors, path, {"ase_biasgrad": json.dumps(metadata)})


@pytest.mark.parametrize("zero", ["scalar", "per-composition"])
def test_biases_of_version_1_are_read_as_they_were_meant(tmp_path, zero):
    counts = counts_of({29: 4}) if zero == "scalar" else counts_of(METHANE, ETHENE, ETHANE)
    energies = np.array([-13.0]) if zero == "scalar" else np.array([1.0, 5.0, 2.0])
    tensors = {
        "constant": torch.tensor(energies[0] if zero == "scalar" else 0.0, dtype=torch.float64),
        "per_element": torch.zeros(N_ELEMENTS, dtype=torch.float64),
        "compositions": torch.from_numpy(counts),
        "offsets": torch.from_numpy(0 * energies if zero == "scalar" else energies),
    }
    written_by_version_1(tmp_path / "old.safetensors", tensors, zero)
    save_checkpoint(
        tmp_path / "new.safetensors", load_checkpoint(tmp_path / "old.safetensors").potential
    )
    for name in ("old", "new"):
        bias = load_checkpoint(tmp_path / f"{name}.safetensors").potential.bias
        for row, energy in zip(counts, energies, strict=True):
            assert value(bias, row) == pytest.approx(energy)
            assert value(bias, 8 * row) == pytest.approx(8 * energy)
            assert bias.knows(8 * row)
        assert not bias.knows(counts_of({79: 1})[0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", EXTENSIVE)
def test_a_supercell_has_the_multiple_of_its_cells_energy_after_any_fit(name, method):
    potential = small_potential(name).double()
    freeze_energy_shifts(potential)
    potential.bias.fit(np.array([-14.0, -14.2, 20.0]), counts_of({29: 4}, {29: 4}, WATER), method)
    cell, molecule = copper(), ethanol()
    pair = molecule + Atoms(molecule.numbers, molecule.positions + 40.0)
    for one, many, times in ((cell, cell * (2, 3, 1), 6), (molecule, pair, 2)):
        energies = [
            float(potential(graph_from_atoms(atoms, potential.cutoff))[0]) for atoms in (one, many)
        ]
        assert energies[1] == pytest.approx(times * energies[0], rel=1e-9)


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
    counts = counts_of({29: 4}, {29: 4}, {6: 2, 1: 6, 8: 1}, {1: 1})
    isolated = np.array([False, False, False, True])
    potential.bias.fit(np.array([-1e5, -1.1e5, 3e4, 7.0]), counts, method, isolated=isolated)
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
