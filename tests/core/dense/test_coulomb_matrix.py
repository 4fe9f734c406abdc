"""Coulomb matrices: the published formula, symmetries, orders, derivatives."""

import numpy as np
import pytest
from ase.build import molecule
from ase.units import Bohr
from scipy.spatial.transform import Rotation

from ase_biasgrad.dense.coulomb_matrix import (
    coulomb_matrices,
    coulomb_position_gradient,
    eigenspectra,
    from_triangles,
    norm_order,
    padded,
    triangles,
)

NAMES = ("CH4", "CH3CH2OH", "HCN", "CH3SH")


def some_molecules(size: int = 10, noise: float = 0.05):
    random = np.random.default_rng(0)
    pairs = []
    for name in NAMES:
        atoms = molecule(name)
        pairs.append((atoms.numbers, atoms.positions + random.normal(0, noise, (len(atoms), 3))))
    return padded(pairs, size)


def test_entries_are_those_of_the_formula():
    atoms = molecule("HCN")
    matrix = coulomb_matrices(padded([(atoms.numbers, atoms.positions)], 5))[0]
    z = atoms.numbers
    assert matrix[1, 1] == pytest.approx(0.5 * z[1] ** 2.4)
    assert matrix[0, 2] == pytest.approx(z[0] * z[2] / (atoms.get_distance(0, 2) / Bohr))
    # carbon: 36.8581 Hartree, as in the published file
    assert matrix[:3, :3].diagonal()[z == 6] == pytest.approx(36.8581, abs=1e-4)
    assert not matrix[3:].any()
    assert not matrix[:, 3:].any()
    np.testing.assert_array_equal(matrix, matrix.T)


def test_rotation_translation_and_order_of_atoms_leave_sorted_matrices_alone():
    atoms = molecule("CH3CH2OH")
    atoms.positions += np.random.default_rng(1).normal(0, 0.05, atoms.positions.shape)
    rotation = Rotation.from_rotvec([0.3, -1.0, 2.0]).as_matrix()
    order = np.random.default_rng(2).permutation(9)
    moved = (atoms.numbers[order], (atoms.positions @ rotation.T + 3.0)[order])
    matrices = coulomb_matrices(padded([(atoms.numbers, atoms.positions), moved], 12))
    assert np.abs(matrices[0] - matrices[1]).max() > 1.0
    entries = triangles(matrices, norm_order(matrices))
    np.testing.assert_allclose(entries[0], entries[1], atol=1e-10)
    spectra = eigenspectra(matrices)
    np.testing.assert_allclose(spectra[0], spectra[1], atol=1e-10)
    assert (np.diff(np.abs(spectra[0])) <= 1e-12).all()


def test_noise_draws_orders_and_keeps_missing_atoms_last():
    matrices = coulomb_matrices(some_molecules())
    exact = norm_order(matrices)
    drawn = [norm_order(matrices, 1.0, np.random.default_rng(seed)) for seed in range(5)]
    assert any(not np.array_equal(order, exact) for order in drawn)
    norms = np.linalg.norm(matrices, axis=2)
    for order in (exact, *drawn):
        np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(10), (4, 1)))
        assert (np.take_along_axis(norms, order, 1)[:, 9] == 0).all()
        assert (np.take_along_axis(norms, order, 1)[0, :5] > 0).all()
    same = norm_order(matrices, 1.0, np.random.default_rng(3))
    np.testing.assert_array_equal(same, drawn[3])
    # a carbon and a hydrogen differ by far more than the noise
    assert drawn[0][0, 0] == 0
    assert exact[0, 0] == 0


def test_from_triangles_is_the_transpose_of_triangles():
    random = np.random.default_rng(0)
    matrices = coulomb_matrices(some_molecules())
    order = norm_order(matrices, 1.0, random)
    values = random.normal(size=(4, 55))
    left = np.sum(triangles(matrices, order) * values)
    assert left == pytest.approx(np.sum(matrices * from_triangles(values, order)))


def test_position_gradient_is_the_derivative():
    molecules, random = some_molecules(), np.random.default_rng(0)
    weights = random.normal(size=(4, 10, 10))
    gradient = coulomb_position_gradient(molecules, weights)
    assert np.abs(gradient).max() > 1
    step = 1e-5
    for k, atom, axis in [(0, 0, 0), (0, 4, 2), (1, 3, 1), (2, 2, 2), (3, 5, 0)]:
        sides = []
        for sign in (1, -1):
            moved = molecules.positions.copy()
            moved[k, atom, axis] += sign * step
            changed = type(molecules)(moved, molecules.charges)
            sides.append(np.sum(coulomb_matrices(changed) * weights))
        numerical = (sides[0] - sides[1]) / (2 * step)
        assert gradient[k, atom, axis] == pytest.approx(numerical, abs=1e-6)
    assert not gradient[2, 3:].any()  # missing atoms


def test_too_many_atoms_are_refused():
    with pytest.raises(ValueError, match="5 atoms, and there is room for 4"):
        padded([(np.ones(5), np.zeros((5, 3)))], 4)
