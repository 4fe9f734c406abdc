"""`biasgrad predict`: what it writes is what the networks say, beside what was there."""

import json

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from conftest import copper, small_potential
from helpers import biasgrad
from safetensors.numpy import save_file

from ase_biasgrad.calculators import BiasGradCalculator
from ase_biasgrad.charged_particles import System, simulate
from ase_biasgrad.checkpoint import save_checkpoint
from ase_biasgrad.dense import DensePotential, Input, Linear, Output, Sequential, save_dense
from ase_biasgrad.training.benchmarks.loop import save_network
from ase_biasgrad.training.benchmarks.nbody.network import NBodyNetwork, NBodyOptions, rollout
from ase_biasgrad.training.benchmarks.qm9.network import QM9Network, QM9Options
from ase_biasgrad.training.benchmarks.qm9.training import collate, graph_sample

NAMES = ("CH3CH2OH", "H2O", "CH4")


def test_potentials_give_energies_forces_and_stress(tmp_path):
    save_checkpoint(tmp_path / "p.safetensors", small_potential("schnet"))
    labelled = molecule("CH3CH2OH")
    labelled.calc = SinglePointCalculator(labelled, energy=-3.5)
    labelled.info["id"] = 7
    write(tmp_path / "a.extxyz", [labelled, molecule("H2O")])
    write(tmp_path / "b.traj", copper())
    said = biasgrad(tmp_path, "predict", "p.safetensors", "a.extxyz", "b.traj", "-o", "o.extxyz")
    assert "3 frames with predicted_energy, predicted_forces" in said
    calculator = BiasGradCalculator(tmp_path / "p.safetensors")
    found = read(tmp_path / "o.extxyz", ":")
    for atoms in found:
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        bare.calc = calculator
        expected = bare.get_potential_energy()
        assert atoms.info["predicted_energy"] == pytest.approx(expected, abs=1e-4)
        forces = bare.get_forces()
        np.testing.assert_allclose(atoms.arrays["predicted_forces"], forces, atol=1e-4)
    assert found[0].get_potential_energy() == -3.5  # what was there stays
    assert found[0].info["id"] == 7
    assert found[2].info["predicted_stress"].shape == (6,)
    assert "predicted_stress" not in found[1].info
    again = ("predict", "p.safetensors", "a.extxyz", "-o", "o.extxyz")
    assert "--overwrite" in biasgrad(tmp_path, *again, code=1)
    assert "2 frames" in biasgrad(tmp_path, *again, "--overwrite")
    assert len(read(tmp_path / "o.extxyz", ":")) == 2


def test_dense_networks_of_qm7(tmp_path):
    random = np.random.default_rng(0)
    network = Sequential([Input(), Linear(36, 1, random), Output(np.array([-5.0, -1.0]))])
    potential = DensePotential(network, 9, (1, 6, 8), {8: -4.5})
    save_dense(tmp_path / "d.safetensors", potential)
    structures = [molecule(name) for name in NAMES]
    write(tmp_path / "a.extxyz", structures)
    biasgrad(tmp_path, "predict", "d.safetensors", "a.extxyz", "-o", "o.extxyz")
    for atoms, found in zip(structures, read(tmp_path / "o.extxyz", ":"), strict=True):
        energy, forces = potential.energy_and_forces(atoms.numbers, atoms.positions)
        assert found.info["predicted_energy"] == pytest.approx(energy, abs=1e-6)
        np.testing.assert_allclose(found.arrays["predicted_forces"], forces, atol=1e-6)
    write(tmp_path / "a.extxyz", [structures[0], molecule("C6H6")])
    said = biasgrad(tmp_path, "predict", "d.safetensors", "a.extxyz", "-o", "p.extxyz", code=1)
    assert "a.extxyz: frame 1: " in said
    assert not (tmp_path / "p.extxyz").exists()


