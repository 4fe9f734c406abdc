"""Voronoi weights: against rays shot in random directions, closed forms, and differences."""

import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, make_supercell, molecule
from conftest import copper, ethanol
from scipy.spatial.transform import Rotation

from ase_biasgrad.differentiable_graph import (
    normalised_laplacian,
    voronoi_adjacency,
    voronoi_faces,
    weights_voronoi,
)
from ase_biasgrad.graph import collate, graph_from_atoms

ALL_PBC = [tuple(bool(k & bit) for bit in (1, 2, 4)) for k in range(8)]


def weights(atoms: Atoms) -> np.ndarray:
    return weights_voronoi(graph_from_atoms(atoms, 1.0)).numpy()


def rattled(atoms: Atoms, size: float = 0.05, seed: int = 0) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0, size, atoms.positions.shape)
    return atoms


def by_rays(atoms: Atoms, images: int, rays: int = 8_000) -> np.ndarray:
    """Share of random directions from each atom that leave its cell towards each other atom."""
    random = np.random.default_rng(0)
    directions = random.normal(size=(rays, 3))
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    ranges = [range(-images, images + 1) if periodic else [0] for periodic in atoms.pbc]
    shifts = np.array(np.meshgrid(*ranges)).reshape(3, -1).T @ atoms.cell.array
    sites = (atoms.positions[None] + shifts[:, None]).reshape(-1, 3)
    owner = np.tile(np.arange(len(atoms)), len(shifts))
    shares = np.zeros((len(atoms), len(atoms)))
    for i, position in enumerate(atoms.positions):
        bonds = sites - position
        lengths = np.linalg.norm(bonds, axis=1)
        near = (lengths > 1e-9) & (lengths < 9)
        towards = directions @ bonds[near].T  # (rays, sites)
        # a ray leaves the cell at half the squared distance over its component along the bond
        crossing = np.where(towards > 1e-12, lengths[near] ** 2 / (2 * towards), np.inf)
        first = crossing.argmin(axis=1)
        left = np.isfinite(crossing.min(axis=1))
        shares[i] = np.bincount(owner[near][first[left]], minlength=len(atoms)) / rays
    return shares


STRUCTURES = {
    "copper": (copper(), 2),
    "diamond": (bulk("Si"), 3),
    "graphite": (Atoms("C4", cell=[2.46, 2.46, 6.7, 90, 90, 120], pbc=True), 4),
    "rocksalt": (bulk("NaCl", "rocksalt", a=5.6), 2),
    "slab": (rattled(fcc111("Cu", (2, 2, 2))), 3),
    "flat layer": (Atoms("B2", cell=[[2.5, 0, 0], [1, 2.2, 0], [0, 0, 0]], pbc=[1, 1, 0]), 5),
    "wire": (Atoms("CuAu", [[0, 0, 0], [1.2, 0.3, 0.4]], cell=[2.5, 0, 0], pbc=[1, 0, 0]), 4),
    "ethanol": (ethanol(), 0),
    "benzene": (molecule("C6H6"), 0),
    "carbon dioxide": (molecule("CO2"), 0),
    "water": (molecule("H2O"), 0),
    "dimer": (molecule("H2"), 0),
}
STRUCTURES["graphite"][0].set_scaled_positions(
    [[0, 0, 0], [1 / 3, 2 / 3, 0], [0, 0, 0.5], [2 / 3, 1 / 3, 0.5]]
)
STRUCTURES["flat layer"][0].positions[1] = [1.6, 1.0, 0]


@pytest.mark.parametrize("name", STRUCTURES)
def test_weights_are_shares_of_random_directions(name):
    atoms, images = STRUCTURES[name]
    got, expected = weights(atoms), by_rays(atoms, images)
    # five standard deviations of 8 000 rays
    assert np.abs(got - expected).max() < 5 * math.sqrt(0.25 / 8_000)
    assert got.min() >= 0
    assert np.abs(got - got.T).max() < 1e-12
    if atoms.pbc.all():
        np.testing.assert_allclose(got.sum(axis=1), 1, atol=1e-12)
    else:
        assert got.sum(axis=1).max() < 1 + 1e-6


