"""The elastic network of the force loss: against a plain sum over pairs, and what it weighs."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.data import covalent_radii
from conftest import small_potential
from helpers import write_clusters

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.graph import AtomGraph, collate, graph_from_atoms
from ase_biasgrad.training.config import ForceStageOptions
from ase_biasgrad.training.elastic import FLOOR, PairSprings, kept_springs, springs_of
from ase_biasgrad.training.frames.device_frames import Batch, DeviceFrames
from ase_biasgrad.training.stages.force import ForceStage

STRUCTURES = {
    "ethanol": molecule("CH3CH2OH"),
    "water": molecule("H2O"),
    "atom": Atoms("Ar"),
    "crystal": bulk("NaCl", "rocksalt", a=5.6).repeat((2, 1, 1)),
    "one atom in a cell": bulk("Cu"),
    "slab": fcc111("Al", (1, 1, 3), vacuum=6.0),
}


def springs(*structures: Atoms, cutoff: float = 5.0) -> PairSprings:
    graph = collate([graph_from_atoms(atoms, cutoff) for atoms in structures])
    return springs_of(graph, torch.tensor([len(a) for a in structures]))


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
    flat = (error - error.mean(dim=0)).numpy().ravel()
    expected = np.sqrt(flat @ np.linalg.solve(stiffness, flat) / flat.size)
    assert springs(atoms).lengths(error).numpy() == pytest.approx([expected], rel=1e-10)


def dense(atoms: Atoms, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Length and its gradient by a matrix and autograd."""
    stiffness = stiffness_of(graph_from_atoms(atoms, 5.0)) / FLOOR + np.eye(3 * len(atoms))
    leaf = error.detach().requires_grad_()
    flat = (leaf - leaf.mean(dim=0)).flatten()
    length = (flat @ torch.linalg.solve(torch.from_numpy(stiffness), flat) / flat.numel()).sqrt()
    (gradient,) = torch.autograd.grad(length, leaf)
    return length.detach(), gradient


def shaken(atoms: Atoms, size: float = 0.1) -> Atoms:
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(3).normal(0, size, atoms.positions.shape)
    return atoms


LARGE = {
    "fullerene": molecule("C60"),
    "salt": shaken(bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat(2)),
    "copper with a vacancy": shaken(bulk("Cu", cubic=True).repeat(3))[1:],
    "atoms on top of each other": Atoms("CH5", np.random.default_rng(0).normal(0, 0.15, (6, 3))),
}


@pytest.mark.parametrize("name", sorted(LARGE))
def test_lengths_and_gradients_are_those_of_a_matrix(name):
    atoms = LARGE[name]
    expected, gradient = dense(atoms, errors_of(atoms))
    error = errors_of(atoms).requires_grad_()
    found = springs(atoms).lengths(error)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), expected[None], rtol=1e-11, atol=0)
    torch.testing.assert_close(error.grad, gradient, rtol=0, atol=1e-8 * gradient.abs().max())


def test_the_same_errors_give_the_same_bits_and_no_number_stays_none():
    network = springs(LARGE["salt"], LARGE["fullerene"])
    error = torch.cat([errors_of(LARGE["salt"]), errors_of(LARGE["fullerene"])])
    first, second = (network.displacements(error.numpy()) for _ in range(2))
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
    error[0, 0] = torch.nan
    lengths = network.lengths(error)
    assert lengths[0].isnan()
    assert lengths[1].item() == first[1][1]


def test_errors_in_float32_are_solved_in_float64():
    atoms = LARGE["salt"]
    error = errors_of(atoms).float().requires_grad_()
    found = springs(atoms).lengths(error)
    found.sum().backward()
    expected, gradient = dense(atoms, error.detach().double())
    assert found.dtype == error.grad.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-7)
    torch.testing.assert_close(error.grad, gradient.float(), rtol=1e-6, atol=1e-9)


def test_thousands_of_atoms_take_no_matrix():
    atoms = bulk("Cu", cubic=True).repeat(9)  # 2916 atoms; a matrix would take 612 MB
    network = springs(atoms, cutoff=3.0)
    assert sum(array.nbytes for array in vars(network).values()) < 2**20
    push = errors_of(atoms)
    moved, lengths = network.displacements(push.numpy())
    # K u = δF, pair by pair
    i, j = network.pairs
    stretch = ((moved[j] - moved[i]) * network.along).sum(axis=1)[:, None] * network.along
    image = moved.copy()
    np.add.at(image, j, stretch)
    np.add.at(image, i, -stretch)
    centred = push.numpy() - push.numpy().mean(axis=0)
    np.testing.assert_allclose(image, centred, rtol=0, atol=1e-8)
    assert lengths[0] == pytest.approx(np.sqrt((centred * moved).mean()), rel=1e-12)


@pytest.mark.parametrize("name", ["ethanol", "crystal"])
def test_gradients_are_displacements(name):
    atoms = STRUCTURES[name]
    network, error = springs(atoms), errors_of(atoms).requires_grad_()
    assert torch.autograd.gradcheck(network.lengths, error)


def test_structures_of_a_batch_do_not_feel_each_other():
    structures = [STRUCTURES[name] for name in ("water", "crystal", "atom", "ethanol", "water")]
    errors = [errors_of(atoms, seed) for seed, atoms in enumerate(structures)]
    alone = [springs(a).lengths(e) for a, e in zip(structures, errors, strict=True)]
    together = springs(*structures).lengths(torch.cat(errors))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)


