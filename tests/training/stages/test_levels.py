"""Levels of theory on frames: Lennard-Jones shifted by composition, and made stiffer."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from conftest import small_potential
from helpers import biasgrad
from test_bias_stage import resident

from ase_biasgrad import load_checkpoint, save_checkpoint
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.stages.levels import (
    fit_bias_by_level,
    frames_by_label,
    pair_names,
    pair_sums,
)


def frames_of(tmp_path, stiffer: float) -> dict[str, DeviceFrames]:
    """Frames of two molecules at two levels."""
    random, frames = np.random.default_rng(0), []
    for k in range(120):
        atoms = molecule(("H2O", "CH3OH")[k % 2])
        atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
        d = atoms.get_all_distances()
        energy = np.sum((d[d > 0] - 1.0) ** 2) * (1.0 + stiffer * (k >= 60))
        shift = (k >= 60) * (0.3 * (atoms.numbers == 1).sum() - 2.0)
        frames.append((atoms, energy + shift - 100.0 * len(atoms)))
    return {
        name: resident(tmp_path / f"{name}.h5", some, 4.0)
        for name, some in (("a", frames[:60]), ("b", frames[60:]))
    }


@pytest.mark.parametrize("stiffer", [0.0, 1.0])
def test_levels_of_frames(tmp_path, stiffer):
    frames = frames_of(tmp_path, stiffer)
    potential = small_potential("painn")
    before = potential.bias.per_element.clone()
    found = fit_bias_by_level(potential, frames)
    assert found.by_composition_alone == (stiffer == 0.0)
    assert set(found.biases) == {"a", "b"}
    assert (potential.bias.per_element == before).all()
    water, a, b = frames["a"].compositions()[0], found.biases["a"], found.biases["b"]
    left = float((b.per_element - a.per_element).numpy() @ water)
    if stiffer == 0.0:
        assert left == pytest.approx(0.6 - 2.0, abs=0.15)


def test_features_are_sums_over_pairs_of_elements(tmp_path):
    frames = frames_of(tmp_path, 0.0)["a"]
    elements = torch.tensor([1, 6, 8])
    table, names = pair_sums(frames, elements), pair_names(elements)
    batch = frames.batch([0]).graph
    d = np.linalg.norm(batch.positions.numpy()[:, None] - batch.positions.numpy()[None], axis=2)
    oxygen = int(np.flatnonzero(batch.numbers.numpy() == 8)[0])
    hydrogens = np.flatnonzero(batch.numbers.numpy() == 1)
    expected = 2 * np.exp(-d[oxygen, hydrogens]).sum()  # each pair twice
    assert table[0, names.index("H–O distances")] == pytest.approx(expected, rel=1e-6)
    assert table[0, names.index("C–O distances")] == 0.0


@pytest.mark.parametrize("stiffer", [0.0, 1.0])
def test_the_command_says_if_they_differ_and_keeps_a_reference_for_each(tmp_path, stiffer):
    frames_of(tmp_path, stiffer)
    potential = small_potential("painn")
    save_checkpoint(tmp_path / "p.safetensors", potential)
    names = (tmp_path / "a.h5", tmp_path / "b.h5")
    shown = biasgrad(tmp_path, "compare-levels", "p.safetensors", *names, "-o", "q.safetensors")
    alone = "differ by composition alone" in shown
    assert alone == (stiffer == 0.0)
    assert ("differ by more than composition" in shown) == (stiffer == 1.0)
    biases = load_checkpoint(tmp_path / "q.safetensors").potential.biases()
    assert {"a", "b"} <= set(biases)
    assert biases["b"].fit_report["frames"] == 60


def test_levels_by_a_label_of_the_frames(tmp_path):
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for k in range(6):
            water = molecule("H2O")
            writer.append(water.numbers, water.positions, energy=1.0, labels={"source": k % 2})
    found = frames_by_label(Dataset(tmp_path / "x.h5"), "source")
    assert {name: frames.tolist() for name, frames in found.items()} == {
        "source0": [0, 2, 4],
        "source1": [1, 3, 5],
    }
    with pytest.raises(DataError, match=r"x\.h5: level of .*: missing .* labels are source"):
        frames_by_label(Dataset(tmp_path / "x.h5"), "level")
