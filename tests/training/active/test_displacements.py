"""Random displacements along soft motions."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from conftest import ethanol

from ase_biasgrad.training.active.displacements import heat_displacements
from ase_biasgrad.training.elastic import springs_of

STRUCTURES = [
    ethanol(), molecule("CO2"), molecule("H2"), bulk("Cu", cubic=True), bulk("Cu") * (2, 1, 1)
]  # fmt: skip


@pytest.mark.parametrize("atoms", STRUCTURES)
def test_the_root_mean_square_is_that_asked_for_and_nothing_moves_as_a_whole(atoms):
    moved = heat_displacements(atoms, 0.1, np.random.default_rng(0))
    assert moved.shape == (len(atoms), 3)
    assert np.sqrt(np.mean(moved**2)) == pytest.approx(0.1)
    np.testing.assert_allclose(moved.sum(axis=0), 0, atol=1e-9)
    if not atoms.pbc.any():
        arms = atoms.positions - atoms.positions.mean(axis=0)
        np.testing.assert_allclose(np.cross(arms, moved).sum(axis=0), 0, atol=1e-8)


@pytest.mark.parametrize("atoms", [Atoms("O"), bulk("Cu")])
def test_an_atom_alone_stays(atoms):
    assert np.array_equal(heat_displacements(atoms, 0.1, np.random.default_rng(0)), [[0, 0, 0]])


def test_their_covariance_is_that_of_the_springs(monkeypatch):
    """Up to the length of each, and without shifts and rotations."""
    import torch

    from ase_biasgrad.graph import graph_from_atoms
    from ase_biasgrad.training.active import displacements

    atoms, random = ethanol(), np.random.default_rng(1)
    kept = []

    def keep(moved, _):
        kept.append(moved.ravel())
        return moved

    monkeypatch.setattr(displacements, "_without_rigid_motion", keep)
    for _ in range(4000):
        heat_displacements(atoms, 0.1, random)
    found = np.cov(np.array(kept).T)
    n = len(atoms)
    expected = springs_of(graph_from_atoms(atoms, 5.0), torch.tensor([n])).inverse()
    shifts = np.tile(np.eye(3), (n, 1))
    rest = np.eye(3 * n) - shifts @ shifts.T / n
    expected = rest @ expected @ rest
    np.testing.assert_allclose(rest @ found @ rest, expected, atol=0.1 * expected.max())


def test_bonds_are_stretched_less_than_by_atoms_one_by_one():
    atoms, random = ethanol(), np.random.default_rng(2)
    bonds = [(0, 1), (0, 2)]
    stretched = {"heat": [], "each": []}
    for _ in range(50):
        for name, moved in (
            ("heat", heat_displacements(atoms, 0.1, random)),
            ("each", random.normal(0, 0.1, (len(atoms), 3))),
        ):
            new = atoms.copy()
            new.positions += moved
            stretched[name] += [new.get_distance(*b) - atoms.get_distance(*b) for b in bonds]
    assert np.std(stretched["heat"]) < 0.4 * np.std(stretched["each"])
