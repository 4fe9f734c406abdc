"""The training loop of the benchmarks, which goes on after a kill, and the files of networks."""

from __future__ import annotations

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ase_biasgrad.files import whole_file
from ase_biasgrad.machine import hardware, versions
from ase_biasgrad.tensor_file import checked_metadata, write_tensors
from ase_biasgrad.training.benchmarks.results import Result, Store

VERSION = 2  # of files of networks; 2: with a digest

Network = TypeVar("Network", bound=nn.Module)
Trains = TypeVar("Trains")  # whatever a learner trains
Made = TypeVar("Made")
Batch = TypeVar("Batch")
SAVE_EVERY = 30.0  # seconds between states on disk


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training, which the first budget used up ends."""

    epochs: int = 100
    batch_size: int = 64
    learning_rate: float = 2e-3  # the largest; it rises and falls with the share of the budget
    warmup: float = 0.05  # share of the budget in which it rises
    ema_decay: float = 0.998  # of the averaged weights, which are validated and kept
    largest_gradient: float = 1.0  # norm that gradients are scaled down to
    minutes: float | None = None  # of processor time
    seed: int = 0  # of initial weights and of the order of samples


@dataclass(frozen=True)
class Trained(Generic[Trains]):
    """The network of the best validated epoch, or the last without validation, and its making."""

    network: Trains
    validation: tuple[float, ...]
    best_epoch: int
    steps: int
    seconds: float
    cpu_seconds: float

    def figures(self) -> dict[str, Any]:
        """All but the network, for JSON."""
        return {name: value for name, value in vars(self).items() if name != "network"}


class Learner(ABC, Generic[Trains, Batch]):
    """A network that learns in steps.

    Of its `parts`, which are all that another learner needs to go on, those of the module `kept`
    are the weights to validate and keep.
    """

    kept: nn.Module
    parts: dict[str, nn.Module | torch.optim.Optimizer]

    @abstractmethod
    def step(self, batch: Batch, number: int, used: float) -> Any:
        """Learn from a batch at a share of the budget; the loss, a number or a tensor of one."""

    @abstractmethod
    def network(self, weights: dict[str, Tensor]) -> Trains:
        """The network with these weights, for use."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights to keep."""
        return {name: value.clone() for name, value in self.kept.state_dict().items()}


class TorchLearner(Learner[Network, Batch]):
    """A torch network on a device that minimises `loss` by Adam with averaged weights.

    The rate rises and falls along cosines and the first moment's decay the other way (one cycle,
    Smith and Topin 2018, arXiv:1708.07120). `device` is where network and batches are.
    """

    def __init__(
        self,
        network: Network,
        loss: Callable[[Network, Batch], Tensor],
        options: TrainingOptions,
        device: torch.device | str = "cpu",
    ) -> None:
        self.trained, self.loss, self.options = network.to(device).train(), loss, options
        self.parameters: list[Tensor] = [p for p in self.trained.parameters() if p.requires_grad]
        # hundreds of small tensors: one call for all of them
        self.adam = torch.optim.Adam(self.parameters, lr=options.learning_rate, fused=True)
        self.kept = copy.deepcopy(self.trained)
        self.averaged: list[Tensor] = [p for p in self.kept.parameters() if p.requires_grad]
        self.parts = {"trained": self.trained, "average": self.kept, "adam": self.adam}

    def step(self, batch: Batch, number: int, used: float) -> Tensor:
        warmup = self.options.warmup
        phase = used / warmup - 1 if used < warmup else (used - warmup) / (1 - warmup)
        height = 0.5 * (1 + math.cos(math.pi * phase))
        for group in self.adam.param_groups:
            group["lr"] = height * self.options.learning_rate
            group["betas"] = (0.95 - 0.1 * height, 0.999)
        loss = self.loss(self.trained, batch)
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.options.largest_gradient)
        self.adam.step()
        decay = self.options.ema_decay if number else 0.0  # the first weights count for all
        get_ema_multi_avg_fn(decay)(self.averaged, self.parameters, number)
        return loss.detach()

    def network(self, weights: dict[str, Tensor]) -> Network:
        network = copy.deepcopy(self.trained)
        network.load_state_dict(weights)
        return network.eval()


@dataclass
class _Progress:
    steps: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    validation: tuple[float, ...] = ()
    best_epoch: int = 0
    kept: dict[str, Tensor] | None = None


