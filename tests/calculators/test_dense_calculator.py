"""`DenseCalculator`: what of the conformance list applies to a dense network of molecules."""

import copy
import json
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import (
    CalculationFailed,
    CalculatorSetupError,
    InputError,
    PropertyNotImplementedError,
    all_changes,
)
from ase.calculators.fd import calculate_numerical_forces
from ase.io import Trajectory, read
from ase.md.verlet import VelocityVerlet
from ase.mep import NEB
from ase.optimize import BFGS
from ase.outputs import all_outputs
from ase.vibrations import Vibrations
from conftest import ethanol
from scipy.spatial.transform import Rotation

from ase_biasgrad.calculators.dense_calculator import DenseCalculator
from ase_biasgrad.dense.coulomb_matrix import padded
from ase_biasgrad.dense.inputs import Centre, CoulombMatrix, Input, NormOrder, TanhExpansion
from ase_biasgrad.dense.modules import Linear, Output, Sequential, Standardise, Tanh
from ase_biasgrad.dense.potential import DensePotential, save_dense

SIZE = 12
INPUTS = {
    "raw": [Input()],
    "centred": [Centre(), Input()],
    "sorted": [CoulombMatrix(), NormOrder()],
    "random": [CoulombMatrix(), NormOrder(1.0, seed=3), TanhExpansion.up_to(np.full(78, 8.0), 2.0)],
}


def dense_potential(kind: str = "centred") -> DensePotential:
    """Random weights behind standardised inputs: forces of the order of 1 eV/Å."""
    random, inputs = np.random.default_rng(0), Sequential(copy.deepcopy(INPUTS[kind]))
    names = ("CH3CH2OH", "H2O", "CH3OH", "HCN")
    structures = [molecule(name) for name in names for _ in range(5)]
    for atoms in structures:
        atoms.positions += random.normal(0, 0.3, atoms.positions.shape)
    x = inputs.forward(padded([(a.numbers, a.positions) for a in structures], SIZE))
    layers = [Linear(x.shape[1], 16, random), Tanh(), Linear(16, 1, random)]
    network = Sequential([inputs, Standardise.of(x), *layers, Output(np.array([-53.0, -47.0]))])
    draws = 4 if kind == "random" else 1
    return DensePotential(network, SIZE, (1, 6, 7, 8), {1: -1.5, 6: -4.0, 8: -3.0}, draws)


@pytest.fixture(params=list(INPUTS))
def make(request):
    potential = dense_potential(request.param)
    return lambda: DenseCalculator(potential)


def test_energy_and_free_energy_are_one_float(make):
    atoms = ethanol()
    atoms.calc = make()
    energy = atoms.get_potential_energy()
    assert type(energy) is float
    assert energy == atoms.get_potential_energy(force_consistent=True)
    assert {"energy", "free_energy", "forces"} == set(DenseCalculator.implemented_properties)
    assert set(atoms.calc.export_properties()) <= set(all_outputs)
    for name in ("get_stress", "get_potential_energies"):
        with pytest.raises(PropertyNotImplementedError):
            getattr(atoms, name)()


def test_forces_are_derivatives(make):
    atoms = ethanol()
    atoms.calc = make()
    forces = atoms.get_forces()
    numerical = calculate_numerical_forces(atoms, 1e-4)
    assert np.abs(forces).max() > 1e-2
    assert np.abs(forces - numerical).max() < 1e-6
    assert forces.dtype == np.float64
    assert forces.flags.c_contiguous
    forces[:] = 0
    assert np.abs(atoms.get_forces()).max() > 0


