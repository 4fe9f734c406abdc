"""Training on N-body dynamics: from one frame to the change some frames later."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ase_biasgrad.charged_particles import Trajectories
from ase_biasgrad.training.benchmarks.loop import TorchLearner, Trained, TrainingOptions, train
from ase_biasgrad.training.benchmarks.nbody.network import NBodyNetwork, NBodyOptions

Predictor = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task:
    """Predict the change `ahead` frames after frame `start`, or after any frame where it is None.

    `interval` is the time between frames. Without `velocities` their changes are not asked for.
    """

    ahead: int
    start: int | None
    interval: float
    velocities: bool = True

    def starts(self, frames: int) -> np.ndarray:
        """Frames to start from."""
        if frames <= self.ahead:
            raise ValueError(f"simulations of {frames} frames cannot be asked {self.ahead} ahead")
        return np.arange(frames - self.ahead) if self.start is None else np.array([self.start])


@dataclass(frozen=True)
class Samples:
    """Inputs and targets of `m` samples of `n` particles, float32."""

    positions: Tensor  # (m, n, 3)
    velocities: Tensor  # (m, n, 3)
    charges: Tensor  # (m, n)
    displacements: Tensor  # (m, n, 3)
    velocity_changes: Tensor  # (m, n, 3)

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, index: Tensor | slice) -> Samples:
        return Samples(*(values[index] for values in vars(self).values()))

    def to(self, device: torch.device | str) -> Samples:
        return Samples(*(values.to(device) for values in vars(self).values()))


class Errors(NamedTuple):
    """Mean square errors over samples, particles and components."""

    displacement: float
    velocity: float


def samples(data: Trajectories, task: Task, per_simulation: int | None = None) -> Samples:
    """Samples of every simulation: from all start frames, or `per_simulation` spread evenly."""
    starts = task.starts(data.positions.shape[1])
    if per_simulation is not None and per_simulation < len(starts):
        starts = starts[np.linspace(0, len(starts) - 1, per_simulation).round().astype(int)]
    simulation, start = (
        a.ravel() for a in np.meshgrid(np.arange(len(data)), starts, indexing="ij")
    )
    return _samples(data, task, simulation, start)


def random_samples(data: Trajectories, task: Task, random: np.random.Generator) -> Samples:
    """One sample of every simulation, from a random start frame, in random order."""
    starts = task.starts(data.positions.shape[1])
    return _samples(data, task, random.permutation(len(data)), random.choice(starts, len(data)))


def _samples(data: Trajectories, task: Task, simulation: np.ndarray, start: np.ndarray) -> Samples:
    before, after = (simulation, start), (simulation, start + task.ahead)
    arrays = (
        data.positions[before],
        data.velocities[before],
        data.charges[simulation],
        data.positions[after] - data.positions[before],
        data.velocities[after] - data.velocities[before],
    )
    return Samples(*(torch.from_numpy(array.astype(np.float32)) for array in arrays))


@torch.no_grad()
def errors(
    predict: Predictor, of: Samples, batch_size: int = 256, device: torch.device | str = "cpu"
) -> Errors:
    """Mean square errors of a network on a device, or of a baseline."""
    squares = torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, len(of), batch_size):
        batch = of.select(slice(start, start + batch_size)).to(device)
        for k, error in enumerate(_residuals(predict, batch)):
            squares[k] += error.double().square().sum()
    displacement, velocity = (squares / of.displacements.numel()).tolist()
    return Errors(displacement, velocity)


def _residuals(predict: Predictor, batch: Samples) -> tuple[Tensor, Tensor]:
    displacement, velocity = predict(batch.positions, batch.velocities, batch.charges)
    return displacement - batch.displacements, velocity - batch.velocity_changes


def train_network(
    options: NBodyOptions,
    training_options: TrainingOptions,
    task: Task,
    training: Trajectories,
    validation: Samples,
    report: Callable[[str], None] = lambda line: None,
    device: torch.device | str = "cpu",
    state: Path | None = None,
) -> Trained[NBodyNetwork]:
    """Train by Adam on the mean square error of both changes together, as the paper does.

    One start frame of each simulation is an epoch. Velocity changes are several times larger
    than displacements, and so are their errors; where the task does not ask for them, they neither
    count in the loss nor in the choice of the epoch. `device` and `state` are those of the loop.
    """
    torch.manual_seed(training_options.seed)
    every = samples(training, task, per_simulation=4)
    scale = [v.square().mean().sqrt().item() for v in (every.displacements, every.velocity_changes)]
    size = training_options.batch_size

    def batches(random: np.random.Generator) -> Iterator[Samples]:
        epoch = random_samples(training, task, random).to(device)
        return (epoch.select(slice(k, k + size)) for k in range(0, len(epoch), size))

    asked = 2 if task.velocities else 1

    def loss(network: NBodyNetwork, batch: Samples) -> Tensor:
        return torch.stack(_residuals(network, batch)[:asked]).square().mean()

    network = NBodyNetwork(options, (scale[0], scale[1]))
    return train(
        TorchLearner(network, loss, training_options, device),
        training_options,
        -(-len(training) // size),
        batches,
        lambda network: errors(network, validation, device=device)[:asked],
        report,
        every=5,
        state=state,
    )


# --- baselines -----------------------------------------------------------------------------


def no_change(positions: Tensor, velocities: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
    """Nothing moves."""
    return torch.zeros_like(positions), torch.zeros_like(velocities)


def constant_velocity(task: Task) -> Predictor:
    """Every particle goes on as it is."""

    def predict(positions: Tensor, velocities: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
        return task.ahead * task.interval * velocities, torch.zeros_like(velocities)

    return predict


def linear_regression(of: Samples) -> Predictor:
    """Least squares on vectors: v_i, mean v, Σ_j (x_i − x_j), Σ_j q_i q_j (x_i − x_j)."""

    def vectors(positions: Tensor, velocities: Tensor, charges: Tensor) -> Tensor:
        differences = positions[:, :, None] - positions[:, None]  # (m, n, n, 3)
        products = charges[:, :, None] * charges[:, None]  # (m, n, n)
        columns = [
            velocities,
            velocities.mean(dim=1, keepdim=True).expand_as(velocities),
            differences.sum(dim=2),
            (products[..., None] * differences).sum(dim=2),
        ]
        return torch.stack(columns, dim=-1)  # (m, n, 3, 4)

    inputs = vectors(of.positions, of.velocities, of.charges).reshape(-1, 4).double()
    targets = torch.stack([of.displacements, of.velocity_changes], dim=-1).reshape(-1, 2).double()
    weights = torch.linalg.lstsq(inputs, targets).solution.float()  # (4, 2)

    def predict(positions: Tensor, velocities: Tensor, charges: Tensor) -> tuple[Tensor, Tensor]:
        output = vectors(positions, velocities, charges) @ weights
        return output[..., 0], output[..., 1]

    return predict