def train(
    learner: Learner[Trains, Batch],
    options: TrainingOptions,
    steps_per_epoch: int,
    batches: Callable[[np.random.Generator], Iterable[Batch]],
    validate: Callable[[Trains], tuple[float, ...]] | None = None,
    report: Callable[[str], None] = lambda line: None,
    every: int = 1,
    state: Path | None = None,
) -> Trained[Trains]:
    """Train until a budget is used up; keep the weights with the least sum of `validate`.

    `batches` gives those of one epoch, in an order drawn from the generator, which is a new one for
    each epoch. `every` counts the epochs between reports and validations; the last one is validated
    in any case. States after epochs are written to the file `state`. A training that finds its own
    there goes on from it; on the CPU it comes to the same weights, bit for bit, as without the
    interruption.

    Raises `RuntimeError` if the loss of an epoch is not finite, and `ValueError` if the state is
    damaged or of other options.
    """
    done = _Progress() if state is None else _resumed(state, learner, options)
    began, cpu_began = time.time() - done.seconds, time.process_time() - done.cpu_seconds
    total, budget = options.epochs * steps_per_epoch, 60 * (options.minutes or math.inf)
    used, written = max(done.steps / total, done.cpu_seconds / budget), time.monotonic()
    while used < 1:
        first, losses = done.steps, 0.0
        for batch in batches(np.random.default_rng([options.seed, first // steps_per_epoch])):
            losses += learner.step(batch, done.steps, used)
            done.steps += 1
            done.cpu_seconds = time.process_time() - cpu_began
            used = max(done.steps / total, done.cpu_seconds / budget)
            if used >= 1:
                break
        loss, epoch = float(losses) / (done.steps - first), -(-done.steps // steps_per_epoch)
        if not math.isfinite(loss):
            raise RuntimeError(
                f"the training diverged before step {done.steps}; lower the learning rate "
                f"({options.learning_rate:g})"
            )
        if epoch % every == 0 or used >= 1:
            found = "" if validate is None else _validated(done, epoch, learner, validate)
            done.seconds = time.time() - began
            report(f"epoch {epoch}: training loss {loss:.5f}{found}, {done.seconds:.0f} s")
        if state is not None and used < 1 and time.monotonic() - written >= SAVE_EVERY:
            done.seconds, written = time.time() - began, time.monotonic()
            _write_state(state, done, learner, options)
    kept = learner.weights() if done.kept is None else done.kept
    figures = {key: value for key, value in vars(done).items() if key != "kept"}
    return Trained(learner.network(kept), **figures)


def _validated(
    done: _Progress,
    epoch: int,
    learner: Learner[Trains, Batch],
    validate: Callable[[Trains], tuple[float, ...]],
) -> str:
    weights = learner.weights()
    found = tuple(validate(learner.network(weights)))
    if done.kept is None or sum(found) < sum(done.validation):
        done.validation, done.best_epoch, done.kept = found, epoch, weights
    return f", validation {' '.join(f'{error:.5f}' for error in found)}"


def _write_state(
    path: Path, done: _Progress, learner: Learner[Any, Any], options: TrainingOptions
) -> None:
    parts = {name: part.state_dict() for name, part in learner.parts.items()}
    state = {"progress": vars(done), "parts": parts, "options": asdict(options)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        torch.save(state, temporary)


def _resumed(path: Path, learner: Learner[Any, Any], options: TrainingOptions) -> _Progress:
    if not path.exists():
        return _Progress()
    from ase_biasgrad.training.lightning.state_files import read_state

    state = read_state(path)
    if state.get("options") != asdict(options):
        raise ValueError(f"{path}: is the state of another training; delete it, or name another")
    for name, part in learner.parts.items():
        part.load_state_dict(state["parts"][name])
    return _Progress(**state["progress"])


def train_once(
    path: Path | None,
    train: Callable[[Path | None], Made],
    save: Callable[[Path, Made], None],
    load: Callable[[Path], Made],
) -> Made:
    """Content of a file; made and written first, before anything else can fail, if it is not there.

    `train` takes a path for its states, which goes when the file is there. Without a path nothing
    is kept.
    """
    if path is None:
        return train(None)
    state = path.with_suffix(".state")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, train(state))
    state.unlink(missing_ok=True)
    return load(path)


def measured(
    store: Store,
    data: str,
    options: dict[str, Any],
    kind: type[Network],
    record: dict[str, Any],
    train: Callable[[Path | None], Trained[Network]],
    test: Callable[[Network], dict[str, Any]],
    report: Callable[[str], None],
    device: torch.device | str,
) -> Result:
    """The result of a training, found in `store`, or else made, with its network beside it.

    The network is written with `record`, how it came about and the versions that made it, and
    then tested as it was read from the file.
    """
    if found := store.find(data, options):
        report(f"{store.path(data, options)}: is there already")
        return found

    def save(path: Path, trained: Trained[Network]) -> None:
        how = {"data": data, "options": options, **trained.figures(), "versions": versions()}
        save_network(path, trained.network, {**record, **how})

    def load(path: Path) -> Trained[Network]:
        network, how = load_network(path, kind)
        figures = {name: how[name] for name in ("best_epoch", "steps", "seconds", "cpu_seconds")}
        return Trained(network, tuple(how["validation"]), **figures)

    trained = train_once(store.path(data, options, ".safetensors"), train, save, load)
    network = trained.network.to(device)
    size = sum(p.numel() for p in network.parameters())
    figures = {**trained.figures(), **test(network)}
    return store.keep(data, options, {**figures, "parameters": size, "hardware": hardware(device)})


def save_network(
    path: str | Path, network: nn.Module, training: dict[str, Any] | None = None
) -> None:
    """Write a network with its options to a safetensors file, whole or not at all.

    Its class has a `FORMAT` and takes the dataclass `OPTIONS`, which is the attribute `options`.
    """
    from safetensors.torch import save

    options = asdict(network.options)  # type: ignore[call-overload]
    metadata = {"format": network.FORMAT, "version": VERSION, "options": options}
    tensors = {name: value.cpu().contiguous() for name, value in network.state_dict().items()}
    write_tensors(path, save, tensors, {**metadata, "training": training or {}})


def load_network(path: str | Path, kind: type[Network]) -> tuple[Network, dict[str, Any]]:
    """Read a network that `save_network` wrote, and its training.

    Raises
    ------
    ValueError
        If the file is something else.
    """
    from safetensors.torch import load

    content, expected = Path(path).read_bytes(), cast(Any, kind)
    try:
        metadata = checked_metadata(content, expected.FORMAT, VERSION)
        network = expected(expected.OPTIONS(**metadata["options"]))
        network.load_state_dict(load(content))
        return network.eval(), metadata["training"]
    except Exception as error:  # whatever a damaged file makes the readers raise
        raise ValueError(f"{path}: is not a network of this kind: {error}") from error