@pytest.mark.parametrize("kind", ["sorted", "centred", "raw"])
def test_which_symmetries_it_has(kind):
    atoms = ethanol()
    rotation = Rotation.from_rotvec([1.0, 2.0, -0.5]).as_matrix()
    changed = {
        "translation": Atoms(atoms.numbers, atoms.positions + 1.0),
        "rotation": Atoms(atoms.numbers, atoms.positions @ rotation.T),
        "order": atoms[[0, 1, 2, 3, 4, 6, 5, 7, 8]],
    }
    holds = {"raw": set(), "centred": {"translation"}, "sorted": set(changed)}[kind]
    atoms.calc = DenseCalculator(dense_potential(kind))
    energy = atoms.get_potential_energy()
    for name, other in changed.items():
        other.calc = atoms.calc.__class__(dense_potential(kind))
        difference = abs(other.get_potential_energy() - energy)
        assert difference < 1e-9 if name in holds else difference > 1e-4
    net = np.abs(atoms.get_forces().sum(axis=0)).max()
    assert net < 1e-9 if "translation" in holds else net > 1e-4


def test_the_bias_is_added_and_no_force_comes_from_it():
    with_bias, atoms = dense_potential(), ethanol()
    without = replace(with_bias, per_element={})
    energies, forces = [], []
    for potential in (with_bias, without):
        atoms.calc = DenseCalculator(potential)
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
    assert energies[0] - energies[1] == pytest.approx(2 * -4.0 + 6 * -1.5 - 3.0, abs=1e-12)
    assert np.array_equal(forces[0], forces[1])


def test_energy_alone_runs_no_backward_pass(make):
    atoms = ethanol()
    atoms.calc = make()
    calls = []
    network = atoms.calc.potential.network
    backward = network.backward
    network.backward = lambda gradient: calls.append(1) or backward(gradient)
    atoms.get_potential_energy()
    assert calls == []
    atoms.get_forces()
    atoms.get_potential_energy()
    assert calls == [1]


def test_state_is_exact(make):
    atoms, calc = ethanol(), make()
    atoms.calc = calc
    atoms.get_forces()
    assert calc.check_state(atoms) == []
    other = atoms.copy()
    other.positions[0, 0] = np.nextafter(other.positions[0, 0], 9)
    assert calc.check_state(other) == ["positions"]
    calc.calculate(other, ["forces"], ["positions"])
    fresh = make()
    fresh.calculate(other, ["forces"], all_changes)
    assert np.array_equal(calc.results["forces"], fresh.results["forces"])
    atoms.info["charge"] = 1
    assert "info" in calc.check_state(atoms)
    with pytest.raises(InputError, match="charge"):
        atoms.get_forces()
    assert calc.results == {}
    calc.reset()
    assert calc.atoms is None
    with pytest.raises(CalculatorSetupError, match="colour"):
        calc.set(colour="red")


def test_one_calculator_on_many_molecules(make):
    calc = make()
    for atoms in [ethanol(), molecule("H2O"), ethanol(2), Atoms("O")] * 2:
        atoms.calc = calc
        forces = atoms.get_forces()
        atoms.calc = make()
        assert np.array_equal(forces, atoms.get_forces())
        assert forces.shape == (len(atoms), 3)
    nothing = Atoms()
    nothing.calc = calc
    assert nothing.get_potential_energy() == 0.0
    assert nothing.get_forces().shape == (0, 3)


def test_threads_share_one_calculator(make):
    calc = make()
    frames = [molecule("H2O"), ethanol(1), ethanol(2)]
    expected = [make().get_property("forces", atoms) for atoms in frames]
    with ThreadPoolExecutor(4) as pool:
        forces = pool.map(lambda k: calc.get_property("forces", frames[k % 3]), range(60))
        for k, one in enumerate(forces):
            np.testing.assert_array_equal(one, expected[k % 3])


def test_copies_pickles_json(make):
    atoms = ethanol()
    atoms.calc = make()
    forces = atoms.get_forces()
    for again in (copy.deepcopy(atoms), pickle.loads(pickle.dumps(atoms))):
        again.calc.reset()
        assert np.array_equal(again.get_forces(), forces)
    json.dumps(atoms.calc.todict())


