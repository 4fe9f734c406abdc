"""Both graph networks by name through the two-stage recipe, and dynamics with the smooth one."""

import json

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from typer.testing import CliRunner

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.cli import app
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.config import config_from
from ase_biasgrad.training.run import train


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rattled and strained copper, labelled by EMT."""
    path, random = tmp_path_factory.mktemp("graph-networks") / "copper.h5", np.random.default_rng(0)
    with DatasetWriter(path) as writer:
        for k in range(72):
            atoms = bulk("Cu", cubic=True) * (2, 1, 1)
            strain = np.eye(3) + random.normal(0, 0.02, (3, 3))
            atoms.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            atoms.positions += random.normal(0, 0.04 + 0.08 * (k % 3), atoms.positions.shape)
            atoms.calc = EMT()
            writer.append(
                atoms.numbers,
                atoms.positions,
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
                stress=atoms.get_stress(),
                cell=atoms.cell.array,
                pbc=atoms.pbc,
            )
    return path


def options(data, backbone: dict, epochs: int) -> dict:
    return {
        "data": {"path": str(data), "train": 60, "validation": 12},
        "backbone": backbone,
        "force_stage": {
            "epochs": epochs,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "ema_decay": 0.9,
            "schedule": {"warmup_steps": 10},
        },
        "trainer": {"progress_bar": False},
    }


SMALL = {
    "name": "graph_convolution",
    "features": 16,
    "interactions": 2,
    "cutoff": 4.5,
    "radial_functions": 12,
}


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph-convolution")
    return train(config_from(options(data, SMALL, 12)), folder / "run")


def test_the_smooth_network_learns_forces_and_gets_its_bias(trained):
    report = trained.after_bias
    assert report.forces.rmse < 0.25 * report.force_rms
    assert report.forces == trained.before_bias.forces
    # the bias takes the mean of the energies: what is left is their spread
    assert report.energy.rmse < 1.3 * next(iter(report.by_composition.values())).spread


def test_nve_of_a_crystal_conserves_the_energy(trained):
    """The error of velocity Verlet falls with the square of the time step, and nothing drifts."""
    errors = []
    for step in (4.0, 2.0):
        atoms = bulk("Cu", cubic=True) * (2, 2, 2)
        atoms.calc = BiasGradCalculator(trained.checkpoint, dtype="float64", device="cpu")
        thermalize_momenta(atoms, 900, rng=np.random.default_rng(1))
        Stationary(atoms)
        energies = []
        dynamics = VelocityVerlet(atoms, step * units.fs)
        dynamics.attach(lambda a=atoms, e=energies: e.append(a.get_total_energy() / len(a)))
        dynamics.run(round(400 / step))
        energies = np.array(energies)
        errors.append(energies.std())
        times = np.linspace(0, 0.4, len(energies))  # ps
        assert abs(np.polyfit(times, energies, 1)[0]) < 1e-3  # eV per atom and ps
    assert np.abs(atoms.get_forces()).max() > 0.1
    assert errors[1] < 1e-4
    assert 2.5 < errors[0] / errors[1] < 6


def test_biasgrad_train_knows_the_original_by_name(data, tmp_path):
    config = tmp_path / "config.yaml"
    backbone = {"name": "atomgraph", "features": 20, "pooled_features": 10, "decay": "exp_decay"}
    config.write_text(json.dumps(options(data, {**backbone, "pool_width": 0.2}, 2)))
    done = CliRunner().invoke(app, ["train", str(config), "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    potential = load_checkpoint(tmp_path / "run" / "potential.safetensors").potential
    assert potential.backbone.name == "atomgraph"
    assert potential.backbone.pool.window == 4
    assert potential.bias.zero != "none"


def test_voronoi_weights_train_too(data, tmp_path):
    backbone = {**SMALL, "features": 8, "interactions": 1, "weights": "voronoi"}
    config = options(data, backbone, 3)
    config["data"] |= {"train": 12}
    result = train(config_from(config), tmp_path / "run")
    assert result.after_bias.forces.rmse < result.after_bias.force_rms
    calculator = BiasGradCalculator(result.checkpoint, device="cpu")
    atoms = bulk("Cu", cubic=True)
    atoms.calc = calculator
    assert np.abs(atoms.get_forces()).max() < 1e-4
