"""The small training loop of the benchmarks, and the files of their networks."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ase_biasgrad.files import whole_file

Network = TypeVar("Network", bound=nn.Module)
Batch = TypeVar("Batch")


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training, which the first budget used up ends.

    Parameters
    ----------
    epochs, minutes
        Budgets: passes over the samples, and processor time.
    batch_size, learning_rate
        Samples per step, and the largest rate of Adam; it warms up and falls with a cosine.
    warmup
        Share of the steps in which the rate rises.
    ema_decay
        Of the averaged weights, which are validated and kept.
    largest_gradient
        Norm that gradients are scaled down to.
    seed
        Of initial weights and of the order of samples.
    """

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.05
    ema_decay: float = 0.998
    largest_gradient: float = 1.0
    minutes: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Trained(Generic[Network]):
    """The network of the best validated epoch, and how it came about."""

    network: Network
    validation: tuple[float, ...]
    best_epoch: int
    seconds: float
    cpu_seconds: float

    def figures(self) -> dict[str, Any]:
        """All but the network, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "network"}


def within(steps: int, minutes: float | None, every: int = 1) -> Iterator[int]:
    """Count from 0 to below `steps`, no further than `minutes` of processor time.

    The clock is looked at after each `every` steps, and after the first.
    """
    end = math.inf if minutes is None else time.process_time() + 60 * minutes
    for step in range(steps):
        yield step
        if step % every == 0 and time.process_time() > end:
            return


def train(
    network: Network,
    options: TrainingOptions,
    steps_per_epoch: int,
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    loss: Callable[[Network, Batch], Tensor],
    validate: Callable[[Network], tuple[float, ...]],
    report: Callable[[str], None] = lambda line: None,
    every: int = 1,
) -> Trained[Network]:
    """Minimise `loss` by Adam; keep the averaged weights with the least sum of `validate`.

    Parameters
    ----------
    batches
        One epoch's, in an order drawn from the generator.
    every
        Epochs between validations; every one is validated where `minutes` may end it.
    """
    adam = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adam,
        options.learning_rate,
        total_steps=options.epochs * steps_per_epoch,
        pct_start=options.warmup,
    )
    ema = get_ema_multi_avg_fn(options.ema_decay)
    average = AveragedModel(network, multi_avg_fn=ema, use_buffers=True)
    random, began, cpu_began = np.random.default_rng(options.seed), time.time(), time.process_time()
    kept, best_epoch = network, 0
    best: tuple[float, ...] = (math.inf,)
    for epoch in within(options.epochs, options.minutes):
        losses = []
        for batch in batches(random):
            value = loss(network, batch)
            adam.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(network.parameters(), options.largest_gradient)
            adam.step()
            schedule.step()
            average.update_parameters(network)
            losses.append(value.item())
        last = epoch + 1 == options.epochs or options.minutes is not None
        if (epoch + 1) % every and not last:
            continue
        averaged = copy.deepcopy(network)
        averaged.load_state_dict(average.module.state_dict())
        found = validate(averaged.eval())
        report(
            f"epoch {epoch + 1}: training loss {np.mean(losses):.5f}, validation "
            f"{' '.join(f'{error:.5f}' for error in found)}, {time.time() - began:.0f} s"
        )
        if sum(found) < sum(best):
            kept, best, best_epoch = averaged, found, epoch + 1
    seconds, cpu_seconds = time.time() - began, time.process_time() - cpu_began
    return Trained(kept, best, best_epoch, seconds, cpu_seconds)


def train_once(
    path: Path, kind: type[Network], record: dict[str, Any], train: Callable[[], Trained[Network]]
) -> Trained[Network]:
    """The training whose network is in a file; done and written first where there is none.

    `record` goes into the file, with how the network came about.
    """
    if not path.exists():
        trained = train()
        path.parent.mkdir(parents=True, exist_ok=True)
        save_network(path, trained.network, {**record, **trained.figures()})
    network, training = load_network(path, kind)
    figures = {name: training[name] for name in ("best_epoch", "seconds", "cpu_seconds")}
    return Trained(network, tuple(training["validation"]), **figures)


def save_network(
    path: str | Path, network: nn.Module, training: dict[str, Any] | None = None
) -> None:
    """Write a network with its options to a safetensors file, whole or not at all.

    Its class has a `FORMAT` and takes the dataclass `OPTIONS`, which is the attribute `options`.
    """
    from safetensors.torch import save_file

    options = asdict(network.options)  # type: ignore[call-overload]
    metadata = {"format": network.FORMAT, "options": options, "training": training or {}}
    with whole_file(path) as temporary:
        save_file(network.state_dict(), temporary, {"ase_biasgrad": json.dumps(metadata)})


def load_network(path: str | Path, kind: type[Network]) -> tuple[Network, dict[str, Any]]:
    """Read a network that `save_network` wrote, and its training.

    Raises
    ------
    ValueError
        If the file is something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("ase_biasgrad", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: is no network: {error}") from error
    expected: Any = kind
    if metadata.get("format") != expected.FORMAT:
        raise ValueError(f"{path}: is no {expected.FORMAT}, but {metadata.get('format')}")
    network = expected(expected.OPTIONS(**metadata["options"]))
    network.load_state_dict(tensors)
    return network.eval(), metadata["training"]
