"""The conformance suite on a CUDA device, its equality with the CPU, and the CUDA engine."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from ase import units
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from conformance import Conformance
from conftest import BACKBONES, copper, ethanol, small_potential

from ase_biasgrad import BiasGradCalculator

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.mark.parametrize("name", BACKBONES)
class TestCudaFloat64(Conformance):
    @pytest.fixture
    def make(self, name):
        potential = small_potential(name)
        return lambda **arguments: BiasGradCalculator(
            potential, **{"dtype": "float64", "device": "cuda", **arguments}
        )


@pytest.mark.parametrize("name", BACKBONES)
def test_cuda_equals_cpu(name):
    potential = small_potential(name)
    for atoms in (ethanol(), copper()):
        values = []
        for device in ("cpu", "cuda"):
            atoms.calc = BiasGradCalculator(potential, device=device)
            values.append((atoms.get_potential_energy(), atoms.get_forces()))
        assert values[0][0] == pytest.approx(values[1][0], abs=1e-4)
        np.testing.assert_allclose(values[0][1], values[1][1], atol=1e-4)


# --- the fused engine ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["schnet", "painn"])
class TestCudaEngine(Conformance):
    is_float64 = False

    @pytest.fixture
    def make(self, name):
        potential = small_potential(name)
        return lambda **arguments: BiasGradCalculator(
            potential, **{"device": "cuda", "engine": "cuda", **arguments}
        )


@pytest.mark.parametrize("name", ["schnet", "painn"])
class TestCudaEngineCommittee(Conformance):
    is_float64 = False

    @pytest.fixture
    def make(self, name):
        potentials = [small_potential(name, seed) for seed in range(3)]
        return lambda **arguments: BiasGradCalculator(
            potentials, **{"device": "cuda", "engine": "cuda", **arguments}
        )


def supercell():
    atoms = copper() * (4, 4, 4)  # 256 atoms
    atoms.positions += np.random.default_rng(0).normal(0, 0.05, atoms.positions.shape)
    return atoms


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("make_atoms", [ethanol, copper, supercell])
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("schnet", {}),
        ("painn", {}),
        ("schnet", {"features": 128, "interactions": 3}),
        ("painn", {"features": 128, "interactions": 3}),
        ("painn", {"features": 20}),
    ],
)
def test_the_engine_equals_the_reference(name, sizes, make_atoms, members):
    potentials = [small_potential(name, seed, **sizes) for seed in range(members)]
    atoms = make_atoms()
    exact = BiasGradCalculator(potentials, device="cpu", dtype="float64", engine="reference")
    fused = BiasGradCalculator(potentials, device="cuda", engine="cuda")
    for _ in range(4):  # as it is, recorded, replayed
        atoms.rattle(0.01, rng=np.random.default_rng(0))
        results = []
        for calculator in (exact, fused):
            atoms.calc = calculator
            values = atoms.get_forces(), atoms.get_potential_energies(), calculator.results
            results.append(values)
        for ours, expected in zip(results[1][:2], results[0][:2], strict=True):
            scale = max(1.0, np.abs(expected).max())
            assert np.abs(ours - expected).max() < 1e-5 * scale
        if atoms.cell.rank == 3:
            stress, expected = results[1][2]["stress"], results[0][2]["stress"]
            assert np.abs(stress - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_dynamics_replay_one_graph(name):
    atoms = supercell()
    atoms.calc = BiasGradCalculator(small_potential(name), device="cuda", engine="cuda", skin=0.3)
    thermalize_momenta(atoms, 500, rng=np.random.default_rng(0))
    VelocityVerlet(atoms, units.fs).run(100)
    engine = atoms.calc._engine
    assert engine.list.list.searches > 1
    assert engine.recordings.captures == 1


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_results_are_the_same_in_every_run(name):
    """No atomics: bit for bit, replayed or not."""
    atoms = supercell()
    runs = []
    for _ in range(2):
        atoms.calc = BiasGradCalculator(small_potential(name), device="cuda", engine="cuda")
        for _ in range(3):
            atoms.calc.results = {}
            atoms.calc.calculate(atoms, ["energy", "forces", "stress"])
            runs.append((atoms.calc.results["energy"], atoms.calc.results["forces"]))
    for energy, forces in runs[1:]:
        assert energy == runs[0][0]
        np.testing.assert_array_equal(forces, runs[0][1])


def test_several_shapes_in_turn():
    potential = small_potential("painn")
    calculator = BiasGradCalculator(potential, device="cuda", engine="cuda")
    structures = [ethanol(), copper(), supercell(), ethanol(1)[[0, 1, 2]]]
    expected = []
    for atoms in structures:
        atoms.calc = BiasGradCalculator(potential, device="cpu", engine="cpu")
        expected.append(atoms.get_forces())
    for _ in range(3):
        for atoms, forces in zip(structures, expected, strict=True):
            calculator.calculate(atoms, ["forces"])
            np.testing.assert_allclose(calculator.results["forces"], forces, atol=1e-5)
    assert calculator._engine.recordings.captures == len(structures)


def test_copies_and_pickles_go_on_the_device():
    atoms = copper()
    atoms.calc = BiasGradCalculator(small_potential(), device="cuda", engine="cuda")
    for _ in range(3):
        atoms.rattle(1e-3)
        forces = atoms.get_forces()
    for again in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        again.calc.reset()
        assert again.calc._engine.recordings.captures == 0
        np.testing.assert_allclose(again.get_forces(), forces, atol=1e-6)


def test_threads_record_side_by_side():
    potential, expected = small_potential("painn"), {}
    structures = [ethanol(), copper(), supercell()]
    for k, atoms in enumerate(structures):
        atoms.calc = BiasGradCalculator(potential, device="cpu", engine="cpu")
        expected[k] = atoms.get_forces()

    def work(k: int) -> np.ndarray:
        calculator = BiasGradCalculator(potential, device="cuda", engine="cuda")
        for _ in range(20):
            calculator.calculate(structures[k], ["forces"])
        return calculator.results["forces"]

    with ThreadPoolExecutor(3) as threads:
        for k, forces in enumerate(threads.map(work, range(3))):
            np.testing.assert_allclose(forces, expected[k], atol=1e-5)
