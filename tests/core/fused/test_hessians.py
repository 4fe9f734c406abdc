"""Hessians by tangents against autograd through the backbone, and against differences of forces."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from conftest import copper, ethanol, small_potential

from ase_biasgrad.fused.batches import evaluate
from ase_biasgrad.fused.hessians import RigidMotions, second_derivatives
from ase_biasgrad.fused.networks import NETWORKS, compiled_network
from ase_biasgrad.fused.structures import Evaluated, SplineConstants, room_for, structures_of
from ase_biasgrad.fused.tangents import HESSIAN
from ase_biasgrad.graph import graph_from_atoms
from ase_biasgrad.potential import second_derivatives as by_autograd


def network_of(name: str, dtype=np.float64):
    torch.manual_seed(0)
    backbone = small_potential(name).backbone.double().requires_grad_(False)
    weights = {key: value.numpy() for key, value in backbone.state_dict().items()}
    network = compiled_network(name, backbone.arguments, weights, np.dtype(dtype), HESSIAN)
    return backbone, network


def structure_of(atoms: Atoms, cutoff: float):
    g = graph_from_atoms(atoms, cutoff)
    return structures_of(
        np.array([len(atoms)]), g.edge_index.numpy(), g.edge_shift.numpy().astype(np.int32),
        np.array([0, g.edge_index.shape[1]]), g.numbers.numpy(), g.positions.numpy(),
        g.cell.numpy(),
    )  # fmt: skip


def forces_of(network, atoms: Atoms) -> tuple[np.ndarray, np.ndarray]:
    """Forces `(n, 3)` and ∂E/∂ε `(3, 3)`."""
    structure, p = structure_of(atoms, network.knots.cutoff), network.program
    n = len(atoms)
    out = Evaluated(np.empty(n), np.empty((n, 3)), np.empty((1, 3, 3)))
    room = room_for(structure, p, p.weights.dtype, None)
    evaluate(
        0, 1, p.instructions, p.segments[: p.first_order], p.kept, p.local, p.weights,
        SplineConstants.of(network.knots), structure, room, out,
    )  # fmt: skip
    return out.forces, out.strain_gradient[0]


STRUCTURES = {
    "molecule": ethanol,
    "crystal": copper,
    "atoms that see their own images": lambda: bulk("Cu").repeat((1, 1, 2)),
    "an atom alone": lambda: Atoms("O"),
    "two atoms": lambda: Atoms("OH", [[0, 0, 0], [0.3, 0.4, 0.8]]),
    "a linear molecule": lambda: molecule("CO2"),
    "a molecule whose box is far away": lambda: Atoms(ethanol(), cell=3 * [30.0], pbc=True),
}


@pytest.mark.parametrize("strain", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_backbones_up_to_splines(name, structure, strain):
    backbone, network = network_of(name)
    atoms = STRUCTURES[structure]()
    if strain and not atoms.pbc.all():
        pytest.skip("only cells are strained")
    if structure != "a linear molecule":
        atoms.rattle(0.05, seed=1)
    found = second_derivatives(network, structure_of(atoms, backbone.cutoff), strain)
    expected = by_autograd(backbone, graph_from_atoms(atoms, backbone.cutoff), strain).numpy()
    assert found.shape == expected.shape
    limit = 1e-4 * max(1e-3, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=limit)
    np.testing.assert_allclose(found, found.T, rtol=0, atol=1e-10 * max(1.0, np.abs(found).max()))


@pytest.mark.parametrize(("atoms", "count"), [
    (Atoms("O"), 3), (molecule("CO2"), 5), (molecule("H2"), 5), (ethanol(), 6), (copper(), 3),
])  # fmt: skip
def test_rigid_motions_are_as_many_as_there_are(atoms, count):
    """Whatever stands in the memory that no edge uses."""
    structure, forces = structure_of(atoms, 4.0), np.zeros((len(atoms), 3))
    structure.edges.shift[structure.edges.starts[len(atoms)] :] = 7
    assert len(RigidMotions.of(structure, forces, rotations=True).coordinates) == count
    assert len(RigidMotions.of(structure, forces, rotations=False).coordinates) == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_rigid_motions_turn_the_forces(name):
    _, network = network_of(name)
    atoms = ethanol()
    atoms.rattle(0.1, seed=2)
    hessian = second_derivatives(network, structure_of(atoms, network.knots.cutoff))
    forces, _ = forces_of(network, atoms)
    axis = np.array([0.3, -0.5, 0.8])
    turned = hessian @ np.cross(axis, atoms.positions).ravel()
    expected = np.cross(axis, -forces).ravel()
    assert np.abs(expected).max() > 1e-3 * np.abs(hessian).max()
    np.testing.assert_allclose(turned, expected, rtol=0, atol=1e-11 * np.abs(hessian).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_the_derivatives_of_the_forces(name):
    """Central differences, extrapolated to step zero."""
    _, network = network_of(name)
    atoms = ethanol()
    hessian = second_derivatives(network, structure_of(atoms, network.knots.cutoff))
    for k in (0, 7, 20):
        slopes = []
        for step in (1e-3, 5e-4):
            forces = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions.reshape(-1)[k] += sign * step
                forces.append(forces_of(network, moved)[0].ravel())
            slopes.append((forces[1] - forces[0]) / (2 * step))
        extrapolated = (4 * slopes[1] - slopes[0]) / 3
        limit = 1e-8 * np.abs(hessian).max()
        np.testing.assert_allclose(hessian[k], extrapolated, rtol=0, atol=limit)


@pytest.mark.parametrize("name", NETWORKS)
def test_strains_are_those_of_the_stress(name):
    _, network = network_of(name)
    atoms = copper()
    atoms.rattle(0.05, seed=1)
    n = 3 * len(atoms)
    second = second_derivatives(network, structure_of(atoms, network.knots.cutoff), strain=True)
    for k, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        gradients = []
        for step in (1e-4, -1e-4):
            strain = np.eye(3)
            strain[i, j] += step / 2
            strain[j, i] += step / 2
            moved = atoms.copy()
            moved.set_cell(atoms.cell.array @ strain, scale_atoms=True)
            forces, gradient = forces_of(network, moved)
            # of positions and strain at first: r = r₀ (1 + ε)
            of_strain = np.linalg.solve(strain, gradient)
            gradients.append((-(forces @ strain).ravel(), 0.5 * (of_strain + of_strain.T)))
        of_positions, of_strains = (
            (a - b) / 2e-4 for a, b in zip(gradients[0], gradients[1], strict=True)
        )
        limit = 1e-5 * np.abs(second).max()
        np.testing.assert_allclose(second[n + k, :n], of_positions, rtol=0, atol=limit)
        voigt = of_strains[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        np.testing.assert_allclose(second[n + k, n:], voigt, rtol=0, atol=limit)
