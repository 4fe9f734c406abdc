"""Frames that a potential has seen, known again in any dataset by digests of their structures."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import numpy as np

from ase_biasgrad.data.dataset import Dataset

RESOLUTION = 1e-3  # Å, far above the rounding of file formats and below a step of dynamics
# of one digest: two sets of 10⁵ other frames share one by chance in one of 3·10⁴ cases
BYTES = 6
MOST = 2**17  # digests that a record lists: 1 MB of text


def frame_digests(dataset: Dataset, frames: np.ndarray) -> np.ndarray:
    """Digests of the structures of `frames` `(m,)`, uint64.

    The same elements in the same order, positions and (where periodic) cell to 0.001 Å have the
    same digest, whatever their labels. A rotated, shifted or wrapped copy is another structure.
    """
    wanted = np.zeros(len(dataset), bool)
    wanted[frames] = True
    digests = np.zeros(len(dataset), np.uint64)
    for group in dataset.groups():
        rows = np.flatnonzero(wanted[group.index])
        if len(rows):
            read = (group.read(name, rows) for name in ("positions", "cell", "pbc"))
            digests[group.index[rows]] = _digests(group.numbers, *read)
    return digests[frames]


def _digests(
    numbers: np.ndarray,
    positions: np.ndarray | None,
    cell: np.ndarray | None,
    pbc: np.ndarray | None,
) -> list[int]:
    assert positions is not None
    begin = numbers.astype("<i8").tobytes()
    found = []
    for k, atoms in enumerate(positions):
        content = begin + np.rint(atoms / RESOLUTION).astype("<i8").tobytes()
        if cell is not None and pbc is not None and pbc[k].any():
            vectors = np.rint(cell[k] / RESOLUTION).astype("<i8")
            content += vectors.tobytes() + pbc[k].astype(bool).tobytes()
        digest = hashlib.blake2b(content, digest_size=BYTES).digest()
        found.append(int.from_bytes(digest, "little"))
    return found


def seen_record(digests: np.ndarray) -> dict[str, Any]:
    """Digests as JSON values: their number and, as base64, 6 bytes of each.

    Of more than `MOST` the smallest are listed, which are a random sample.
    """
    distinct = np.unique(digests)
    rows = distinct[:MOST].astype("<u8").view(np.uint8).reshape(-1, 8)[:, :BYTES]
    return {"frames": len(distinct), "digests": base64.b64encode(rows.tobytes()).decode()}


def with_more(record: dict[str, Any], digests: np.ndarray) -> dict[str, Any]:
    """The record with further digests; errors as in `recorded_digests`."""
    listed = recorded_digests(record)
    joined = seen_record(np.concatenate([listed, digests]))
    return {**joined, "frames": joined["frames"] + record["frames"] - len(listed)}


def recorded_digests(record: dict[str, Any]) -> np.ndarray:
    """Sorted digests of a `seen_record`, uint64.

    Raises `ValueError` if it is no such record.
    """
    try:
        listed = np.frombuffer(base64.b64decode(record["digests"], validate=True), np.uint8)
        rows = np.zeros((len(listed) // BYTES, 8), np.uint8)
        rows[:, :BYTES] = listed.reshape(-1, BYTES)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the record of the frames seen in training is damaged: {error}"
        ) from error
    return rows.view("<u8")[:, 0].astype(np.uint64)


def lists_all(record: dict[str, Any]) -> bool:
    """Test that the record lists every frame, not a sample."""
    return len(recorded_digests(record)) == record["frames"]
