"""Features of structures, and the choice of those that differ."""

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from ase_biasgrad.training.active.features import farthest_points, structure_features


def test_features_know_neither_order_nor_direction():
    atoms = molecule("CH3CH2OH")
    turned = atoms[np.random.default_rng(0).permutation(len(atoms))]
    turned.positions = turned.positions @ Rotation.from_rotvec([0.3, -1, 2]).as_matrix() + 3.0
    stretched = atoms.copy()
    stretched.positions[3] *= 1.1
    features = structure_features([atoms, turned, stretched])
    assert np.allclose(features[0], features[1])
    assert np.linalg.norm(features[2] - features[0]) > 0.01


def test_a_supercell_is_its_cell():
    features = structure_features([bulk("Cu"), bulk("Cu", cubic=True) * 2])
    per_atom = features / np.sqrt([[1], [32]])  # divided by √n once already
    assert np.allclose(per_atom[0], per_atom[1])


def test_other_elements_are_far():
    features = structure_features(
        [Atoms("CO", [[0, 0, 0], [0, 0, 1.1]]), Atoms("H2", [[0, 0, 0], [0, 0, 1.1]])]
    )
    assert np.linalg.norm(features[0] - features[1]) > 0.5


def test_the_farthest_points_are_the_corners():
    random = np.random.default_rng(0)
    corners = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = np.concatenate([random.uniform(3, 7, (50, 2)), corners])
    assert sorted(farthest_points(points, np.zeros((0, 2)), 4)) == [50, 51, 52, 53]
    chosen = farthest_points(points, np.array([[0.0, 0.0], [10.0, 0.0]]), 2)
    assert sorted(chosen) == [52, 53]


def test_what_is_known_is_not_chosen():
    points = np.array([[0.0], [1.0], [1.0], [2.0]])
    assert farthest_points(points, np.array([[0.0]]), 4) == [3, 1]
    assert farthest_points(points[:1], points, 3) == []
