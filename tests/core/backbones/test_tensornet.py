"""TensorNet: its tensors as matrices, its symmetries, and smoothness at the cutoff."""

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import copper, ethanol, small_potential
from scipy.spatial.transform import Rotation

from ase_biasgrad.backbones import TensorNet
from ase_biasgrad.backbones.tensornet import (
    PARITIES,
    PARTS,
    matrix_basis,
    pair_tensors,
    symmetric_product,
)
from ase_biasgrad.graph import graph_from_atoms


def matrices(components: torch.Tensor) -> torch.Tensor:
    """Components `(n, 9, f)` as matrices `(n, f, 3, 3)`."""
    return torch.einsum("kab,nkf->nfab", torch.from_numpy(matrix_basis()), components)


def test_the_basis_is_orthonormal_and_of_irreducible_parts():
    basis = matrix_basis()
    np.testing.assert_allclose(np.einsum("kab,lab->kl", basis, basis), np.eye(9), atol=1e-15)
    signs = [1 if part != 1 else -1 for part, size in enumerate(PARTS) for _ in range(size)]
    for matrix, sign, parity in zip(basis, signs, PARITIES, strict=True):
        np.testing.assert_allclose(matrix.T, sign * matrix)
        assert parity == sign
    np.testing.assert_allclose(np.trace(basis[1:], axis1=1, axis2=2), 0, atol=1e-15)


def test_tensors_of_a_direction_are_those_of_the_paper():
    u = np.random.default_rng(0).normal(size=3)
    u /= np.linalg.norm(u)
    parts = pair_tensors(torch.from_numpy(u)[None])[0].numpy()
    basis = matrix_basis()
    np.testing.assert_allclose(parts[0] * basis[0], np.eye(3), atol=1e-14)
    skew = np.array([[0, -u[2], u[1]], [u[2], 0, -u[0]], [-u[1], u[0], 0]])
    np.testing.assert_allclose(np.tensordot(parts[1:4], basis[1:4], 1), skew, atol=1e-14)
    symmetric = np.outer(u, u) - np.eye(3) / 3
    np.testing.assert_allclose(np.tensordot(parts[4:], basis[4:], 1), symmetric, atol=1e-14)


def test_products_are_those_of_matrices():
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, 9, 4, generator=random, dtype=torch.float64) for _ in range(2))
    one, two = matrices(x), matrices(y)
    torch.testing.assert_close(matrices(symmetric_product(x, y)), one @ two + two @ one)


def test_rotations_and_reflections_turn_the_tensors_of_every_layer():
    potential = small_potential("tensornet").double()
    net, atoms = potential.backbone, ethanol()
    seen: list[torch.Tensor] = []
    for module in (net.embedding, *net.layers):
        module.register_forward_hook(lambda _, __, output: seen.append(output))
    turned = atoms.copy()
    operation = -Rotation.from_euler("xyz", [0.3, 1.0, -2.0]).as_matrix()  # with inversion
    turned.positions = atoms.positions @ operation.T
    energies = [net(graph_from_atoms(a, net.cutoff)).detach() for a in (atoms, turned)]
    torch.testing.assert_close(*energies, rtol=0, atol=1e-10)
    turn = torch.from_numpy(operation)
    parity = torch.tensor(PARITIES)[:, None]
    layers = len(seen) // 2
    assert layers == 3
    for before, after in zip(seen[:layers], seen[layers:], strict=True):
        assert float(before[:, 4:].abs().max()) > 1e-3
        # R X Rᵀ is blind to inversion, under which the skew part changes its sign
        expected = turn @ matrices(before * parity) @ turn.T
        torch.testing.assert_close(matrices(after), expected, rtol=0, atol=1e-10)


def test_forces_vanish_smoothly_at_the_cutoff():
    potential = small_potential("tensornet").double()

    def pair(distance: float) -> tuple[float, float]:
        graph = graph_from_atoms(Atoms("OH", [[0, 0, 0], [0, 0, distance]]), potential.cutoff)
        values = potential.evaluate(graph, ["energy", "forces"])
        return float(values["energy"]), float(values["forces"].abs().max())

    apart, _ = pair(potential.cutoff + 0.1)
    for gap in (1e-2, 1e-3, 1e-4):
        energy, force = pair(potential.cutoff - gap)
        assert abs(energy - apart) < 10 * gap**2
        assert 0 < force < 20 * gap
    assert pair(potential.cutoff + 1e-9) == (apart, 0.0)


def test_fragments_out_of_reach_add_up():
    potential = small_potential("tensornet").double()
    both = ethanol(1)
    other = ethanol(2)
    other.positions += 30.0
    both += other
    graphs = [graph_from_atoms(atoms, potential.cutoff) for atoms in (ethanol(1), other, both)]
    one, two, total = (float(potential.evaluate(g, ["energy"])["energy"]) for g in graphs)
    assert total == pytest.approx(one + two, abs=1e-10)


def test_elements_without_neighbours_differ():
    potential = small_potential("tensornet").double()
    energies = [
        float(potential.evaluate(graph_from_atoms(Atoms(e), 4.0), ["energy"])["energy"])
        for e in ("H", "O", "Cu")
    ]
    assert len({round(energy, 6) for energy in energies}) == 3


def test_images_of_one_atom_count(tmp_path):
    potential = small_potential("tensornet").double()
    one, four = copper()[:1], copper()[:1] * (2, 2, 1)
    energies = [
        float(potential.evaluate(graph_from_atoms(atoms, 4.0), ["energy"])["energy"])
        for atoms in (one, four)
    ]
    assert energies[1] == pytest.approx(4 * energies[0], abs=1e-9)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="radial_functions=0 must be above zero"):
        TensorNet(radial_functions=0)
