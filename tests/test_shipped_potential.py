"""The potentials that come with the examples have the errors that their page states."""

from pathlib import Path

import numpy as np
import pytest
from ase import units
from ase.build import molecule
from ase.calculators.fd import calculate_numerical_forces
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet

from ase_biasgrad import (
    BiasGradCalculator,
    Dataset,
    ImportOptions,
    import_files,
    load_checkpoint,
)
from ase_biasgrad.training import DeviceFrames, evaluate

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "potentials"
POTENTIAL = FOLDER / "ethanol_rmd17.safetensors"
FIGURES = {  # meV, meV/Å, EFwT
    "aspirin": (2.440, 8.810, 0.302),
    "benzene": (0.030, 0.364, 1.000),
    "ethanol": (0.473, 3.325, 0.951),
    "malonaldehyde": (0.695, 4.859, 0.891),
    "naphthalene": (0.317, 1.981, 0.984),
    "salicylic": (0.821, 4.909, 0.825),
}


@pytest.mark.parametrize("molecule", FIGURES)
def test_it_is_small_and_has_its_provenance(molecule):
    path = FOLDER / f"{molecule}_rmd17.safetensors"
    assert path.stat().st_size < 1_000_000
    checkpoint = load_checkpoint(path)
    assert checkpoint.training["config"]["force_stage"]["epochs"] == 300
    assert checkpoint.training["data"]["trained_on"] == 950
    assert "/" not in str(checkpoint.training["config"])  # no paths


@pytest.mark.parametrize("molecule", FIGURES)
def test_its_errors_on_test_frames(tmp_path, shared_data, molecule):
    path = tmp_path / "test.h5"
    source = shared_data / "rmd17" / f"rmd17_{molecule}_test_01.npz"
    units_of = ImportOptions(energy_unit="kcal/mol", length_unit="Angstrom")
    import_files([source], path, units_of, progress=False)
    potential = load_checkpoint(FOLDER / f"{molecule}_rmd17.safetensors").potential
    dataset = Dataset(path)
    report = evaluate(potential, DeviceFrames(dataset, range(len(dataset)), potential.cutoff))
    energy, forces, efwt = FIGURES[molecule]
    assert 1000 * report.energy.mae == pytest.approx(energy, abs=0.01)
    assert 1000 * report.forces.mae == pytest.approx(forces, abs=0.01)
    assert report.efwt.both == pytest.approx(efwt, abs=0.002)


def test_its_forces_are_the_derivatives_of_its_energy():
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.03, seed=1)
    atoms.calc = BiasGradCalculator(POTENTIAL, device="cpu", dtype="float64")
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=1e-6)


def test_dynamics_conserve_the_energy():
    atoms = molecule("CH3CH2OH")
    atoms.calc = BiasGradCalculator(POTENTIAL, device="cpu")
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    Stationary(atoms)
    times, energies = [], []  # ps, eV per atom
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)

    def note() -> None:
        times.append(dynamics.get_time() / (1000 * units.fs))
        energies.append(atoms.get_total_energy() / len(atoms))

    dynamics.attach(note, interval=5)
    dynamics.run(2000)
    drift = np.polyfit(times, energies, 1)[0]
    assert abs(1000 * drift) < 0.1  # meV/atom/ps; 0.001 over 5 ps (tests/benchmarks/nve_drift.py)
    assert 1000 * np.std(energies) < 0.15
