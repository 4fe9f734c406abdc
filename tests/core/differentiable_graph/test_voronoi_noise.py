"""Voronoi weights of flat, open and degenerate systems under noise of any size.

Three things are asked of every draw: that rays shot from the atoms leave through the faces as often
as the weights say, that the weights are no further from those of the perfect system than a constant
times the noise, and that their derivative is that of differences.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule, nanotube, surface
from conftest import copper, ethanol

from ase_biasgrad.differentiable_graph import voronoi, voronoi_faces, weights_voronoi
from ase_biasgrad.graph import AtomGraph, graph_from_atoms

NOISE = [10.0**-k for k in range(12, 1, -1)]  # Å


def periodic(atoms: Atoms, *pbc: bool) -> Atoms:
    atoms.pbc = pbc
    return atoms


def on_a_sphere(n: int) -> np.ndarray:
    """Points that see each other through one corner, where all of their edges meet."""
    points = np.random.default_rng(n).normal(size=(n, 3))
    return 4 * points / np.linalg.norm(points, axis=1)[:, None]


STRUCTURES = {
    "fcc": bulk("Cu", cubic=True),
    "bcc": bulk("Fe", cubic=True) * (2, 1, 1),
    "sc": bulk("Cu", "sc", a=3.0) * (2, 2, 2),
    "diamond": bulk("Si", cubic=True),
    "rocksalt": bulk("NaCl", "rocksalt", a=5.6, cubic=True),
    "hcp": bulk("Mg"),
    "rattled": copper(),
    "fcc slab": fcc111("Cu", (2, 2, 3)),
    "stepped slab": periodic(surface(bulk("Cu", cubic=True), (3, 2, 0), 5), True, True, False),
    "square sheet": Atoms("Cu2", [[0, 0, 0], [2.5, 0, 0]], cell=[5, 2.5, 0], pbc=[1, 1, 0]),
    "graphene": periodic(graphene(size=(2, 2, 1)), True, True, False),
    "nanotube": periodic(nanotube(4, 4), False, False, True),
    "wire": Atoms("Cu", cell=[2.5, 0, 0], pbc=[1, 0, 0]),
    "zigzag": Atoms("C2", [[0, 0, 0], [1.2, 0.7, 0]], cell=[2.4, 0, 0], pbc=[1, 0, 0]),
    "benzene": molecule("C6H6"),
    "square ring": Atoms("P4", [[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]]),
    "cage": Atoms("C40", on_a_sphere(40)),
    "ethanol": ethanol(),
    "methane": molecule("CH4"),
    "ammonia": molecule("NH3"),
    "water": molecule("H2O"),
    "carbon dioxide": molecule("CO2"),
    "acetylene": molecule("C2H2"),
    "chain": Atoms("C30", [[0, 0, 1.3 * k] for k in range(30)]),
    "pair": molecule("H2"),
    "lone atom in a crystal": Atoms("Ar", cell=[3.0, 3.0, 3.0], pbc=True),
}


def weights(atoms: Atoms) -> np.ndarray:
    return weights_voronoi(graph_from_atoms(atoms, 1.0)).numpy()


def shares_of_rays(atoms: Atoms, rays: int, random: np.random.Generator) -> np.ndarray:
    """Share of random directions that leave the cell of each atom towards each other one."""
    reach = 3 if atoms.cell.volume and len(atoms) < 4 else 2
    ranges = [range(-reach, reach + 1) if p else [0] for p in atoms.pbc]
    shifts = np.array(list(itertools.product(*ranges))) @ atoms.cell.array
    sites = (atoms.positions + shifts[:, None]).reshape(-1, 3)
    owner = np.tile(np.arange(len(atoms)), len(shifts))
    shares = np.zeros((len(atoms), len(atoms)))
    directions = random.normal(size=(rays, 3))
    for i, position in enumerate(atoms.positions):
        bonds = sites - position
        lengths = np.linalg.norm(bonds, axis=1)
        bonds[lengths == 0], lengths[lengths == 0] = 0.0, 1.0
        # 1 / distance at which a ray meets the plane half way to each site
        meets = directions @ (2 * bonds / lengths[:, None] ** 2).T
        towards = owner[meets.argmax(axis=1)][meets.max(axis=1) > 0]
        shares[i] = np.bincount(towards, minlength=len(atoms)) / rays
    return shares


def check_draw(atoms: Atoms, perfect: np.ndarray, noise: float, random: np.random.Generator):
    moved = atoms.copy()
    moves = random.normal(0, noise, (len(atoms), 3))
    moved.positions += moves
    graph = graph_from_atoms(moved, 1.0)
    positions = graph.positions.requires_grad_()
    got = weights_voronoi(graph.with_geometry(positions, graph.cell))
    found = got.detach().numpy()
    # no further from the perfect system than the atoms have moved, times a constant
    assert np.abs(found - perfect).max() < 3 * np.abs(moves).max() + 1e-11
    assert found.min() >= 0
    assert found.sum(axis=1).max() < 1 + 1e-11
    if atoms.pbc.all():
        assert found.sum(axis=1).min() > 1 - 1e-11
    rays = 1000
    deviation = np.abs(found - shares_of_rays(moved, rays, random))
    assert (deviation < 6.5 * np.sqrt(found * (1 - found) / rays) + 3 / rays).all()
    if noise >= 1e-8:
        check_derivative(graph, got, positions, noise, random)


def check_derivative(
    graph: AtomGraph,
    got: torch.Tensor,
    positions: torch.Tensor,
    noise: float,
    random: np.random.Generator,
) -> None:
    """The derivative is the central difference, or one of both slopes where a face appears."""
    factors = torch.from_numpy(random.normal(size=got.shape))
    (gradient,) = torch.autograd.grad((got * factors).sum(), positions)
    assert torch.isfinite(gradient).all()
    direction = torch.from_numpy(random.normal(size=positions.shape))
    slope, step = float((gradient * direction).sum()), 1e-3 * noise
    start = positions.detach()
    values = []
    for k in (-1, 0, 1):
        moved = graph.with_geometry(start + k * step * direction, graph.cell)
        values.append(float((weights_voronoi(moved) * factors).sum()))
    backward, forward = np.diff(values) / step
    tolerance = 2e-3 * float(gradient.norm() * direction.norm()) + 1e-13 / step
    slopes = np.array([backward, forward, 0.5 * (backward + forward)])
    assert np.abs(slopes - slope).min() < tolerance


@pytest.fixture(scope="module")
def perfect() -> dict[str, np.ndarray]:
    return {name: weights(atoms) for name, atoms in STRUCTURES.items()}


@pytest.mark.parametrize("name", STRUCTURES)
def test_perfect_systems_are_those_of_rays(name, perfect):
    rays, found = 20_000, perfect[name]
    deviation = np.abs(found - shares_of_rays(STRUCTURES[name], rays, np.random.default_rng(0)))
    assert (deviation <= 5 * np.sqrt(found * (1 - found) / rays)).all()


@pytest.mark.parametrize("name", STRUCTURES)
def test_perfect_systems_have_finite_derivatives(name):
    graph = graph_from_atoms(STRUCTURES[name], 1.0)
    positions = graph.positions.requires_grad_()
    found = weights_voronoi(graph.with_geometry(positions, graph.cell))
    factors = torch.from_numpy(np.random.default_rng(0).normal(size=found.shape))
    (first,) = torch.autograd.grad((found * factors).sum(), positions, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), positions)
    assert float(first.detach().abs().max()) < 5
    assert torch.isfinite(second).all()


def draws(count: int, seed: int) -> None:
    """Structures and sizes of noise in turn."""
    random = np.random.default_rng(seed)
    references = {name: weights(atoms) for name, atoms in STRUCTURES.items()}
    for k, (name, noise) in zip(
        range(count), itertools.cycle(itertools.product(STRUCTURES, NOISE)), strict=False
    ):
        state = random.bit_generator.state
        try:
            check_draw(STRUCTURES[name], references[name], noise, random)
        except Exception as error:
            raise AssertionError(f"draw {k}: {name}, {noise:g} Å, from {state}") from error


def test_noise():
    draws(len(STRUCTURES) * len(NOISE), seed=0)


@pytest.mark.slow
def test_noise_10_000_times():
    draws(10_000, seed=1)


def test_the_benzene_of_the_report():
    atoms = molecule("C6H6")
    atoms.positions += np.random.default_rng(12).normal(size=(12, 3)) * 1e-6
    faces = voronoi_faces(graph_from_atoms(atoms, 1.0))
    assert float(faces.solid_angles.max()) < 2 * np.pi + 1e-9
    total = np.bincount(faces.centre, weights=faces.solid_angles) + faces.sky.numpy()
    np.testing.assert_allclose(total, 4 * np.pi, atol=1e-12)
    # carbon looks at the molecule above and below, too; a sixth of what hydrogen sees is open sky
    np.testing.assert_allclose(weights(atoms).sum(axis=1), [1] * 6 + [5 / 6] * 6, atol=1e-5)


@pytest.mark.parametrize("damage", ["lost face", "lost edge", "lost sky"])
def test_cells_that_do_not_close_are_an_error(damage, monkeypatch):
    def damaged(*arguments):
        t = voronoi_topology(*arguments)
        if damage == "lost edge":
            return replace(t, face=t.face[1:], across=t.across[1:], turns=t.turns[1:])
        if damage == "lost sky":
            return replace(t, sky=t.sky * [1, 0, 1, 1, 1])
        kept = t.face < t.face.max()
        across = np.where(t.across == t.face.max(), -1, t.across)[kept]
        parts = {"centre": t.centre[:-1], "neighbour": t.neighbour[:-1], "shift": t.shift[:-1]}
        return replace(t, **parts, face=t.face[kept], across=across, turns=t.turns[kept])

    voronoi_topology = voronoi.voronoi_topology
    weights(molecule("CH4"))
    monkeypatch.setattr(voronoi, "voronoi_topology", damaged)
    with pytest.raises(
        RuntimeError, match=r"the Voronoi cell of atom \d does not close: its faces"
    ):
        weights(molecule("CH4"))