def test_perfect_crystals_have_their_shares():
    neighbours = {"sc": 6, "fcc": 12}
    for structure, count in neighbours.items():
        atoms = bulk("Cu", structure, a=3.0, cubic=True) * (3, 3, 3)
        row = weights(atoms)[0]
        np.testing.assert_allclose(np.sort(row)[-count:], 1 / count, atol=1e-12)
        assert np.sort(row)[:-count].max() == 0
    # truncated octahedron: the square faces' share, from the right angle at their corners
    row = weights(bulk("Cu", "bcc", a=3.0, cubic=True) * (3, 3, 3))[0]
    values, counts = np.unique(row.round(12), return_counts=True)
    assert counts[-2:].tolist() == [6, 8] or counts[-2:].tolist() == [8, 6]
    # a square of half diagonal 1/4 at the height 1/2 above the centre
    side, height = math.sqrt(2) / 4, 0.5
    square = 4 * math.asin((side / 2) ** 2 / ((side / 2) ** 2 + height**2)) / (4 * math.pi)
    np.testing.assert_allclose(sorted(values[-2:]), [square, (1 - 6 * square) / 8], atol=1e-12)


def test_the_sum_over_all_faces_is_the_full_solid_angle():
    faces = voronoi_faces(graph_from_atoms(rattled(bulk("Si", cubic=True) * 2, 0.2), 1.0))
    total = np.bincount(faces.centre, weights=faces.solid_angles)
    np.testing.assert_allclose(total, 4 * np.pi, atol=1e-11)
    assert len(faces.centre) / 64 > 13


@pytest.mark.parametrize("pbc", ALL_PBC)
def test_gradcheck_with_any_periodicity(pbc):
    atoms = copper()
    atoms.pbc = pbc
    atoms.positions += 3 * atoms.cell[0] - atoms.cell[2]  # outside of the cell
    graph = graph_from_atoms(atoms, 1.0)
    identity = torch.eye(3, dtype=torch.float64)

    def of(positions, strain):
        strained = graph.with_geometry(
            positions @ (identity + strain), graph.cell @ (identity + strain)
        )
        return weights_voronoi(strained)

    inputs = (graph.positions.requires_grad_(), torch.zeros_like(identity).requires_grad_())
    assert torch.autograd.gradcheck(of, inputs, atol=1e-7)
    if pbc[0] == pbc[1]:  # none, wire, slab and crystal
        assert torch.autograd.gradgradcheck(of, inputs, atol=1e-5)


@pytest.mark.parametrize("name", ["C2H6", "C6H6", "H2O", "CO2", "H2", "CH4"])
def test_gradcheck_of_molecules(name):
    graph = graph_from_atoms(rattled(molecule(name), 0.03), 1.0)
    positions = graph.positions.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r: weights_voronoi(graph.with_geometry(r, graph.cell)), positions, atol=1e-6
    )


def test_volumes_and_their_derivatives_have_closed_forms():
    atoms = rattled(bulk("Cu", cubic=True) * (2, 2, 1), 0.1)
    graph = graph_from_atoms(atoms, 1.0)
    positions = graph.positions.requires_grad_()
    faces = voronoi_faces(graph.with_geometry(positions, graph.cell))
    volumes = faces.cell_volumes(len(atoms))
    assert float(volumes.sum()) == pytest.approx(atoms.get_volume(), rel=1e-12)
    areas, bonds = faces.areas().detach(), faces.bonds.detach()
    # ∂V_i/∂x_j = (A_ij / d_ij) (x_j − c_ij), for all images of j, j ≠ i
    outward = (areas / bonds.norm(dim=1))[:, None] * (bonds - faces.centroids().detach())
    for i in (0, 7):
        (gradient,) = torch.autograd.grad(volumes[i], positions, retain_graph=True)
        expected = torch.zeros_like(gradient)
        mine = (faces.centre == i) & (faces.neighbour != i)
        expected.index_add_(0, faces.neighbour[mine], outward[mine])
        expected[i] = -expected.sum(dim=0)  # nothing changes when all atoms move
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-11)
        assert float(gradient.abs().max()) > 0.5


