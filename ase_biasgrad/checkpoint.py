"""Checkpoints: one safetensors file with everything that makes a potential, and its history.

Loading runs no code from the file. The tensors are those of `Potential.state_dict()`; the
metadata is JSON under the key `ase_biasgrad`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.bias import Bias
from ase_biasgrad.files import file_hash, whole_file
from ase_biasgrad.potential import Potential

FORMAT = "ase-biasgrad checkpoint"
FORMAT_VERSION = 1
UNITS = {"energy": "eV", "length": "Å", "stress": "eV/Å³"}

# version → function that turns metadata of that version into the next one
UPGRADES: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or comes from a newer version."""


@dataclass(frozen=True)
class Checkpoint:
    """A potential as loaded: on the CPU, in evaluation mode, no parameter wanting gradients."""

    potential: Potential
    metadata: dict[str, Any]
    path: Path
    sha256: str

    @property
    def training(self) -> dict[str, Any]:
        """Provenance: data hash, split, versions, validation metrics, as far as recorded."""
        return self.metadata["training"]


def save_checkpoint(
    path: str | Path, potential: Potential, training: dict[str, Any] | None = None
) -> None:
    """Write a potential to `path` (`*.safetensors`), whole or not at all.

    `training` is recorded as it is (JSON values).
    """
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "backbone": {"name": potential.backbone.name, "arguments": potential.backbone.arguments},
        "elements": list(potential.elements),
        "cutoff": potential.cutoff,
        "units": UNITS,
        "bias": {"zero": potential.bias.zero, "fit": potential.bias.fit_report},
        "training": training or {},
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in potential.state_dict().items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"ase_biasgrad": json.dumps(metadata)})


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a potential.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If the file is not a checkpoint of ours, is damaged, or needs a newer version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            stored = (file.metadata() or {}).get("ase_biasgrad")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, or damaged ({error}); models of SchNetPack "
            "come in through `biasgrad convert`"
        ) from error
    if stored is None:
        raise CheckpointError(f"{path}: a safetensors file, but not a checkpoint of ase-biasgrad")
    metadata = _upgraded(_parsed(stored, path), path)
    return Checkpoint(_rebuilt(metadata, tensors, path), metadata, path, file_hash(path))


def _parsed(stored: str, path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads(stored)
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: the metadata is damaged: {error}") from error
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: the metadata is not that of an {FORMAT}")
    return metadata


def _upgraded(metadata: dict[str, Any], path: Path) -> dict[str, Any]:
    if metadata.get("format") != FORMAT or not isinstance(metadata.get("version"), int):
        raise CheckpointError(f"{path}: the metadata is not that of an {FORMAT}")
    if metadata["version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {metadata['version']}, this package reads up to "
            f"{FORMAT_VERSION}; update ase-biasgrad"
        )
    while metadata["version"] < FORMAT_VERSION:
        version = metadata["version"]
        if version not in UPGRADES:
            raise CheckpointError(f"{path}: format version {version} is one that nothing upgrades")
        metadata = {**UPGRADES[version](metadata), "version": version + 1}
    return metadata


def _rebuilt(metadata: dict[str, Any], tensors: dict[str, Any], path: Path) -> Potential:
    try:
        backbone = build_backbone(metadata["backbone"]["name"], metadata["backbone"]["arguments"])
        bias = Bias()
        bias.zero = metadata["bias"]["zero"]
        bias.fit_report = metadata["bias"]["fit"]
        bias.compositions = tensors["bias.compositions"]
        bias.offsets = tensors["bias.offsets"]
        potential = Potential(backbone, bias, metadata["elements"])
        for name, own in (*backbone.named_parameters(), *backbone.named_buffers()):
            # a potential trained in float64 comes back in float64, radial functions included
            if (stored := tensors.get(f"backbone.{name}")) is not None:
                own.data = own.data.to(stored.dtype)
        potential.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: the potential cannot be rebuilt: {error}") from error
    return potential.requires_grad_(False).eval()
