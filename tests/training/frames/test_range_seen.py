"""The range of the training frames, compared with distances that ASE calculates."""

import numpy as np
import pytest
from ase.data import covalent_radii
from ase.geometry import get_distances
from ase.neighborlist import neighbor_list
from helpers import write_clusters

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.frames.range_seen import range_of_frames


@pytest.mark.parametrize("periodic", [False, True])
def test_the_closest_pairs_and_the_largest_force_of_the_frames(tmp_path, periodic):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", 30, periodic))
    chosen = np.arange(3, 20)
    found = range_of_frames(DeviceFrames(dataset, chosen, 3.0), 3.0)
    closest, largest = {}, 0.0
    for k in chosen:
        atoms = dataset[int(k)].atoms()
        distances = get_distances(atoms.positions, cell=atoms.cell, pbc=atoms.pbc)[1]
        for i, j in zip(*np.triu_indices(len(atoms), 1), strict=True):
            pair = tuple(sorted((int(atoms.numbers[i]), int(atoms.numbers[j]))))
            closest[pair] = min(closest.get(pair, np.inf), distances[i, j])
        largest = max(largest, np.linalg.norm(atoms.get_forces(), axis=1).max())
    assert found.closest.keys() - {(8, 8)} == closest.keys()
    for pair, distance in closest.items():
        assert found.closest[pair] == pytest.approx(distance)
    assert found.largest_force == pytest.approx(largest)
    elements = {z for z, _ in found.coordination.ranges}
    assert found.coordination.ranges.keys() == {(a, b) for a in elements for b in elements}
    for (a, b), limits in found.coordination.ranges.items():
        counts = np.concatenate([neighbours(dataset[int(k)].atoms(), a, b) for k in chosen])
        assert limits == pytest.approx((counts.min(), counts.max()), abs=1e-6)


def test_pairs_beyond_the_cutoff_were_not_seen(tmp_path):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", 10))
    found = range_of_frames(DeviceFrames(dataset, np.arange(10), 3.0), 1.25)
    assert all(distance < 1.25 for distance in found.closest.values())


def neighbours(atoms, element: int, other: int) -> np.ndarray:
    """Atoms of one element beside each of another, by ASE and the formula; cutoff 3 Å."""
    i, j, d = neighbor_list("ijd", atoms, 3.0)
    chosen = atoms.numbers[j] == other
    length = min(covalent_radii[element] + covalent_radii[other], 3.0 / 1.7)
    t = np.clip((1.7 - d[chosen] / length) / 0.5, 0, 1)
    counts = np.bincount(i[chosen], t**2 * (3 - 2 * t), len(atoms))
    return counts[atoms.numbers == element]