def test_bad_input_is_refused(make, tmp_path):
    cases = {
        r"'Cu'.*trained for \['H', 'C', 'N', 'O'\]": Atoms("Cu"),
        "13 atoms, and the dense network was made for at most 12": Atoms(
            "C13", np.arange(39.0).reshape(13, 3)
        ),
        "position of atom 1 is not finite": Atoms("HO", [[0, 0, 0], [0, np.nan, 1]]),
        "periodic": Atoms("O", cell=[5, 5, 5], pbc=True),
        "initial_magmoms": Atoms("O", magmoms=[1]),
    }
    for message, atoms in cases.items():
        atoms.calc = make()
        with pytest.raises(InputError, match=message):
            atoms.get_potential_energy()
    with pytest.raises(CalculatorSetupError, match="neither the path"):
        DenseCalculator(42)
    with pytest.raises(FileNotFoundError, match="no such dense network"):
        DenseCalculator(tmp_path / "x.safetensors")


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_atoms_on_top_of_each_other_are_an_error():
    atoms = Atoms("HH", [[0, 0, 0], [0, 0, 0]])
    atoms.calc = DenseCalculator(dense_potential("sorted"))
    with pytest.raises(CalculationFailed, match="on top of each other"):
        atoms.get_forces()


def test_the_rest_of_ase(make, tmp_path):
    atoms = ethanol()
    atoms.calc = make()
    before = atoms.get_potential_energy()
    atoms.positions += 1e-4 * atoms.get_forces()
    assert atoms.get_potential_energy() < before
    BFGS(atoms, logfile=None).run(fmax=1e-3, steps=3)
    VelocityVerlet(atoms, 0.2 * units.fs).run(2)
    with Trajectory(str(tmp_path / "x.traj"), "w", atoms) as trajectory:
        trajectory.write()
    again = read(tmp_path / "x.traj")
    assert again.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_array_equal(again.get_forces(), atoms.get_forces())
    water = molecule("H2O")
    water.calc = make()
    vibrations = Vibrations(water, name=str(tmp_path / "vib"))
    vibrations.run()
    assert len(vibrations.get_energies()) == 9
    images = [ethanol(), ethanol(), ethanol(1)]
    band = NEB(images, allow_shared_calculator=True, method="improvedtangent")
    calc = make()
    for image in images:
        image.calc = calc
    assert np.isfinite(band.get_forces()).all()


def test_md_conserves_energy_on_a_smooth_network():
    atoms = ethanol()
    atoms.calc = DenseCalculator(dense_potential("centred"))
    atoms.set_momenta(np.random.default_rng(0).normal(0, 1, (9, 3)))
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
    dynamics.run(1)
    before, start = atoms.get_total_energy(), atoms.positions.copy()
    dynamics.run(100)
    assert np.abs(atoms.positions - start).max() > 0.05
    assert abs(atoms.get_total_energy() - before) < 1e-3


def _energy(atoms) -> float:
    return atoms.get_potential_energy()


def test_files_and_spawned_processes(tmp_path):
    for kind in INPUTS:
        save_dense(tmp_path / f"{kind}.safetensors", dense_potential(kind))
        atoms = ethanol()
        atoms.calc = DenseCalculator(tmp_path / f"{kind}.safetensors")
        loaded = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = DenseCalculator(dense_potential(kind))
        assert loaded[0] == atoms.get_potential_energy()
        np.testing.assert_array_equal(loaded[1], atoms.get_forces())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(_energy, [atoms]) == [atoms.get_potential_energy()]


def test_no_torch_is_loaded_and_nothing_printed(tmp_path):
    save_dense(tmp_path / "p.safetensors", dense_potential())
    code = (
        "import sys\nfrom ase.build import molecule\n"
        "from ase_biasgrad.calculators import DenseCalculator\n"
        "atoms = molecule('H2O')\natoms.calc = DenseCalculator('p.safetensors')\n"
        "atoms.get_forces()\n"
        "assert not {'torch', 'schnetpack', 'sklearn', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