@pytest.mark.parametrize("cutoff", [None, 2.5])
def test_networks_of_qm9_give_their_property(tmp_path, cutoff):
    torch.manual_seed(0)
    network = QM9Network(QM9Options(1, 4, 2, max_degree=1), 2.0, 1.5).eval()
    training = {"options": {"property": "mu", "cutoff": cutoff}, "unit": "D"}
    save_network(tmp_path / "n.safetensors", network, training)
    structures = [molecule(name) for name in NAMES]
    write(tmp_path / "a.extxyz", structures)
    said = biasgrad(tmp_path, "predict", "n.safetensors", "a.extxyz", "-o", "o.extxyz")
    assert "predicted_mu in D" in said
    samples = [graph_sample(a.numbers, a.positions, 0.0, cutoff) for a in structures]
    with torch.no_grad():
        expected = network.predict(collate(samples)).numpy()
    found = [atoms.info["predicted_mu"] for atoms in read(tmp_path / "o.extxyz", ":")]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(found) > 1e-3
    for atoms, what in ((molecule("SiH4"), "holds Si, which QM9 has not"),
                        (bulk("C"), "is periodic")):  # fmt: skip
        write(tmp_path / "b.extxyz", [structures[0], atoms])
        said = biasgrad(tmp_path, "predict", "n.safetensors", "b.extxyz", "-o", "p", code=1)
        assert f"b.extxyz: frame 1: {what}" in said


def test_networks_of_nbody_roll_out(tmp_path):
    torch.manual_seed(0)
    network = NBodyNetwork(NBodyOptions(1, 4, 1, 2, 1, pair_scalars=True), (0.3, 0.5)).eval()
    save_network(tmp_path / "n.safetensors", network, {"variant": "paper"})
    data = simulate(System(steps=300), 2, seed=1)
    starts = []
    for k in range(2):
        atoms = Atoms("X5", data.positions[k, 0])
        atoms.set_initial_charges(data.charges[k])
        atoms.set_velocities(data.velocities[k, 0])
        starts.append(atoms)
    write(tmp_path / "a.extxyz", starts)
    options = ("a.extxyz", "-o", "o.extxyz", "--steps", 3)
    said = biasgrad(tmp_path, "predict", "n.safetensors", *options)
    assert "8 frames with predicted_time" in said
    found = read(tmp_path / "o.extxyz", ":")
    assert [atoms.info["predicted_time"] for atoms in found] == [0.0, 0.5, 1.0, 1.5] * 2
    start = (data.positions[1, 0], data.velocities[1, 0], data.charges[1])
    positions, velocities = rollout(network, *start, 3)
    one = [torch.tensor(a[None], dtype=torch.float32) for a in start]
    with torch.no_grad():
        moved = network(*one)[0][0].numpy() + start[0]
    np.testing.assert_allclose(positions[1], moved, atol=1e-5)
    np.testing.assert_allclose([a.positions for a in found[4:]], positions, atol=1e-5)
    np.testing.assert_allclose([a.get_velocities() for a in found[4:]], velocities, atol=1e-5)
    write(tmp_path / "b.extxyz", Atoms("X5", data.positions[0, 0]))
    said = biasgrad(tmp_path, "predict", "n.safetensors", "b.extxyz", "-o", "p", code=1)
    assert "b.extxyz: frame 0: this network knows 5 particles with initial_charges" in said
    save_network(tmp_path / "m.safetensors", network)
    said = biasgrad(tmp_path, "predict", "m.safetensors", "a.extxyz", "-o", "p", code=1)
    assert "does not say which system" in said


def test_other_files_are_refused(tmp_path):
    write(tmp_path / "a.extxyz", molecule("H2O"))
    (tmp_path / "text").write_text("nothing")
    save_file({"a": np.zeros(2)}, tmp_path / "s", {"ase_biasgrad": json.dumps({"format": "x"})})
    for name, what in (("no", "no such network"), ("text", "is no network"), ("s", "but 'x'")):
        said = biasgrad(tmp_path, "predict", name, "a.extxyz", "-o", "o.extxyz", code=1)
        assert what in said
    save_checkpoint(tmp_path / "p.safetensors", small_potential("schnet"))
    said = biasgrad(tmp_path, "predict", "p.safetensors", "b.xyz", "-o", "o.extxyz", code=1)
    assert "b.xyz: no such file" in said
    same = ("predict", "p.safetensors", "a.extxyz", "-o", "a.extxyz", "--overwrite")
    assert "is what is read" in biasgrad(tmp_path, *same, code=1)
