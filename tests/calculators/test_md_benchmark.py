"""The parts of `biasgrad benchmark md`, in a small size."""

import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from ase_biasgrad.calculators import md_benchmark as bench

pytestmark = pytest.mark.filterwarnings(
    "ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"
)


@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_a_row_compares_whole_steps(name):
    backbone = bench.random_backbone(name, features=8, interactions=1)
    ours, rival = (bench.calculator(backbone, engine=engine) for engine in ("auto", "reference"))
    assert ours.engine == "cpu"
    row = bench.compared("water", molecule("H2O"), ours, ("autograd", rival), seconds=0.2)
    assert (row.what, row.rival) == ("water", "autograd")
    # milliseconds of a whole step on any machine: neither microseconds nor seconds
    assert 0.005 < row.ours < 1000
    assert 0.1 < row.theirs < 10_000
    assert bench.Row("water", "autograd", 2.0, 5.0).ratio == 2.5


@pytest.mark.parametrize(
    ("name", "dtype", "which"),
    [
        ("painn", "float32", "SpkCalculator"),
        ("painn", "float64", "autograd"),
        ("tensornet", "float32", "autograd"),
    ],
)
def test_the_rival_has_the_same_weights(name, dtype, which):
    backbone = bench.random_backbone(name, features=8, interactions=1)
    atoms, (label, rival) = bench.fluid(20), bench.rival(backbone, dtype=dtype)
    assert label == which
    forces = []
    for calculator in (bench.calculator(backbone, dtype=dtype), rival):
        atoms.calc = calculator
        forces.append(atoms.get_forces())
    np.testing.assert_allclose(*forces, atol=1e-5)


def test_fluids_have_the_density_asked_for():
    atoms = bench.fluid(200, density=0.05)
    assert len(atoms) / atoms.get_volume() == pytest.approx(0.05)
    assert atoms.pbc.all()


def test_something_can_be_done_before_each_evaluation():
    backbone, atoms = bench.random_backbone("schnet", features=8, interactions=1), bench.fluid(30)
    anew = bench.with_fresh_lists(bench.calculator(backbone))
    threads = torch.get_num_threads()
    atoms.calc = anew
    for _ in range(3):
        atoms.rattle(1e-3)
        atoms.get_forces()
    assert anew._engine.list.list.list.searches == 3
    try:
        atoms.calc = bench.on_threads(bench.calculator(backbone), 2)
        atoms.get_forces()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_operations_are_counted_within_the_cutoff(monkeypatch):
    """Two atoms, one pair, at one operation per second."""
    monkeypatch.setattr(bench, "sgemm_speed", lambda: 1.0)
    near, far = (Atoms("CO", [[0, 0, 0], [0, 0, z]]) for z in (1.0, 6.0))
    schnet = bench.random_backbone("schnet", features=8, interactions=1)
    assert bench.floor(schnet, far) == 2e3 * 2 * 2 * 2 * 64
    assert bench.floor(schnet, near) - bench.floor(schnet, far) == 2e3 * 8 * 10
    tensornet = bench.random_backbone("tensornet", features=8, interactions=1)
    assert bench.floor(tensornet, far) == 2e3 * 2 * (77 * 64 + 243 * 8)
    assert bench.floor(tensornet, near) - bench.floor(tensornet, far) == 2e3 * 8 * 170


def test_the_model_alone():
    backbone = bench.random_backbone("tensornet", features=16)
    assert 0.005 < bench.engine_time(backbone, molecule("H2O"), seconds=0.1) < 1000


def test_hessians_beside_central_differences():
    backbone, water = bench.random_backbone("tensornet", features=8), molecule("H2O")
    calc = bench.calculator(backbone, dtype="float64")
    exact = calc.get_hessian(water)
    assert np.abs(bench.differences(water, calc) - exact).max() < 1e-4 * np.abs(exact).max()
    row = bench.hessians("water", water, backbone, rounds=1)
    assert (row.what, row.rival) == ("water", "central differences")
    assert row.ours > 0
    assert row.theirs > 0


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory():
    """More than a process without torch, and more for more atoms."""
    few, many = (bench.peak_memory("schnet", n) for n in (64, 4000))
    assert 100 < few < many < 4000
