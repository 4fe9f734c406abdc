"""The graph network made for forces: smooth, extensive, and free of the original's faults."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from conftest import copper, ethanol, small_potential
from test_atomgraph import alloy, energy, forces_and_stress, largest_jump

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.graph import collate, graph_from_atoms
from ase_biasgrad.potential import Potential

ALL_PBC = [tuple(bool(k & bit) for bit in (1, 2, 4)) for k in range(8)]
WEIGHTS = [
    {"weights": "cutoff", "decay": "inverse_square"},
    {"weights": "cutoff", "decay": "exp_decay"},
    {"weights": "voronoi"},
]


def smooth(**arguments) -> Potential:
    return small_potential("graph_convolution", **arguments).double()


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_gradcheck_through_the_whole_model(arguments):
    potential = smooth(**arguments)
    for atoms in (copper(), ethanol()):
        graph = graph_from_atoms(atoms, potential.cutoff)
        inputs = (graph.positions.requires_grad_(), graph.cell.requires_grad_())
        assert torch.autograd.gradcheck(
            lambda r, h, graph=graph: potential(graph.with_geometry(r, h))[0], inputs, atol=1e-6
        )


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_the_force_loss_can_be_differentiated(arguments):
    # what training on forces takes: the derivative of forces in a parameter
    potential = smooth(**arguments)
    graph = graph_from_atoms(copper(), potential.cutoff)
    weight = potential.backbone.convolutions[0].own.weight
    scale = torch.linspace(1, 2, 12, dtype=torch.float64).reshape(4, 3)

    def loss() -> torch.Tensor:
        return (potential.evaluate(graph, ("forces",), create_graph=True)["forces"] * scale).sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    for place in ((0, 0), (3, 5)):
        with torch.no_grad():
            weight[place] += 1e-5
            high = float(loss().detach())
            weight[place] -= 2e-5
            low = float(loss().detach())
            weight[place] += 1e-5
        assert float(gradient[place]) == pytest.approx((high - low) / 2e-5, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("name", ["graph_convolution", "atomgraph"])
@pytest.mark.parametrize("weights", ["cutoff", "voronoi"])
@pytest.mark.parametrize("pbc", ALL_PBC)
def test_the_calculator_against_finite_differences(name, weights, pbc):
    atoms = copper()
    atoms.numbers[1:3] = [8, 6]
    atoms.pbc = pbc
    atoms.positions += 2 * atoms.cell[1]  # outside of the cell
    atoms.calc = BiasGradCalculator(
        small_potential(name, weights=weights), dtype="float64", device="cpu"
    )
    forces, stress = atoms.get_forces(), atoms.get_stress()
    assert np.abs(forces).max() > 1e-3
    numerical = calculate_numerical_forces(atoms, 1e-4, iatoms=[0, 2])
    np.testing.assert_allclose(forces[[0, 2]], numerical, atol=2e-6 * np.abs(forces).max())
    numerical = calculate_numerical_stress(atoms, 1e-5)
    np.testing.assert_allclose(stress, numerical, atol=3e-6 * np.abs(stress).max())


def test_it_follows_dilation_and_diatomics_feel_forces():
    potential = smooth()
    for name in ("H2", "CO"):
        forces = potential.evaluate(graph_from_atoms(molecule(name), 4.0), ("forces",))["forces"]
        assert float(forces.abs().max()) > 1e-2
    _, stress = forces_and_stress(potential, alloy())
    assert abs(stress[:3].sum()) > 0.1 * np.abs(stress).max()


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_the_energy_is_extensive(arguments):
    potential = smooth(**arguments)
    atoms = alloy()
    doubled = atoms * (1, 2, 1)
    assert energy(potential, doubled) == pytest.approx(2 * energy(potential, atoms), rel=1e-10)
    forces, stress = forces_and_stress(potential, atoms)
    forces_of_two, stress_of_two = forces_and_stress(potential, doubled)
    np.testing.assert_allclose(forces_of_two[:8], forces, atol=1e-10)
    np.testing.assert_allclose(stress_of_two, stress, atol=1e-10)


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_far_molecules_do_not_see_each_other(arguments):
    potential = smooth(**arguments)
    two = ethanol()
    other = ethanol(1)
    other.positions += [0, 0, 30]
    together = potential.evaluate(graph_from_atoms(two + other, 4.0), ("energy", "forces"))
    alone = [
        potential.evaluate(graph_from_atoms(a, 4.0), ("energy", "forces")) for a in (two, other)
    ]
    if arguments["weights"] == "voronoi":  # cells of outer atoms end half way to the other molecule
        assert float(together["energy"]) == pytest.approx(
            float(alone[0]["energy"] + alone[1]["energy"]), abs=0.1
        )
        return
    assert float(together["energy"]) == pytest.approx(
        float(alone[0]["energy"] + alone[1]["energy"]), rel=1e-12
    )
    np.testing.assert_allclose(
        together["forces"], torch.cat([a["forces"] for a in alone]), atol=1e-12
    )


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_the_energy_is_continuous_past_cutoff_and_neighbour_limit(arguments):
    potential = smooth(**arguments)

    def interstitial(shift: float) -> float:
        """The paths on which the original jumps: past the twelve neighbours of an atom …"""
        atoms = bulk("Cu", cubic=True) * (2, 2, 2) + Atoms("O", [[1.805 + shift, 0.1, 0.05]])
        atoms.positions[0] += [0.03, 0.02, 0.01]
        return energy(potential, atoms)

    def leaving(shift: float) -> float:
        """… and out of the cutoff."""
        return energy(potential, Atoms("CuO2", [[0, 0, 0], [0, 0, 2], [0, 3.9 + shift, 0]]))

    steps = 8 if arguments["weights"] == "voronoi" else 25
    assert largest_jump(interstitial, 0.0, 0.6, steps) < 1e-6
    assert largest_jump(leaving, 0.0, 0.2, steps) < 1e-6


def test_forces_vanish_smoothly_at_the_cutoff():
    def force(d: float) -> float:
        graph = graph_from_atoms(Atoms("CuO", [[0, 0, 0], [0, 0, d]]), 4.0)
        return float(smooth().evaluate(graph, ("forces",))["forces"][1, 2])

    assert force(4.01) == 0
    assert abs(force(3.999)) < 1e-4
    assert abs(force(3.5)) > 1e-3


def test_a_voronoi_face_that_appears_changes_the_energy_continuously():
    potential = smooth(weights="voronoi", cutoff=6.0)

    def sheared(shear: float) -> float:
        atoms = bulk("Cu", "sc", a=3.0) * (2, 2, 1)
        atoms.numbers[0] = 8
        atoms.set_cell(atoms.cell.array @ [[1, shear, 0], [0, 1, 0], [0, 0, 1]], scale_atoms=True)
        return energy(potential, atoms)

    assert largest_jump(sheared, -0.11, 0.1, 10) < 1e-6

    # and an atom that moves through the faces of a crystal's cells
    def moved(shift: float) -> float:
        atoms = copper()
        atoms.positions[1] += [shift, 0.3 * shift, 0.1 * shift]
        return energy(potential, atoms)

    assert largest_jump(moved, -0.8, 0.8, 15) < 1e-6


@pytest.mark.parametrize("arguments", WEIGHTS)
def test_a_batch_gives_what_its_structures_give(arguments):
    potential = smooth(**arguments)
    graphs = [graph_from_atoms(a, potential.cutoff) for a in (alloy(), ethanol(), Atoms("O"))]
    alone = torch.cat([potential(g)[0] for g in graphs])
    torch.testing.assert_close(potential(collate(graphs))[0], alone, rtol=0, atol=1e-11)


def test_unknown_options_are_named():
    for argument in ("weights", "decay"):
        with pytest.raises(ValueError, match=f"{argument}='median'"):
            build_backbone("graph_convolution", {argument: "median"})
    with pytest.raises(ValueError, match="features=0"):
        build_backbone("graph_convolution", {"features": 0})
