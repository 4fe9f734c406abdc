"""The CPU engine against autograd through the same backbones in float64."""

import copy
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.calculator import CalculatorSetupError
from conftest import copper, ethanol, mixed, small_potential, structure_of

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.calculators.engines.cpu.engine import CpuEngine
from ase_biasgrad.calculators.engines.reference import ReferenceEngine
from ase_biasgrad.numerics import threads
from ase_biasgrad.numerics.splines import SplineError
from ase_biasgrad.potential import arrays_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::ase_biasgrad.calculators.calculator.EnergyZeroWarning"
)
STRUCTURES = {
    "molecule": ethanol,
    "crystal": copper,
    "mixed pbc": mixed,
    "one atom in its images": lambda: bulk("Cu"),
    "atoms out of each other's reach": lambda: Atoms("O2", [[0, 0, 0], [0, 0, 9]]),
}
VARIANTS = {
    "widths that need padding": {"features": 24, "interactions": 3},
    "bessel and mollifier": {"radial_basis": "bessel", "cutoff_function": "mollifier"},
    "one readout layer": {"readout_layers": 1},
    "three readout layers": {"readout_layers": 3, "features": 32},
    "one interaction": {"interactions": 1},
}
# of the largest force, or 1 eV/Å; in float64 what splines may be off
TOLERANCES = {"float64": 2e-6, "float32": 1e-5}


def cpu_engine(backbones, dtype: str, skin: float) -> CpuEngine:
    return CpuEngine([arrays_of(backbone) for backbone in backbones], np.dtype(dtype), skin)


def reference(backbones) -> ReferenceEngine:
    return ReferenceEngine(copy.deepcopy(backbones), torch.device("cpu"), torch.float64, 0.5)


def assert_agree(ours, exact, tolerance=1e-5) -> None:
    scale = max(1.0, np.abs(exact.forces).max())
    np.testing.assert_allclose(ours.energies, exact.energies, atol=tolerance)
    np.testing.assert_allclose(ours.forces, exact.forces, atol=tolerance * scale)
    np.testing.assert_allclose(
        ours.strain_gradient,
        exact.strain_gradient,
        atol=tolerance * max(scale, np.abs(exact.strain_gradient).max()),
    )


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_committees_agree_with_autograd(name, structure, dtype):
    backbones = [small_potential(name, seed).backbone for seed in range(2)]
    s, engine = structure_of(STRUCTURES[structure]()), cpu_engine(backbones, dtype, 0.5)
    ours = engine.evaluate(s, True)
    assert ours.forces.shape == (2, len(s.numbers), 3)
    assert ours.forces.dtype == np.float64
    assert_agree(ours, reference(backbones).evaluate(s, True), TOLERANCES[dtype])
    energies = cpu_engine(backbones, dtype, 0.5).evaluate(s, False)
    assert energies.forces is None
    np.testing.assert_array_equal(energies.energies, ours.energies)
    # in memory that the evaluation before left
    again = engine.evaluate(s, True)
    np.testing.assert_array_equal(again.forces, ours.forces)
    np.testing.assert_array_equal(again.strain_gradient, ours.strain_gradient)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_a_committee_of_different_networks(dtype):
    backbones = [
        small_potential("painn", cutoff=3.0).backbone,
        small_potential("schnet", features=24).backbone,
        small_potential("tensornet").backbone,
        small_potential("painn", interactions=1).backbone,
    ]
    s = structure_of(copper())
    ours = cpu_engine(backbones, dtype, 0.5).evaluate(s, True)
    for k, backbone in enumerate(backbones):
        alone = cpu_engine([backbone], dtype, 0.5).evaluate(s, True)
        exact = reference([backbone]).evaluate(s, True)
        assert_agree(alone, exact, TOLERANCES[dtype])
        # edges out of a network's reach are candidates here and not there
        np.testing.assert_allclose(ours.forces[k], alone.forces[0], atol=TOLERANCES[dtype] / 10)
        np.testing.assert_allclose(ours.energies[k], alone.energies[0], atol=TOLERANCES[dtype] / 10)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        *[(name, variant) for name in ("schnet", "painn") for variant in VARIANTS],
        ("tensornet", "widths that need padding"),
        ("tensornet", "one interaction"),
    ],
)
def test_every_architecture_agrees_with_autograd(name, variant, dtype):
    backbones = [small_potential(name, **VARIANTS[variant]).backbone]
    s = structure_of(copper())
    ours = cpu_engine(backbones, dtype, 0.5).evaluate(s, True)
    assert_agree(ours, reference(backbones).evaluate(s, True), TOLERANCES[dtype])


@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_several_threads_give_the_same(name, monkeypatch):
    backbones = [small_potential(name).backbone]
    s = structure_of(copper() * (3, 3, 3))
    one = cpu_engine(backbones, "float32", 0.5).evaluate(s, True)
    blocks_for = "ase_biasgrad.calculators.engines.cpu.engine.blocks_for"
    monkeypatch.setattr(blocks_for, lambda atoms: 3)
    several = cpu_engine(backbones, "float32", 0.5).evaluate(s, True)
    np.testing.assert_array_equal(several.energies, one.energies)
    np.testing.assert_array_equal(several.forces, one.forces)
    np.testing.assert_array_equal(several.strain_gradient, one.strain_gradient)