def test_a_stretch_counts_by_its_stiffness_and_a_translation_not_at_all():
    bond = covalent_radii[7] * 2
    nitrogen = springs(Atoms("N2", [[0, 0, 0], [0, 0, bond]]))
    stretch = torch.tensor([[0, 0, 1.0], [0, 0, -1.0]], dtype=torch.float64)
    rms = stretch.square().mean().sqrt().item()
    expected = rms * np.sqrt(FLOOR / (FLOOR + 2))
    push = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    assert nitrogen.lengths(stretch).item() == pytest.approx(expected, rel=1e-10)
    assert nitrogen.lengths(stretch + push).item() == pytest.approx(expected, rel=1e-10)


def test_a_turn_of_a_molecule_counts_fully():
    nitrogen = springs(Atoms("N2", [[0, 0, 0], [0, 0, 1.1]]))
    turn = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]], dtype=torch.float64)
    assert nitrogen.lengths(turn).item() == pytest.approx(turn.square().mean().sqrt().item())


def test_fragments_far_apart_do_not_feel_each_other():
    one, other = STRUCTURES["water"], STRUCTURES["ethanol"].copy()
    other.positions += [1000, 0, 0]
    errors = [errors_of(one, 1), errors_of(other, 2)]
    errors = [error - error.mean(dim=0) for error in errors]
    alone = [springs(a).lengths(e) for a, e in zip((one, other), errors, strict=True)]
    squares = 3 * len(one) * alone[0] ** 2 + 3 * len(other) * alone[1] ** 2
    together = springs(one + other).lengths(torch.cat(errors))
    torch.testing.assert_close(3 * 12 * together**2, squares, rtol=1e-8, atol=0)


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


def batch_of(structures: list[Atoms], forces: torch.Tensor) -> Batch:
    counts = torch.tensor([len(atoms) for atoms in structures])
    graph = collate([graph_from_atoms(atoms, 4.0) for atoms in structures])
    return Batch(graph, None, forces, None, counts)


def stage(**options) -> ForceStage:
    return ForceStage(small_potential("schnet"), ForceStageOptions(**options), force_unit=0.7)


NORMS = {
    "l1": lambda x: x.abs().mean(),
    "l2": lambda x: x.square().mean(),
    "huber": lambda x: torch.where(x < 0.4, 0.5 * x.square(), 0.4 * (x - 0.2)).mean(),
}


@pytest.mark.parametrize("elastic_weight", [0.0, 3.0])
@pytest.mark.parametrize("loss", sorted(NORMS))
def test_the_loss_is_of_lengths_of_atoms_and_of_structures(loss, elastic_weight):
    structures = [STRUCTURES["water"], STRUCTURES["ethanol"]]
    errors = torch.cat([errors_of(atoms, 5) for atoms in structures])
    labels = torch.cat([errors_of(atoms, 6) for atoms in structures])
    options = {"loss": loss, "elastic_weight": elastic_weight, "huber_delta": 0.4}
    found = stage(**options).loss(batch_of(structures, labels), {"forces": labels + 0.7 * errors})
    elastic = torch.cat(
        [
            springs(a, cutoff=4.0).lengths(e)
            for a, e in zip(structures, errors.split((3, 9)), strict=True)
        ]
    )
    norm = NORMS[loss]
    expected = norm(errors.norm(dim=1) / 3**0.5) + elastic_weight * norm(elastic)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", sorted(NORMS))
def test_true_forces_have_no_loss_and_finite_gradients(loss):
    ethanol = STRUCTURES["ethanol"]
    truth = errors_of(ethanol).requires_grad_()
    found = stage(loss=loss).loss(batch_of([ethanol], truth.detach()), {"forces": truth})
    assert found.item() == 0
    (gradient,) = torch.autograd.grad(found, truth)
    assert torch.isfinite(gradient).all()


def test_frames_keep_the_springs_of_all_epochs(tmp_path):
    frames = DeviceFrames(Dataset(write_clusters(tmp_path / "x.h5", sizes=(5, 4))), range(24), 4.0)
    frames.keep_springs(most=8 * 12 * (15**2 + 12**2) - 1)
    assert frames.batch([3, 7]).springs is None
    frames.keep_springs()
    for chosen in ([3, 7, 8, 20], [1, 3], range(24)):
        batch = frames.batch(chosen)
        anew = springs_of(batch.graph, batch.counts)
        error = np.random.default_rng(1).normal(size=batch.graph.positions.shape)
        for found, expected in zip(
            batch.springs.displacements(error), anew.displacements(error), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", sorted(LARGE))
def test_kept_springs_give_what_the_iterations_give(name):
    network, error = springs(LARGE[name]), errors_of(LARGE[name])
    counts = np.array([len(LARGE[name])])
    kept = kept_springs(network.inverse().ravel(), np.array([0]), counts)
    expected, gradient = dense(LARGE[name], error)
    error.requires_grad_()
    found = kept.lengths(error)
    found.sum().backward()
    torch.testing.assert_close(found.detach(), expected[None], rtol=1e-10, atol=0)
    torch.testing.assert_close(error.grad, gradient, rtol=0, atol=1e-8 * gradient.abs().max())
