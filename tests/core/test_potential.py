"""Derivatives and symmetries of the reference potential, in float64."""

import numpy as np
import pytest
import torch
from ase import Atoms
from conftest import BACKBONES, EXTENSIVE, copper, ethanol, small_potential
from scipy.spatial.transform import Rotation

from ase_biasgrad.backbones import backbone_arguments, backbone_class, build_backbone
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import Potential


def evaluated(potential: Potential, atoms: Atoms, *properties: str) -> dict[str, np.ndarray]:
    graph = graph_from_atoms(atoms, potential.cutoff)
    return {k: v.numpy() for k, v in potential.evaluate(graph, properties).items()}


@pytest.fixture(params=BACKBONES)
def potential(request) -> Potential:
    return small_potential(request.param).double()


@pytest.mark.parametrize("structure", [ethanol, copper])
def test_gradcheck(potential, structure):
    graph = graph_from_atoms(structure(), potential.cutoff)
    positions = graph.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda r: potential(graph.with_geometry(r, graph.cell))[0], (positions,), atol=1e-6
    )


def test_forces_and_stress_against_finite_differences(potential):
    atoms = copper()
    values = evaluated(potential, atoms, "forces", "stress")
    energy = lambda: evaluated(potential, atoms, "energy")["energy"][0]  # noqa: E731
    step, start, cell = 5e-5, atoms.positions.copy(), atoms.cell.array.copy()
    numerical = np.zeros((4, 3))
    for index in np.ndindex(4, 3):
        difference = 0.0
        for sign in (1, -1):
            atoms.positions = start
            atoms.positions[index] += sign * step
            difference -= sign * energy()
        numerical[index] = difference / (2 * step)
    atoms.positions = start
    limit = 1e-6 * np.abs(values["forces"]).max()
    np.testing.assert_allclose(values["forces"], numerical, rtol=0, atol=limit)
    for k, (a, b) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)]):
        difference = 0.0
        for sign in (1, -1):
            strain = np.eye(3)
            strain[a, b] += 0.5 * sign * step
            strain[b, a] += 0.5 * sign * step
            atoms.set_cell(cell @ strain)
            atoms.positions = start @ strain
            difference += sign * energy()
        numerical_stress = difference / (2 * step * abs(np.linalg.det(cell)))
        limit = 1e-6 * np.abs(values["stress"]).max()
        assert abs(values["stress"][0, k] - numerical_stress) < limit


def test_rotation_translation_and_permutation(potential):
    atoms = ethanol()
    rotation = Rotation.from_euler("xyz", [0.3, 1.0, -2.0]).as_matrix()
    order = np.random.default_rng(0).permutation(9)
    moved = Atoms(atoms.numbers[order], (atoms.positions @ rotation.T + [3.0, -1.0, 7.0])[order])
    one = evaluated(potential, atoms, "energy", "forces")
    two = evaluated(potential, moved, "energy", "forces")
    np.testing.assert_allclose(one["energy"], two["energy"], atol=1e-10)
    np.testing.assert_allclose((one["forces"] @ rotation.T)[order], two["forces"], atol=1e-9)
    assert np.abs(one["forces"]).max() > 0.01
    assert np.abs(one["forces"].sum(axis=0)).max() < 1e-10


def test_a_batch_gives_what_its_structures_give(potential):
    structures = [ethanol(), copper(), copper(2)]
    graphs = [graph_from_atoms(atoms, potential.cutoff) for atoms in structures]
    together = potential.evaluate(collate(graphs), ["energy", "forces"])
    alone = [potential.evaluate(graph, ["energy", "forces"]) for graph in graphs]
    for name in ("energy", "forces"):
        expected = torch.cat([values[name] for values in alone])
        torch.testing.assert_close(together[name], expected, rtol=0, atol=1e-10)


def test_energies_sum_to_the_energy_and_energy_alone_differentiates_nothing(potential):
    values = potential.evaluate(
        graph_from_atoms(ethanol(), potential.cutoff), ["energy", "energies"]
    )
    assert abs(float(values["energies"].sum() - values["energy"][0])) < 1e-12
    assert not values["energy"].requires_grad


@pytest.mark.parametrize("name", EXTENSIVE)
def test_a_supercell_has_a_multiple_of_the_energy_and_the_same_stress(name):
    potential = small_potential(name).double()
    one = evaluated(potential, copper(), "energy", "stress")
    two = evaluated(potential, copper() * (2, 1, 2), "energy", "stress")
    np.testing.assert_allclose(4 * one["energy"], two["energy"], atol=1e-9)
    np.testing.assert_allclose(one["stress"], two["stress"], atol=1e-10)


def test_an_isolated_atom_has_no_force_and_no_stress_without_volume(potential):
    values = evaluated(potential, Atoms("O"), "energy", "forces")
    assert np.isfinite(values["energy"]).all()
    assert (values["forces"] == 0).all()
    assert np.isnan(evaluated(potential, ethanol(), "stress")["stress"]).all()
    with pytest.raises(ValueError, match="unknown properties"):
        evaluated(potential, ethanol(), "dipole")


@pytest.mark.parametrize("name", BACKBONES)
def test_a_molecule_among_crystals_leaves_their_stress_and_its_gradient(name):
    potential = small_potential(name).double()
    graphs = [graph_from_atoms(atoms, potential.cutoff) for atoms in (copper(), ethanol())]
    gradients = []
    for graph in (graphs[0], collate(graphs)):
        potential.zero_grad()
        stress = potential.evaluate(graph, ["stress"], create_graph=True)["stress"]
        stress[0].square().sum().backward()
        assert np.isnan(stress[1:].detach()).all()
        slopes = [p.grad for p in potential.backbone.parameters() if p.grad is not None]
        gradients.append(torch.cat([slope.flatten() for slope in slopes]))
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_gets_a_gradient_in_the_force_stage(name):
    from ase_biasgrad.potential import freeze_energy_shifts

    potential = small_potential(name)
    freeze_energy_shifts(potential)
    graph = graph_from_atoms(ethanol(), potential.cutoff)
    potential.evaluate(graph, ["forces"], create_graph=True)["forces"].square().sum().backward()
    missing = [n for n, p in potential.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


def test_unknown_backbones_and_arguments_are_named():
    with pytest.raises(ValueError, match="schnet, painn"):
        build_backbone("mace", {})
    with pytest.raises(ValueError, match="radial_basis='chebyshev'"):
        build_backbone("schnet", {"radial_basis": "chebyshev"})
    arguments = backbone_arguments(backbone_class("schnet"))
    assert arguments["interactions"] == 6
    assert arguments["features"] == 128