@pytest.mark.parametrize("name", ["ethanol", "benzene", "slab", "wire", "copper"])
def test_weights_depend_on_nothing_but_relative_positions(name):
    atoms, _ = STRUCTURES[name]
    expected = weights(atoms)
    for seed in range(5):
        rotation = Rotation.random(random_state=seed).as_matrix()
        order = np.random.default_rng(seed).permutation(len(atoms))
        moved = Atoms(
            atoms.numbers[order],
            (atoms.positions @ rotation.T + [5.0, -40.0, 3.0])[order],
            cell=atoms.cell.array @ rotation.T,
            pbc=atoms.pbc,
        )
        np.testing.assert_allclose(weights(moved), expected[np.ix_(order, order)], atol=1e-9)


def test_another_cell_of_the_same_crystal_has_the_same_weights():
    atoms = copper()
    skewed = make_supercell(atoms, [[1, 0, 0], [2, 1, 0], [-3, 2, 1]])
    order = [
        int(np.linalg.norm((skewed.get_scaled_positions() - s + 0.5) % 1 - 0.5, axis=1).argmin())
        for s in np.linalg.solve(skewed.cell.array.T, atoms.positions.T).T
    ]
    np.testing.assert_allclose(weights(skewed)[np.ix_(order, order)], weights(atoms), atol=1e-12)
    left = atoms.copy()
    left.set_cell(atoms.cell.array[[1, 0, 2]])
    np.testing.assert_allclose(weights(left), weights(atoms), atol=1e-12)


@pytest.mark.parametrize("structure", ["sc", "fcc", "diamond", "rocksalt"])
def test_degenerate_crystals_have_symmetric_derivatives(structure):
    atoms = bulk("NaCl" if structure == "rocksalt" else "Cu", structure, a=5.0, cubic=True)
    atoms *= (3, 3, 3) if structure == "sc" else (1, 1, 1)
    graph = graph_from_atoms(atoms, 1.0)
    positions = graph.positions.requires_grad_()
    strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
    deformation = torch.eye(3) + 0.5 * (strain + strain.T)
    faces = voronoi_faces(graph.with_geometry(positions @ deformation, graph.cell @ deformation))
    # something that depends on angles and lengths alike
    energy = (faces.solid_angles**1.5 * faces.bonds.norm(dim=1)).sum()
    forces, stress = torch.autograd.grad(energy, (positions, strain))
    assert float(forces.abs().max()) < 1e-10
    pressure = float(stress.trace()) / 3
    assert abs(pressure) > 1
    torch.testing.assert_close(
        stress, pressure * torch.eye(3).double(), rtol=0, atol=1e-9 * abs(pressure)
    )


@pytest.mark.parametrize("structure", ["sc", "fcc", "diamond"])
@pytest.mark.parametrize("noise", [1e-14, 1e-11, 1e-8, 1e-6, 1e-5])
def test_nearly_degenerate_crystals_are_as_smooth(structure, noise):
    perfect = bulk("Cu", structure, a=4.0, cubic=True)
    perfect *= (3, 3, 3) if structure == "sc" else (2, 2, 2)
    coefficients = torch.tensor(np.random.default_rng(1).normal(size=(len(perfect),) * 2))

    def gradient(atoms):
        graph = graph_from_atoms(atoms, 1.0)
        positions = graph.positions.requires_grad_()
        moved = graph.with_geometry(positions, graph.cell)
        (weights_voronoi(moved) * coefficients).sum().backward()
        return positions.grad.numpy()

    noisy = rattled(perfect, noise)
    assert np.abs(weights(noisy) - weights(perfect)).max() < 3 * noise + 1e-12
    if structure != "sc":  # there, strips appear with a slope of their own
        assert np.abs(gradient(noisy) - gradient(perfect)).max() < 30 * noise + 1e-8
    assert np.abs(gradient(noisy)).max() < 5


