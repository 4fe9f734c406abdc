"""The elastic network of the force loss: against a plain sum over pairs, and what it weighs."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.data import covalent_radii
from conftest import small_potential

from ase_biasgrad.graph import AtomGraph, collate, graph_from_atoms
from ase_biasgrad.training.config import ForceStageOptions
from ase_biasgrad.training.elastic import FLOOR, Springs, springs_of
from ase_biasgrad.training.force_stage import ForceStage

STRUCTURES = {
    "ethanol": molecule("CH3CH2OH"),
    "water": molecule("H2O"),
    "atom": Atoms("Ar"),
    "crystal": bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1)),
}


def springs(*structures: Atoms, cutoff: float = 5.0, largest: int | None = None) -> Springs:
    graph = collate([graph_from_atoms(atoms, cutoff) for atoms in structures])
    atoms = torch.tensor([len(a) for a in structures])
    return springs_of(graph, atoms, largest or int(atoms.max()))


def errors_of(atoms: Atoms, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(len(atoms), 3)))


def stiffness_of(graph: AtomGraph) -> np.ndarray:
    """Second derivative of Σ k/2 (r − r₀)² over pairs at rest, pair by pair."""
    n = len(graph.numbers)
    total = np.zeros((n, 3, n, 3))
    vectors = graph.edge_vectors().numpy()
    for (i, j), vector in zip(graph.edge_index.T.tolist(), vectors, strict=True):
        r = np.linalg.norm(vector)
        bond = covalent_radii[int(graph.numbers[i])] + covalent_radii[int(graph.numbers[j])]
        spring = (bond / r) ** 4 * np.outer(vector, vector) / r**2
        total[i, :, i] += spring / 2  # each pair is there twice
        total[j, :, j] += spring / 2
        total[i, :, j] -= spring / 2
        total[j, :, i] -= spring / 2
    return total.reshape(3 * n, 3 * n)


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_lengths_are_those_of_the_network(name):
    atoms = STRUCTURES[name]
    stiffness = stiffness_of(graph_from_atoms(atoms, 5.0)) / FLOOR + np.eye(3 * len(atoms))
    error = errors_of(atoms)
    flat = error.numpy().ravel()
    expected = np.sqrt(flat @ np.linalg.solve(stiffness, flat) / flat.size)
    assert springs(atoms).lengths(error).numpy() == pytest.approx([expected], rel=1e-10)


def test_structures_of_a_batch_do_not_feel_each_other():
    structures = [STRUCTURES[name] for name in ("water", "ethanol", "atom", "water")]
    errors = [errors_of(atoms, seed) for seed, atoms in enumerate(structures)]
    alone = [springs(a, cutoff=20.0).lengths(e) for a, e in zip(structures, errors, strict=True)]
    together = springs(*structures, cutoff=20.0, largest=16).lengths(torch.cat(errors))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)


def test_a_translation_counts_fully_and_a_stretch_by_its_stiffness():
    bond = covalent_radii[7] * 2
    nitrogen = springs(Atoms("N2", [[0, 0, 0], [0, 0, bond]]))
    push = torch.tensor([[0.3, -0.2, 0.5]] * 2, dtype=torch.float64)
    assert nitrogen.lengths(push).item() == pytest.approx(push.square().mean().sqrt().item())
    stretch = torch.tensor([[0, 0, 1.0], [0, 0, -1.0]], dtype=torch.float64)
    rms = stretch.square().mean().sqrt().item()
    expected = rms * np.sqrt(FLOOR / (FLOOR + 2))
    assert nitrogen.lengths(stretch).item() == pytest.approx(expected, rel=1e-10)


def test_torsion_counts_more_than_stretch():
    ethanol = STRUCTURES["ethanol"]
    oxygen, hydrogen = 2, 3
    along = ethanol.positions[hydrogen] - ethanol.positions[oxygen]
    carbon = ethanol.positions[1] - ethanol.positions[oxygen]
    across = np.cross(along, carbon)
    lengths = []
    for direction in (along, across):
        error = torch.zeros((9, 3), dtype=torch.float64)
        error[hydrogen] = torch.from_numpy(direction / np.linalg.norm(direction))
        error -= error.mean(dim=0)
        lengths.append(springs(ethanol).lengths(error).item())
    assert lengths[1] > 2 * lengths[0]


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_turning_structure_and_errors_changes_nothing(name):
    atoms = STRUCTURES[name].copy()
    error = errors_of(atoms)
    before = springs(atoms).lengths(error)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    atoms.set_cell(atoms.cell.array @ turn)
    atoms.positions = atoms.positions @ turn
    after = springs(atoms).lengths(error @ torch.from_numpy(turn))
    torch.testing.assert_close(after, before, rtol=1e-10, atol=0)


@pytest.mark.parametrize("elastic_weight", [0.0, 2.0])
@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_the_force_loss_is_invariant_and_zero_for_true_forces(loss, elastic_weight):
    from ase_biasgrad.training.resident import Batch

    options = ForceStageOptions(loss=loss, elastic_weight=elastic_weight)
    stage = ForceStage(small_potential("schnet").double(), options, force_unit=0.7)
    ethanol = STRUCTURES["ethanol"]
    error = errors_of(ethanol)
    turn = torch.from_numpy(np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0])
    found = []
    for rotation in (torch.eye(3, dtype=torch.float64), turn):
        atoms = ethanol.copy()
        atoms.positions = atoms.positions @ rotation.numpy()
        labels = errors_of(ethanol, seed=3) @ rotation
        batch = Batch(graph_from_atoms(atoms, 4.0), None, labels, None, torch.tensor([9]), 9)
        predicted = (labels + error @ rotation).requires_grad_()
        found.append(stage.loss(batch, {"forces": predicted}))
        truth = labels.clone().requires_grad_()
        nothing = stage.loss(batch, {"forces": truth})
        assert nothing.item() == 0
        (gradient,) = torch.autograd.grad(nothing, truth)
        assert torch.isfinite(gradient).all()
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=0)
    assert found[0] > 0
