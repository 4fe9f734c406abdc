"""Frames on the device with labels that some of them lack."""

import numpy as np
import pytest

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.frames.device_frames import DeviceFrames


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Five frames of two kinds: energies in 0, 1 and 4, forces in 1 and 3, a stress in 4."""
    with DatasetWriter(tmp_path / "x.h5") as writer:
        for k in range(5):
            n = 2 + k % 2
            labels = {"energy": -float(k)} if k in (0, 1, 4) else {"energy": np.nan}
            if k in (1, 3):
                labels["forces"] = np.full((n, 3), 0.1 * k)
            if k == 4:
                labels |= {"stress": np.arange(6.0), "cell": np.eye(3) * 9, "pbc": [True] * 3}
            writer.append([8, 1, 1][:n], 1.1 * np.arange(n)[:, None] * [1, 0.5, 0], **labels)
    return Dataset(tmp_path / "x.h5")


def test_labels_are_nan_where_they_are_missing(dataset):
    batch = DeviceFrames(dataset, [4, 3, 1, 2], 4.0).batch([0, 1, 2, 3])
    np.testing.assert_array_equal(batch.energy, [-4, np.nan, -1, np.nan])
    expected = np.repeat([np.nan, 0.3, 0.1, np.nan], batch.counts)
    np.testing.assert_allclose(batch.forces, np.tile(expected[:, None], 3))
    np.testing.assert_array_equal(batch.stress[0], np.arange(6.0))
    assert batch.stress[1:].isnan().all()


def test_labels_that_no_chosen_frame_has_are_none(dataset):
    frames = DeviceFrames(dataset, [0, 2], 4.0)
    assert frames.forces is None
    assert frames.stress is None
    assert frames.batch([1, 0]).energy.tolist()[1] == 0.0
    assert DeviceFrames(dataset, [3], 4.0).energy is None
