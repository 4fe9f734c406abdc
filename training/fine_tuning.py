"""Fine-tuning: training that begins from the network of a checkpoint, its parent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.backbones.base import Backbone
from ase_biasgrad.checkpoint import Checkpoint, load_checkpoint
from ase_biasgrad.data.seen import recorded_digests
from ase_biasgrad.training.config import (
    BackboneOptions,
    BaselineOptions,
    ConfigError,
    FineTuningOptions,
    TrainConfig,
)

WHERE = "fine_tuning.checkpoint"


@dataclass(frozen=True)
class Parent:
    """The checkpoint that a training begins from."""

    loaded: Checkpoint

    @property
    def record(self) -> dict[str, Any]:
        """Name, digest and ancestors in JSON values, for the provenance of the child."""
        found: dict[str, Any] = {"checkpoint": self.loaded.path.name, "sha256": self.loaded.sha256}
        if before := self.loaded.training.get("parent"):
            found["parent"] = before
        return found

    def backbone(self, precision: torch.dtype) -> Backbone:
        """The network made anew, to learn, with the parent's weights."""
        network = self.loaded.potential.backbone
        backbone = build_backbone(network.name, network.arguments).to(torch.float64)
        backbone.load_state_dict(network.state_dict())
        return backbone.to(precision)

    def seen(self) -> np.ndarray:
        """Digests of the frames that it was trained on, as far as they are known."""
        record = self.loaded.training.get("seen")
        return np.zeros(0, np.uint64) if record is None else recorded_digests(record)

    def check_elements(self, compositions: np.ndarray, path: Path) -> None:
        """Raise `ConfigError` if frames `(m, N_ELEMENTS)` of `path` hold elements that it lacks."""
        lacking = set(np.flatnonzero(compositions.sum(axis=0)).tolist())
        if lacking := lacking - set(self.loaded.potential.elements):
            known = [chemical_symbols[z] for z in self.loaded.potential.elements]
            raise ConfigError(
                f"{WHERE}: {self.loaded.path} was trained for {', '.join(known)}, and {path} "
                f"holds {', '.join(chemical_symbols[z] for z in sorted(lacking))}; leave these "
                "frames out, or train without it"
            )


def parent_of(config: TrainConfig) -> Parent | None:
    """The checkpoint that the options name, if any.

    Raises `ConfigError` if it cannot be read, or its network is not the one that the options name.
    """
    if config.fine_tuning is None:
        return None
    path = config.fine_tuning.checkpoint
    try:
        parent = Parent(load_checkpoint(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{WHERE}: {error}") from error
    _check_baseline(parent.loaded.potential.baseline, config.baseline, path)
    if "backbone" in config.model_fields_set:
        _check_backbone(parent.loaded.potential.backbone, config.backbone, path)
    return parent


def with_parent(config: TrainConfig, parent: Parent) -> TrainConfig:
    """Options as used: the parent's backbone, and the rates of fine-tuning in the force stage.

    Raises `ConfigError` if the options give the force stage rates of its own.
    """
    assert config.fine_tuning is not None
    tuning, stage, schedule = config.fine_tuning, config.force_stage, config.force_stage.schedule
    _check_one_rate(tuning, stage, "learning_rate", "force_stage.learning_rate")
    _check_one_rate(tuning, schedule, "warmup_steps", "force_stage.schedule.warmup_steps")
    schedule = schedule.model_copy(update={"warmup_steps": tuning.warmup_steps})
    stage = stage.model_copy(update={"learning_rate": tuning.learning_rate, "schedule": schedule})
    network = parent.loaded.potential.backbone
    options = {"name": network.name, **network.arguments}
    backbone = BackboneOptions.model_validate(options)
    return config.model_copy(update={"backbone": backbone, "force_stage": stage})


def _check_one_rate(tuning: FineTuningOptions, other: Any, name: str, where: str) -> None:
    given, own = getattr(other, name), getattr(tuning, name)
    if name in other.model_fields_set and given != own:
        raise ConfigError(
            f"{where}: is {given}, and fine_tuning.{name} is {own}; with fine_tuning the latter "
            "counts, so leave the former out"
        )


def _check_baseline(
    own: dict[str, Any] | None, options: BaselineOptions | None, path: Path
) -> None:
    """Refuse a network that learned the difference to something else than this one shall."""
    named = None if own is None else {key: own[key] for key in ("calculator", "arguments")}
    given = None if options is None else options.model_dump()
    if named != given:
        raise ConfigError(
            f"baseline: is {given}, and {path} ({WHERE}) was trained with {named}; name the same"
        )


def _check_backbone(network: Backbone, options: BackboneOptions, path: Path) -> None:
    """Raise `ConfigError` naming the first option given that differs from the network's."""
    if network.name != options.name:
        raise ConfigError(
            f"backbone.name: is {options.name}, and {path} ({WHERE}) is {network.name}; leave "
            "backbone out to take the checkpoint's"
        )
    for name, value in options.arguments.items():
        own = network.arguments[name]
        if _plain(value) != _plain(own):
            raise ConfigError(
                f"backbone.{name}: is {value!r}, and {own!r} in {path} ({WHERE}); leave backbone "
                "out to take the checkpoint's"
            )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
