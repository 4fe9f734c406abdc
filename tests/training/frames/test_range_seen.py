"""The range of the training frames, compared with distances that ASE calculates."""

import numpy as np
import pytest
from ase.geometry import get_distances
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


def test_pairs_beyond_the_cutoff_were_not_seen(tmp_path):
    dataset = Dataset(write_clusters(tmp_path / "x.h5", 10))
    found = range_of_frames(DeviceFrames(dataset, np.arange(10), 3.0), 1.25)
    assert all(distance < 1.25 for distance in found.closest.values())
