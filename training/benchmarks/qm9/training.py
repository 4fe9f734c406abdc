"""Training on a property of QM9, and a regression on the composition to compare with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from ase.neighborlist import natural_cutoffs
from torch import Tensor

from ase_biasgrad.bias_fits import least_absolute_deviation
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.neighbours import all_pairs
from ase_biasgrad.training.benchmarks.averaged_adam import AveragedAdam
from ase_biasgrad.training.benchmarks.qm9.harmonics_cache import HarmonicsCache
from ase_biasgrad.training.benchmarks.qm9.network import (
    ELEMENTS,
    MoleculeBatch,
    QM9Network,
    QM9Options,
)

BOND_TOLERANCE = 1.2  # of the sum of covalent radii


@dataclass(frozen=True)
class Sample:
    """A molecule as a graph that does not change."""

    numbers: np.ndarray  # (n,)
    edge_index: np.ndarray  # (2, e)
    vectors: np.ndarray  # (e, 3) Å, float32
    bonded: np.ndarray  # (e,) bool
    target: float


@dataclass(frozen=True)
class TrainingOptions:
    """How a network is trained; `epochs` passes by Adam with warm-up and cosine on the L1 loss."""

    epochs: int = 50
    batch_size: int = 32
    learning_rate: float = 1e-3
    ema_decay: float = 0.995
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    """The network of the best validated epoch; mean absolute errors are in the target's unit."""

    network: QM9Network
    mean: float
    deviation: float
    validation: float
    best_epoch: int
    seconds: float
    cpu_seconds: float


def read_samples(
    dataset: Dataset, frames: Sequence[int] | np.ndarray, label: str, cutoff: float | None
) -> list[Sample]:
    """Graphs of `frames` with the target `label`.

    Edges are the bonds (pairs closer than 1.2 times their covalent radii together), or all pairs
    within `cutoff` Å.

    Raises
    ------
    DataError
        If the dataset has no such label.
    """
    if not dataset.has(label):
        there = dataset.groups()[0].other_labels() if dataset.groups() else []
        raise DataError(f"{dataset.path}: has no label {label!r}; it has {there}")
    samples = []
    for frame in frames:
        molecule = dataset[int(frame)]
        samples.append(
            graph_sample(
                molecule.numbers, molecule.positions, float(molecule.labels[label]), cutoff
            )
        )
    return samples


def graph_sample(
    numbers: np.ndarray, positions: np.ndarray, target: float, cutoff: float | None
) -> Sample:
    """One molecule as a graph; see `read_samples`."""
    from ase import Atoms

    pairs = all_pairs(len(numbers))
    vectors = positions[pairs.neighbour] - positions[pairs.centre]
    distances = np.linalg.norm(vectors, axis=1)
    radii = np.array(natural_cutoffs(Atoms(numbers), mult=BOND_TOLERANCE))
    bonded = distances < radii[pairs.centre] + radii[pairs.neighbour]
    kept = bonded if cutoff is None else distances < cutoff
    return Sample(
        numbers=np.asarray(numbers),
        edge_index=np.stack([pairs.centre, pairs.neighbour])[:, kept],
        vectors=vectors[kept].astype(np.float32),
        bonded=bonded[kept],
        target=target,
    )


def collate(samples: Sequence[Sample]) -> MoleculeBatch:
    """Join molecules into one batch, in order."""
    atoms = [len(sample.numbers) for sample in samples]
    first = np.cumsum(atoms) - atoms
    index = [sample.edge_index + start for sample, start in zip(samples, first, strict=True)]
    return MoleculeBatch(
        numbers=torch.from_numpy(np.concatenate([s.numbers for s in samples]).astype(np.int64)),
        molecule=torch.from_numpy(np.repeat(np.arange(len(samples)), atoms)),
        vectors=torch.from_numpy(np.concatenate([s.vectors for s in samples])),
        edge_index=torch.from_numpy(np.concatenate(index, axis=1)),
        bonded=torch.from_numpy(np.concatenate([s.bonded for s in samples])),
        molecules=len(samples),
    )


@dataclass(frozen=True)
class Part:
    """Samples of one split, with a cache of their harmonics where there is one."""

    samples: Sequence[Sample]
    cache: HarmonicsCache | None = None

    def batch(self, places: np.ndarray) -> tuple[MoleculeBatch, Tensor | None, Tensor]:
        """Molecules, harmonics and targets `(m,)` of the samples at `places`."""
        samples = [self.samples[k] for k in places]
        harmonics = None if self.cache is None else self.cache.read(places)
        targets = torch.tensor([sample.target for sample in samples])
        return collate(samples), harmonics, targets


def train_network(
    options: QM9Options,
    training_options: TrainingOptions,
    training: Part,
    validation: Part,
    report: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Minimise the mean absolute error of the standardised target."""
    torch.manual_seed(training_options.seed)
    random = np.random.default_rng(training_options.seed)
    targets = np.array([sample.target for sample in training.samples])
    mean, deviation = float(targets.mean()), float(targets.std())
    size, batch_size = len(training.samples), training_options.batch_size
    network = QM9Network(options)
    adam = AveragedAdam(
        network,
        training_options.learning_rate,
        training_options.epochs * -(-size // batch_size),
        ema_decay=training_options.ema_decay,
    )
    began, cpu_began = time.monotonic(), time.process_time()
    kept, best, best_epoch = network, np.inf, 0
    for epoch in range(1, training_options.epochs + 1):
        order, total = random.permutation(size), 0.0
        for start in range(0, size, batch_size):
            batch, harmonics, target = training.batch(order[start : start + batch_size])
            loss = (network(batch, harmonics) - (target - mean) / deviation).abs().mean()
            adam.step(loss)
            total += float(loss.detach()) * batch.molecules
        averaged = adam.averaged()
        error = mean_absolute_error(averaged, mean, deviation, validation)
        report(
            f"epoch {epoch}: training {deviation * total / size:.4f}, validation {error:.4f}, "
            f"{time.monotonic() - began:.0f} s"
        )
        if error < best:
            kept, best, best_epoch = averaged, error, epoch
    seconds, cpu_seconds = time.monotonic() - began, time.process_time() - cpu_began
    return Trained(kept, mean, deviation, best, best_epoch, seconds, cpu_seconds)


@torch.no_grad()
def mean_absolute_error(
    network: QM9Network, mean: float, deviation: float, part: Part, batch_size: int = 64
) -> float:
    """In the unit of the target."""
    total, size = 0.0, len(part.samples)
    for start in range(0, size, batch_size):
        batch, harmonics, target = part.batch(np.arange(start, min(start + batch_size, size)))
        total += float((mean + deviation * network(batch, harmonics) - target).abs().sum())
    return total / size


def composition_regression(training: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Mean absolute error on `test` of the best fit to element counts and a constant."""

    def counts(samples: Sequence[Sample]) -> np.ndarray:
        return np.array([[1, *((s.numbers == z).sum() for z in ELEMENTS)] for s in samples])

    targets = np.array([sample.target for sample in training])
    fit = least_absolute_deviation(targets, counts(training))
    predicted = counts(test) @ fit.values
    return float(np.abs(predicted - [sample.target for sample in test]).mean())
