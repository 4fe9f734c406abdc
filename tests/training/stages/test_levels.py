"""Levels of theory on frames: Lennard-Jones shifted by composition, and made stiffer."""

import numpy as np
import pytest
from ase.build import molecule
from conftest import small_potential
from test_bias_stage import resident

from ase_biasgrad.training.stages.levels import fit_bias_by_level, pair_features


def frames_of(tmp_path, stiffer: float):
    """Frames of two molecules; the second half at a level of its own."""
    random, frames = np.random.default_rng(0), []
    for k in range(120):
        atoms = molecule(("H2O", "CH3OH")[k % 2])
        atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
        d = atoms.get_all_distances()
        energy = np.sum((d[d > 0] - 1.0) ** 2) * (1.0 + stiffer * (k >= 60))
        shift = (k >= 60) * (0.3 * (atoms.numbers == 1).sum() - 2.0)
        frames.append((atoms, energy + shift - 100.0 * len(atoms)))
    return resident(tmp_path / "x.h5", frames, 4.0), np.repeat(["a", "b"], 60)


@pytest.mark.parametrize("stiffer", [0.0, 1.0])
def test_levels_of_frames(tmp_path, stiffer):
    frames, levels = frames_of(tmp_path, stiffer)
    potential = small_potential("painn")
    before = potential.bias.per_element.clone()
    found = fit_bias_by_level(potential, frames, levels)
    assert found.by_composition_alone == (stiffer == 0.0)
    assert set(found.biases) == {"a", "b"}
    assert (potential.bias.per_element == before).all()
    water, a, b = frames.compositions()[0], found.biases["a"], found.biases["b"]
    left = float((b.per_element - a.per_element).numpy() @ water)
    if stiffer == 0.0:
        assert left == pytest.approx(0.6 - 2.0, abs=0.15)


def test_features_are_sums_over_pairs_of_elements(tmp_path):
    frames, _ = frames_of(tmp_path, 0.0)
    table, names = pair_features(frames)
    assert names[:2] == ["H–H distances", "H–C distances"]
    batch = frames.batch([0]).graph
    d = np.linalg.norm(batch.positions.numpy()[:, None] - batch.positions.numpy()[None], axis=2)
    oxygen = int(np.flatnonzero(batch.numbers.numpy() == 8)[0])
    hydrogens = np.flatnonzero(batch.numbers.numpy() == 1)
    expected = 2 * np.exp(-d[oxygen, hydrogens]).sum()  # each pair twice
    assert table[0, names.index("H–O distances")] == pytest.approx(expected, rel=1e-6)
    assert table[0, names.index("C–O distances")] == 0.0