def test_a_face_that_appears_does_so_continuously():
    # diagonal neighbours of a square lattice touch under shear, with a slope from zero on
    def weight(shear):
        atoms = bulk("Cu", "sc", a=3.0) * (3, 3, 3)
        atoms.set_cell(atoms.cell.array @ [[1, shear, 0], [0, 1, 0], [0, 0, 1]], scale_atoms=True)
        return weights(atoms)[0]

    path = np.array([weight(shear) for shear in np.linspace(-2e-3, 2e-3, 9)])
    assert np.abs(np.diff(path, axis=0)).max() < 5e-4
    appeared = (path[0] == 0) & (path[-1] > 0)
    assert appeared.any()
    # and a face at a corner of fcc cells with no slope either
    tiny = weights(rattled(bulk("Cu", cubic=True) * (2, 2, 2), 1e-4))
    perfect = weights(bulk("Cu", cubic=True) * (2, 2, 2))
    new = (perfect == 0) & (tiny > 0)
    assert new.any()
    assert tiny[new].max() < 1e-7


def test_a_batch_is_blocks():
    structures = [ethanol(), copper(), Atoms("O"), Atoms(), bulk("Si")]
    graphs = [graph_from_atoms(atoms, 1.0) for atoms in structures]
    together = voronoi_adjacency(collate(graphs)).dense()
    alone = torch.block_diag(*[weights_voronoi(g) for g in graphs if len(g.numbers)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-14)


def test_atoms_without_neighbours_and_atoms_at_one_place():
    assert weights(Atoms("O")).tolist() == [[0.0]]
    assert weights(Atoms()).shape == (0, 0)
    with pytest.raises(ValueError, match=r"atoms \[1, 2\] are at the same place"):
        weights(Atoms("O3", [[0, 0, 0], [1, 1, 1], [1, 1, 1]]))
    with pytest.raises(ValueError, match=r"atoms \[0, 1\] are at the same place"):
        weights(Atoms("O2", [[0, 0, 0], [3, 0, 0]], cell=[3, 3, 3], pbc=True))
    bad = ethanol()
    bad.positions[2] = np.nan
    with pytest.raises(ValueError, match="atom 2"):
        weights_voronoi(
            graph_from_atoms(ethanol(), 1.0).with_geometry(
                torch.tensor(bad.positions), torch.zeros(1, 3, 3)
            )
        )


def by_the_original(graph) -> np.ndarray:
    """The loops of AtomGraphs.jl over atoms, neighbours and images, entry by entry."""
    faces = voronoi_faces(graph)
    largest = [
        float(faces.solid_angles[faces.centre == i].max()) for i in range(len(graph.numbers))
    ]
    weights = np.zeros((len(largest), len(largest)))
    for i, j, angle in zip(faces.centre, faces.neighbour, faces.solid_angles, strict=True):
        weights[i, j] += float(angle) / largest[i]
    return 0.5 * (weights + weights.T)


@pytest.mark.parametrize("name", ["copper", "slab", "benzene", "water"])
def test_shares_of_the_largest_face(name):
    graph = graph_from_atoms(rattled(STRUCTURES[name][0], 0.1), 1.0)
    positions = graph.positions.requires_grad_()

    def of(positions):
        return weights_voronoi(graph.with_geometry(positions, graph.cell), largest_face=True)

    np.testing.assert_allclose(of(positions).detach(), by_the_original(graph), atol=1e-13)
    assert torch.autograd.gradcheck(of, positions, atol=1e-6)


def test_both_normalisations_differ_by_a_factor_in_elemental_crystals_alone():
    perfect = graph_from_atoms(bulk("Cu", cubic=True) * (2, 2, 2), 1.0)
    share, largest = weights_voronoi(perfect), weights_voronoi(perfect, largest_face=True)
    torch.testing.assert_close(largest, 12 * share, rtol=0, atol=1e-12)
    rocksalt = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    distorted = graph_from_atoms(rattled(rocksalt, 0.3), 1.0)
    one, two = (normalised_laplacian(weights_voronoi(distorted, k)) for k in (False, True))
    assert 0.003 < float((one - two).abs().max()) < 0.1
