"""Gradient descent by the clock, for drivers of torch networks.

Optimizer, largest rate, batch size, loss and averaged weights are those of a peer's authors. Their
schedules take days, so here the rate falls along half a cosine that ends with the time, after a
warm-up within the first twentieth of it, as ours does. The averaged weights of the epoch with the
least force error on validation frames are kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

if TYPE_CHECKING:
    from ase_biasgrad.training.benchmarks.peers.protocol import Job

TIMED_STEPS = 2  # after a first one
WARMUP = 0.05  # of the time at most
AT_THE_END = 5.0  # seconds left to write the potential, beside those of a validation


@dataclass(frozen=True)
class Learner:
    """A network of one size, and how it learns.

    Parameters
    ----------
    loss
        Of training frames, given by their places `(k,)`.
    validate
        Force MAE on validation frames, eV/Å.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[np.ndarray], Tensor]
    validate: Callable[[], float]


@dataclass(frozen=True)
class Options:
    """Options that do not depend on the size."""

    batch_size: int
    ema_decay: float = 0.0  # of averaged weights; 0: none
    largest_gradient: float = math.inf
    warmup_steps: int = 0


def train(
    job: Job, sizes: Sequence[Any], make: Callable[[Any], Learner], options: Options
) -> tuple[nn.Module, dict[str, Any]]:
    """Train the largest network that finishes in the time; the network, and what was done.

    `sizes` are in falling order. The first is taken whose steps, by a short timing, leave time for
    `job.least_epochs`, or else the last.
    """
    torch.set_num_threads(1)
    size, learner, timed = _largest_in_time(job, sizes, make, options)
    return learner.network, {"size": size, "timed": timed, **_descend(job, learner, options)}


def _largest_in_time(
    job: Job, sizes: Sequence[Any], make: Callable[[Any], Learner], options: Options
) -> tuple[Any, Learner, list[dict[str, Any]]]:
    steps = math.ceil(len(job.train) / options.batch_size)
    timed = []
    for size in sizes:
        torch.manual_seed(job.seed)
        learner = make(size)
        if size == sizes[-1]:
            break
        seconds = _step_seconds(learner, options)
        timed.append({"size": size, "step_seconds": seconds})
        learner.optimizer.state.clear()
        if seconds * steps * job.least_epochs <= job.left():
            break
    return size, learner, timed


def _step_seconds(learner: Learner, options: Options) -> float:
    """The fastest of a few steps, at a rate of 0: the network stays as it is."""
    places, times = np.arange(options.batch_size), []
    for _ in range(1 + TIMED_STEPS):
        begin = time.process_time()
        _step(learner, places, 0.0, math.inf)
        times.append(time.process_time() - begin)
    return min(times[1:])


def _step(learner: Learner, places: np.ndarray, height: float, largest: float) -> None:
    """One step at a share of the largest rate."""
    for group in learner.optimizer.param_groups:
        group["lr"] = height * group.setdefault("largest_lr", group["lr"])
    learner.optimizer.zero_grad(set_to_none=True)
    loss = learner.loss(places)
    loss.backward()
    if largest < math.inf:
        nn.utils.clip_grad_norm_(learner.network.parameters(), largest)
    learner.optimizer.step()


def _descend(job: Job, learner: Learner, options: Options) -> dict[str, Any]:
    parameters = [p for p in learner.network.parameters() if p.requires_grad]
    average = [p.detach().clone() for p in parameters]
    best, kept, steps, epochs = math.inf, average, 0, 0.0
    total, validation = job.left(), 0.0  # seconds
    random = np.random.default_rng(job.seed)
    while job.left() > validation + AT_THE_END:
        for places in _batches(len(job.train), options.batch_size, random):
            done = min(1.0, (total - job.left()) / (total - validation - AT_THE_END))
            warm = min(1.0, max((steps + 1) / max(1, options.warmup_steps), done / WARMUP))
            height = warm * 0.5 * (1 + math.cos(math.pi * done))
            _step(learner, places, height, options.largest_gradient)
            steps, epochs = steps + 1, epochs + len(places) / len(job.train)
            decay = min(options.ema_decay, (1 + steps) / (10 + steps))
            get_ema_multi_avg_fn(decay)(average, [p.detach() for p in parameters], steps)
            if job.left() <= validation + AT_THE_END:
                break
        began = job.left()
        error = _validated(learner, parameters, average)
        validation = began - job.left()
        if error < best:
            best, kept = error, [a.clone() for a in average]
    if not steps:
        raise RuntimeError(f"no time was left for training after {job.seconds - total:.0f} s")
    if not math.isfinite(best):
        raise RuntimeError("the training diverged: no validation error was finite")
    _exchange(parameters, kept)
    return {"epochs": epochs, "steps": steps, "validation_force_mae": best}


def _batches(frames: int, size: int, random: np.random.Generator) -> Iterator[np.ndarray]:
    order = random.permutation(frames)
    for first in range(0, frames, size):
        yield order[first : first + size]


def _validated(learner: Learner, parameters: list[nn.Parameter], average: list[Tensor]) -> float:
    own = [p.detach().clone() for p in parameters]
    _exchange(parameters, average)
    learner.network.eval()
    error = learner.validate()
    learner.network.train()
    _exchange(parameters, own)
    return error


def _exchange(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
