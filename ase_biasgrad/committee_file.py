"""Committees: several checkpoints and the calibration of their spreads in one file.

A safetensors file whose tensors are the members' checkpoints, byte by byte. Its metadata hold JSON
under the key `ase_biasgrad`, and a digest as in checkpoints. In place of several members there may
be one with readouts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.calibration import Calibration
from ase_biasgrad.checkpoint import CheckpointError, StoredPotential, parsed_checkpoint
from ase_biasgrad.readouts import TENSORS, Readouts
from ase_biasgrad.tensor_file import check_digest, parsed_json, split_file, write_tensors

# 2: one member with readouts
FORMAT, VERSION, WITHOUT_READOUTS = "ase-biasgrad committee", 2, 1


@dataclass(frozen=True)
class StoredCommittee:
    """A committee as read; its members are checkpoints."""

    members: tuple[StoredPotential, ...]
    calibration: Calibration | None
    metadata: dict[str, Any]
    path: Path
    sha256: str
    readouts: Readouts | None = None  # of a single member


def save_committee(
    path: str | Path,
    members: Sequence[str | Path],
    calibration: Calibration | None = None,
    note: dict[str, Any] | None = None,
    readouts: Readouts | None = None,
) -> None:
    """Write the checkpoints `members` into one file, whole or not at all.

    `note` is recorded unchanged (JSON values). Raises `CheckpointError` or `FileNotFoundError` if a
    member is no checkpoint, and `ValueError` if there are less than two, or `readouts` are not
    those of a single one.
    """
    from safetensors.numpy import save

    contents = [_content(Path(member)) for member in members]
    stored = [
        parsed_checkpoint(content, Path(member))
        for member, content in zip(members, contents, strict=True)
    ]
    _check_members(stored, readouts)
    metadata = {
        "format": FORMAT,
        "version": WITHOUT_READOUTS if readouts is None else VERSION,
        "members": [Path(member).name for member in members],
        "calibration": None if calibration is None else calibration.record(),
        "note": note or {},
    }
    tensors = {f"member.{k}": np.frombuffer(c, np.uint8) for k, c in enumerate(contents)}
    if readouts is not None:
        tensors |= readouts.tensors()
    write_tensors(path, save, tensors, metadata)


def read_committee(path: str | Path) -> StoredCommittee:
    """Read a committee; a checkpoint is one of a single member.

    Raises `FileNotFoundError` if there is no such file, and `CheckpointError` if it is neither, is
    damaged, or needs a newer version.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(path)
    content = _content(path)
    digest = hashlib.sha256(content).hexdigest()
    try:
        header, data = split_file(content)
        metadata = _metadata(header)
        if metadata is None:
            single = parsed_checkpoint(content, path)
            return StoredCommittee((single,), None, single.metadata, path, digest)
        check_digest(header, data, 2)
        tensors = load(content)
        apart = {key: tensors.pop(key) for key in [*tensors] if key.startswith(TENSORS)}
        if sorted(tensors) != sorted(f"member.{k}" for k in range(len(tensors))):
            raise ValueError(f"holds {sorted(tensors)[:5]}, which are no members")
        kept = [tensors[f"member.{k}"] for k in range(len(tensors))]
        members = tuple(parsed_checkpoint(array.tobytes(), path) for array in kept)
        record = metadata.get("calibration")
        calibration = None if record is None else Calibration.from_record(record)
        readouts = Readouts.from_tensors(apart) if apart else None
        _check_members(members, readouts)
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return StoredCommittee(members, calibration, metadata, path, digest, readouts)


def _check_members(members: Sequence[StoredPotential], readouts: Readouts | None) -> None:
    if len(members) < 2 if readouts is None else len(members) != 1:
        raise ValueError("a committee has two members or more, or one with readouts")
    if readouts is not None:
        potential = members[0].potential
        readouts.check(potential.network)
        if unknown := set(potential.elements) - set(readouts.elements):
            raise ValueError(
                f"readouts.elements: lack {sorted(unknown)}, which the potential knows"
            )


def _metadata(header: dict[str, Any]) -> dict[str, Any] | None:
    """Metadata of a committee, None if it is something else."""
    stored = header.get("__metadata__")
    text = stored.get("ase_biasgrad") if isinstance(stored, dict) else None
    if not isinstance(text, str) or FORMAT not in text:
        return None
    metadata = parsed_json(text)
    if metadata.get("format") != FORMAT:
        return None
    if metadata.get("version") not in (WITHOUT_READOUTS, VERSION):
        raise ValueError(
            f"version: {metadata.get('version')} of a committee, and this package reads up to "
            f"{VERSION}; update ase-biasgrad"
        )
    return metadata


def _content(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    return path.read_bytes()
