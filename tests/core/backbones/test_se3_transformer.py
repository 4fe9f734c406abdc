"""Promises of the SE(3)-Transformer as a potential beyond the tests of all backbones."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import ethanol, small_potential

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.backbones.se3_transformer import quintic_envelope
from ase_biasgrad.graph import graph_from_atoms


def energy(potential, atoms: Atoms) -> float:
    return float(
        potential.evaluate(graph_from_atoms(atoms, potential.cutoff), ["energy"])["energy"]
    )


@pytest.mark.parametrize("odd_paths", [False, True])
def test_mirror_images(odd_paths):
    """Kernels odd under reflection tell a chiral arrangement from its image; others cannot."""
    potential = small_potential("se3_transformer", odd_paths=odd_paths, layers=3).double()
    atoms = ethanol()
    mirrored = Atoms(atoms.numbers, atoms.positions * [1, 1, -1])
    difference = abs(energy(potential, atoms) - energy(potential, mirrored))
    assert difference > 1e-6 if odd_paths else difference < 1e-10


def test_neighbours_come_and_go_smoothly():
    """Energy and force of two and three atoms are continuous where a pair passes the cutoff."""
    potential = small_potential("se3_transformer").double()
    for others in ([], [[0.0, 1.5, 0.0]]):
        values = []
        for distance in 4.0 + np.array([-1e-3, -5e-4, 5e-4, 1e-3]):
            atoms = Atoms("O" * (2 + len(others)), [[0.0, 0, 0], [distance, 0, 0], *others])
            graph = graph_from_atoms(atoms, 4.0)
            value = potential.evaluate(graph, ["energy", "forces"])
            values.append((float(value["energy"]), value["forces"].numpy()))
        assert abs(values[1][0] - values[2][0]) < 1e-7
        assert np.abs(values[1][1] - values[2][1]).max() < 1e-5
    near = Atoms("O2", [[0.0, 0, 0], [2.0, 0, 0]])
    far = Atoms("O2", [[0.0, 0, 0], [4.1, 0, 0]])
    assert abs(energy(potential, near) - energy(potential, far)) > 1e-4


def test_symmetric_surroundings_have_smooth_energies():
    """Features that vanish by symmetry have derivatives there: no |v| in the way."""
    potential = small_potential("se3_transformer").double()
    square = Atoms("CO4", [[0, 0, 0], [1.5, 0, 0], [-1.5, 0, 0], [0, 1.5, 0], [0, -1.5, 0]])
    graph = graph_from_atoms(square, potential.cutoff)
    forces = []
    for step in (0.0, 1e-6):
        moved = graph.positions.clone()
        moved[0, 2] += step
        value = potential.evaluate(graph.with_geometry(moved, graph.cell), ["forces"])
        forces.append(value["forces"])
    assert torch.isfinite(forces[0]).all()
    assert forces[0][0].abs().max() < 1e-12
    assert (forces[1] - forces[0]).abs().max() < 1e-4


def test_the_envelope():
    x = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    envelope = quintic_envelope(x)
    assert envelope[0] == 1
    assert envelope[5] == 0.5
    assert (envelope.diff() < 0).all()
    values = envelope
    for _ in range(3):  # value, slope and curvature vanish at the cutoff
        assert abs(float(values[-1])) < 1e-12
        (values,) = torch.autograd.grad(values.sum(), x, create_graph=True)


def test_low_memory_changes_nothing():
    graph = graph_from_atoms(ethanol(), 4.0)
    gradients = []
    for low_memory in (False, True):
        potential = small_potential("se3_transformer", low_memory=low_memory).double()
        forces = potential.evaluate(graph, ["forces"], create_graph=True)["forces"]
        forces.square().sum().backward()
        gradients.append([p.grad for p in potential.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_what_cannot_be_built():
    with pytest.raises(ValueError, match="layers=0"):
        build_backbone("se3_transformer", {"layers": 0})
    with pytest.raises(ValueError, match="3 heads cannot share"):
        build_backbone("se3_transformer", {"heads": 3})


def test_e3nn_is_not_loaded_by_those_who_do_not_use_it():
    code = "import sys, ase_biasgrad.backbones; sys.exit('e3nn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