def test_threads_are_limited_by_torch_and_by_atoms(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert threads.blocks_for(threads.THREADS_FROM - 1) == 1
    assert threads.blocks_for(threads.THREADS_FROM) == 3
    assert threads.blocks_for(1000) == 4


@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_forces_in_molecular_dynamics_follow_the_energy(name):
    """Work done along a path equals the change of energy, to float32's rounding."""
    engine = cpu_engine([small_potential(name).backbone], "float32", 0.3)
    start, direction = ethanol(), np.random.default_rng(1).normal(size=(9, 3))
    places, weights = np.polynomial.legendre.leggauss(12)
    work = 0.0
    for place, weight in zip(0.5 + places / 2, weights / 2, strict=True):
        atoms = start.copy()
        atoms.positions += 0.2 * place * direction
        forces = engine.evaluate(structure_of(atoms), True).forces[0]
        work -= weight * 0.2 * (forces * direction).sum()
    end = start.copy()
    end.positions += 0.2 * direction
    first, last = (
        engine.evaluate(structure_of(atoms), False).energies.sum() for atoms in (start, end)
    )
    assert work == pytest.approx(last - first, abs=2e-5 * max(1.0, abs(last - first)))


@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-6)])
def test_many_structures_at_once(name, dtype, tolerance):
    engine = cpu_engine([small_potential(name, seed).backbone for seed in range(2)], dtype, 0.5)
    structures = [structure_of(make()) for make in STRUCTURES.values()]
    for s, at_once in zip(structures, engine.evaluate_many(structures), strict=True):
        alone = engine.evaluate(s, True)
        assert at_once.forces.shape == (2, len(s.numbers), 3)
        assert_agree(at_once, alone, tolerance)
    committee = engine.evaluate(structure_of(ethanol()), True).forces
    assert np.abs(committee[0] - committee[1]).max() > 1e-6


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_pickles_and_copies_share_results(dtype):
    engine = cpu_engine([small_potential("painn").backbone], dtype, 0.5)
    s = structure_of(copper())
    forces = engine.evaluate(s, True).forces
    for again in (pickle.loads(pickle.dumps(engine)), copy.deepcopy(engine), engine.fresh()):
        np.testing.assert_array_equal(again.evaluate(s, True).forces, forces)
    assert copy.deepcopy(engine).networks is engine.networks


@pytest.mark.parametrize("name", ["schnet", "painn", "tensornet"])
def test_coincident_atoms_are_an_error_and_not_a_number(name):
    from ase.calculators.calculator import CalculationFailed

    atoms = ethanol()
    atoms.positions[3] = atoms.positions[4]
    atoms.calc = BiasGradCalculator(small_potential(name), device="cpu")
    with pytest.raises(CalculationFailed, match="of 9 atoms came out as NaN"):
        atoms.get_forces()


def test_which_engine_runs():
    names, on_cpu = ("schnet", "painn", "tensornet"), {"device": "cpu"}
    schnet, *others = potentials = [small_potential(name) for name in names]
    for potential in potentials:
        for dtype in ("float32", "float64"):
            assert BiasGradCalculator(potential, dtype=dtype, **on_cpu).engine == "cpu"
        assert BiasGradCalculator(potential, engine="reference", **on_cpu).engine == "reference"
    assert BiasGradCalculator([schnet, *others], **on_cpu).engine == "cpu"
    convolution = small_potential("graph_convolution")
    assert BiasGradCalculator(convolution, **on_cpu).engine == "reference"
    with pytest.raises(CalculatorSetupError, match="evaluates SchNet, PaiNN and TensorNet"):
        BiasGradCalculator([schnet, convolution], engine="cpu", **on_cpu)


def test_filters_that_cannot_be_sampled_are_left_to_autograd(monkeypatch):
    def refuse(*_):
        raise SplineError("a kink")

    monkeypatch.setattr("ase_biasgrad.fused.networks.sampled", refuse)
    with pytest.warns(UserWarning, match=r"runs by autograd: .* a kink"):
        calc = BiasGradCalculator(small_potential(), device="cpu")
    assert calc.engine == "reference"
    with pytest.raises(CalculatorSetupError, match="a kink"):
        BiasGradCalculator(small_potential(), device="cpu", engine="cpu")


def test_many_structures_stay_exact_while_they_move_leave_and_trade_places():
    """And nothing depends on the number of threads, to the last bit."""
    random, threads = np.random.default_rng(0), torch.get_num_threads()
    atoms = [make() for make in STRUCTURES.values() for _ in range(3)]
    potential = small_potential("painn")
    calc = BiasGradCalculator(potential, device="cpu", dtype="float64", skin=0.4)
    other = calc.copy()
    try:
        for step in range(10):
            for each in atoms:
                each.positions += random.normal(0, (0.02, 0.02, 0.3)[step % 3], (len(each), 3))
            order = random.permutation(len(atoms)) if step % 4 == 3 else range(len(atoms))
            chosen = [structure_of(atoms[k]) for k in order][: len(atoms) - step]
            torch.set_num_threads(2)
            found = calc._engine.evaluate_many(chosen)
            torch.set_num_threads(1)
            on_one = other._engine.evaluate_many(chosen)
            for s, ours, theirs in zip(chosen, found, on_one, strict=True):
                # an edge list of another age sums in another order
                assert_agree(ours, calc._engine.fresh().evaluate(s, True), 1e-12)
                for name in ("energies", "forces", "strain_gradient"):
                    np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    finally:
        torch.set_num_threads(threads)
