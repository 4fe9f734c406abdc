"""Training on a property of QM9, and a regression on the composition to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.neighborlist import natural_cutoffs
from torch import Tensor

from ase_biasgrad.bias_fits import least_absolute_deviation
from ase_biasgrad.data.dataset import DataError, Dataset
from ase_biasgrad.neighbours import all_pairs
from ase_biasgrad.training.benchmarks.loop import TorchLearner, Trained, TrainingOptions, train
from ase_biasgrad.training.benchmarks.qm9.network import (
    ELEMENTS,
    MoleculeBatch,
    QM9Network,
    QM9Options,
)

BOND_TOLERANCE = 1.2  # of the sum of covalent radii
TOGETHER = 64  # molecules that are predicted at once
Batch = tuple[MoleculeBatch, Tensor]


@dataclass(frozen=True)
class Sample:
    """A molecule as a graph that does not change."""

    numbers: np.ndarray  # (n,)
    positions: np.ndarray  # (n, 3) Å from their mean, float32
    edge_index: np.ndarray  # (2, e)
    vectors: np.ndarray  # (e, 3) Å, float32
    bonded: np.ndarray  # (e,) bool
    target: float


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
        positions=(positions - positions.mean(axis=0)).astype(np.float32),
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
        positions=torch.from_numpy(np.concatenate([s.positions for s in samples])),
        molecule=torch.from_numpy(np.repeat(np.arange(len(samples)), atoms)),
        vectors=torch.from_numpy(np.concatenate([s.vectors for s in samples])),
        edge_index=torch.from_numpy(np.concatenate(index, axis=1)),
        bonded=torch.from_numpy(np.concatenate([s.bonded for s in samples])),
        molecules=len(samples),
    )


def batch_of(samples: Sequence[Sample], device: torch.device | str = "cpu") -> Batch:
    """Molecules and their targets `(m,)`."""
    targets = torch.tensor([sample.target for sample in samples], device=device)
    return collate(samples).to(device), targets


def train_network(
    options: QM9Options,
    training_options: TrainingOptions,
    training: Sequence[Sample],
    validation: Sequence[Sample],
    report: Callable[[str], None] = lambda line: None,
    device: torch.device | str = "cpu",
    state: Path | None = None,
) -> Trained[QM9Network]:
    """Minimise the mean absolute error of the standardised target.

    `device` and `state` are those of the loop.
    """
    torch.manual_seed(training_options.seed)
    targets = np.array([sample.target for sample in training])
    size = training_options.batch_size

    def batches(random: np.random.Generator) -> Iterator[Batch]:
        order = random.permutation(len(targets))
        for k in range(0, len(order), size):
            yield batch_of([training[place] for place in order[k : k + size]], device)

    def loss(network: QM9Network, batch: Batch) -> Tensor:
        molecules, target = batch
        wanted = (target - network.target[0]) / network.target[1]
        return (network(molecules) - wanted).abs().mean()

    network = QM9Network(options, float(targets.mean()), float(targets.std()))

    def validate(network: QM9Network) -> tuple[float]:
        return (mean_absolute_error(network, validation),)

    return train(
        TorchLearner(network, loss, training_options, device),
        training_options,
        -(-len(targets) // size),
        batches,
        validate,
        report,
        state=state,
    )


def mean_absolute_error(network: QM9Network, samples: Sequence[Sample]) -> float:
    """Mean absolute error in the unit of the target, on the device of the network."""
    targets = np.array([sample.target for sample in samples])
    return float(np.abs(_predicted(network, samples) - targets).mean())


def predict(
    network: QM9Network,
    molecules: Sequence[tuple[np.ndarray, np.ndarray]],
    cutoff: float | None,
) -> np.ndarray:
    """The property `(m,)` of molecules, pairs of numbers `(n,)` and positions `(n, 3)` Å.

    `cutoff` is the one that the network was trained with, as in `read_samples`.
    """
    samples = [graph_sample(*molecule, np.nan, cutoff) for molecule in molecules]
    return _predicted(network, samples)


@torch.no_grad()
def _predicted(network: QM9Network, samples: Sequence[Sample]) -> np.ndarray:
    found, device = [], network.target.device
    for start in range(0, len(samples), TOGETHER):
        batch, _ = batch_of(samples[start : start + TOGETHER], device)
        found.append(network.predict(batch).cpu().numpy())
    return np.concatenate(found)


def composition_regression(training: Sequence[Sample], test: Sequence[Sample]) -> float:
    """Mean absolute error on `test` of the best fit to element counts and a constant."""

    def counts(samples: Sequence[Sample]) -> np.ndarray:
        return np.array([[1, *((s.numbers == z).sum() for z in ELEMENTS)] for s in samples])

    targets = np.array([sample.target for sample in training])
    fit = least_absolute_deviation(targets, counts(training))
    predicted = counts(test) @ fit.values
    return float(np.abs(predicted - [sample.target for sample in test]).mean())
