"""The bias stage on frames: isolated atoms, missing energies, elements of training frames alone."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from conftest import small_potential
from helpers import options

from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.composition_fit import Anchors
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.config import ConfigError, config_from
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.run import train
from ase_biasgrad.training.stages.bias import automatic, fit_bias, isolated_atoms


def resident(path, frames: list[tuple[Atoms, float | None]], cutoff: float) -> DeviceFrames:
    with DatasetWriter(path) as writer:
        for atoms, energy in frames:
            writer.append(
                atoms.numbers,
                atoms.positions,
                energy=energy,
                forces=np.zeros((len(atoms), 3)),
                cell=atoms.cell.array,
                pbc=atoms.pbc,
            )
    dataset = Dataset(path)
    return DeviceFrames(dataset, range(len(dataset)), cutoff)


def test_an_atom_alone_is_isolated_and_a_primitive_cell_is_not(tmp_path):
    boxed = Atoms("Cu", cell=[12.0] * 3, pbc=True)
    structures = [bulk("Cu"), Atoms("Cu"), molecule("H2O"), boxed, bulk("Cu", cubic=True)]
    frames = resident(tmp_path / "x.h5", [(atoms, 0.0) for atoms in structures], 4.0)
    assert isolated_atoms(frames).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize("method", ["auto", "efwt", "least-absolute-deviation"])
def test_isolated_atoms_and_missing_energies_do_not_move_a_molecule(tmp_path, method):
    random, potential = np.random.default_rng(0), small_potential("painn")
    frames = []
    for k in range(12):
        water = molecule("H2O")
        water.positions += random.normal(0, 0.03, (3, 3))
        frames.append((water, None if k == 5 else -470.0 + random.normal(0, 0.01)))
    left = fit_bias(potential, resident(tmp_path / "w.h5", frames, 4.0), method)
    alone = potential.bias.per_element.clone()
    assert len(left) == 11
    atoms = [(Atoms("H"), 0.0), (Atoms("O"), 0.0)]
    both = fit_bias(potential, resident(tmp_path / "a.h5", [*frames, *atoms], 4.0), method)
    np.testing.assert_allclose(both[:11], left, atol=1e-6)
    assert abs(both[11:]).max() > 10.0
    assert float(2 * alone[1] + alone[8]) == pytest.approx(
        float(2 * potential.bias.per_element[1] + potential.bias.per_element[8]), abs=1e-6
    )
    assert potential.bias.fit_report["reference"]["H2O"] == pytest.approx(-470 / 3, abs=0.01)
    counts = np.eye(119, dtype=np.int64)
    assert potential.bias.knows(2 * counts[1] + counts[8])
    assert not potential.bias.knows(counts[1], isolated=True)


def test_methods_that_are_none_are_named(tmp_path):
    frames = resident(tmp_path / "x.h5", [(molecule("H2O"), None)], 4.0)
    with pytest.raises(ValueError, match="'gradient' is unknown; choose from auto, mean"):
        fit_bias(small_potential(), frames, "gradient")
    with pytest.raises(ValueError, match="needs reference energies"):
        fit_bias(small_potential(), frames)
    with pytest.raises(ConfigError, match=r"bias_stage\.method: gradient is no longer a method"):
        config_from({**options("x.h5"), "bias_stage": {"method": "gradient"}})


def test_an_element_of_validation_frames_alone_is_not_known(tmp_path):
    frames = [(molecule("NH3" if k == 0 else "H2O"), -1.0) for k in range(12)]
    for k, (atoms, _) in enumerate(frames):
        atoms.positions += np.random.default_rng(k).normal(0, 0.05, atoms.positions.shape)
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for atoms, energy in frames:
            forces = 0.1 * atoms.positions
            writer.append(atoms.numbers, atoms.positions, energy=energy, forces=forces)
    config = options(tmp_path / "x.h5", epochs=1, batch_size=4)
    config["data"] |= {"train": 3, "validation": 9}
    result = train(config_from(config), tmp_path / "run")
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    held = {int(z) for k in split["train"] for z in Dataset(tmp_path / "x.h5")[k].numbers}
    assert held == {1, 8}
    assert set(load_checkpoint(result.checkpoint).potential.elements) == held


def test_auto_says_why_it_chose():
    water, peroxide = np.zeros((2, 119), np.int64)
    water[[1, 8]], peroxide[[1, 8]] = (2, 1), (2, 2)
    both = np.stack([water, peroxide])
    assert automatic(np.stack([water, 4 * water]))[0] == "mean"
    method, why = automatic(both)
    assert method == "least-squares"
    assert "2 compositions determine 2 of 2 energies per element, none to spare" in why
    assert "1 to spare" in automatic(np.stack([water, peroxide, water + peroxide]))[1]
    assert automatic(both, Anchors.of_elements({1: -13.6}, 0.1))[0] == "ridge"
    assert automatic(both, Anchors.of_elements({1: -13.6}))[0] == "least-squares"


def test_anchors_reach_the_fit_and_its_report(tmp_path):
    random, frames = np.random.default_rng(0), []
    for _ in range(8):
        water = molecule("H2O")
        water.positions += random.normal(0, 0.03, (3, 3))
        frames.append((water, -470.0 + random.normal(0, 0.01)))
    potential = small_potential("painn")
    data = resident(tmp_path / "w.h5", frames, 4.0)
    fit_bias(potential, data, "least-squares", Anchors.of_elements({8: -430.0}))
    assert float(potential.bias.per_element[8]) == pytest.approx(-430.0)
    assert potential.bias.fit_report["anchors"] == 1
    fit_bias(potential, data)
    assert potential.bias.fit_report["why"].startswith("mean: all 8 frames")
