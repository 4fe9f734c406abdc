"""The energy stage: bias first, then the backbone on what is left."""

import numpy as np
import pytest
import torch
from ase.build import molecule
from conftest import small_potential
from helpers import NAMES

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.training.benchmarks.loop import TrainingOptions
from ase_biasgrad.training.benchmarks.qm7.energy_stage import fit_energies
from ase_biasgrad.training.evaluation.predict import predict
from ase_biasgrad.training.frames.device_frames import DeviceFrames


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Energies of atoms plus a smooth function of distances, in eV."""
    path, random = tmp_path_factory.mktemp("energies") / "x.h5", np.random.default_rng(0)
    with DatasetWriter(path) as writer:
        for name in NAMES * 6:
            atoms = molecule(name)
            atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
            distances = atoms.get_all_distances()[np.triu_indices(len(atoms), 1)]
            energy = -100.0 * atoms.numbers.sum() + 2 * np.sum(np.exp(-distances))
            writer.append(atoms.numbers, atoms.positions, energy=energy)
    return Dataset(path)


def fitted(dataset, seed=0, device="cpu", **options):
    potential = small_potential("painn", seed).to(device)
    frames = DeviceFrames(dataset, range(len(dataset)), potential.cutoff, device)
    defaults = {"epochs": 30, "batch_size": 8, "learning_rate": 1e-3, "ema_decay": 0.9}
    seen, how = [], TrainingOptions(**{**defaults, **options, "seed": seed})
    done = fit_energies(potential, frames, how, seen.append)
    return potential, frames, done, seen


def test_the_bias_goes_first_and_the_backbone_learns_the_rest(dataset):
    potential, frames, done, seen = fitted(dataset)
    reference = frames.energy.numpy()
    counts = frames.compositions()
    bias = counts @ potential.bias.per_element.numpy()
    assert potential.bias.zero == "per-element"
    # the normal equations of least squares hold for the bias alone
    np.testing.assert_allclose(counts.T @ (reference - bias), 0, atol=1e-6)
    left, errors = reference - bias, reference - predict(potential, frames).energy
    assert np.abs(errors).mean() < 0.3 * np.abs(left).mean()
    assert [line.split(":")[0] for line in seen] == [f"epoch {k}" for k in range(1, 31)]
    assert done.steps == 30 * 6
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in seen]
    assert losses[-1] < 0.3 * losses[0]
    assert all(not p.requires_grad for p in potential.backbone.energy_shifts())
    assert not potential.backbone.training


def test_the_same_seed_gives_the_same_potential(dataset):
    energies = [predict(*fitted(dataset, epochs=2, seed=k)[:2]).energy for k in (1, 1, 2)]
    np.testing.assert_array_equal(energies[0], energies[1])
    assert np.abs(energies[0] - energies[2]).max() > 1e-3


def test_a_budget_in_minutes_ends_the_stage_within_an_epoch(dataset):
    _, _, done, _ = fitted(dataset, epochs=100_000, minutes=0.01)
    assert 1 <= done.steps < 6000


def test_frames_without_energies_are_refused(tmp_path):
    with DatasetWriter(tmp_path / "x.h5") as writer:
        writer.append(np.array([1, 1]), np.eye(3)[:2], forces=np.zeros((2, 3)))
    potential = small_potential("schnet")
    frames = DeviceFrames(Dataset(tmp_path / "x.h5"), [0], potential.cutoff)
    with pytest.raises(ValueError, match="has no energy"):
        fit_energies(potential, frames, TrainingOptions())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_cuda_fits_as_the_cpu_does(dataset):
    cpu, cuda = (predict(*fitted(dataset, device=d)[:2]).energy for d in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda, cpu, atol=0.1)  # eV; the rounding differs at each step
