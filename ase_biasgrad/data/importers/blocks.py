"""Frames that a source holds in blocks of the same atoms: converted, counted and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ase_biasgrad.data.dataset import LABELS, DataError, real_array
from ase_biasgrad.data.importers.labels import (
    Account,
    converted,
    require_named,
    unlabelled,
)
from ase_biasgrad.data.importers.options import ImportOptions, Units
from ase_biasgrad.data.importers.plausibility import Questions
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.progress import progress_bar

ATOMS_AT_ONCE = 50_000


@dataclass(frozen=True)
class Block:
    """`m` frames of the same `n` atoms, in the units of the source.

    `name` is the part of the source that holds them, empty for all of it. `positions` and `labels`
    come with their keys in the source, `left` are the keys that are not taken. `state` is charge
    and spin.
    """

    name: str
    numbers: np.ndarray  # (n,)
    positions: tuple[str, np.ndarray]  # (m, n, 3)
    labels: Mapping[str, tuple[str, np.ndarray]]  # (m, …)
    left: Iterable[str]
    cell: np.ndarray | None = None  # (3, 3) or (m, 3, 3)
    pbc: np.ndarray | None = None  # (3,) or (m, 3)
    state: tuple[int, str] = (0, "")


def import_blocks(
    path: Path,
    blocks: Iterator[Block],
    units: Units,
    remark: str,
    writer: DatasetWriter,
    options: ImportOptions,
    progress: bool,
    asked: Questions,
) -> tuple[int, str]:
    """Append all frames; the number of those left out, and an account that ends with `remark`.

    Raises
    ------
    DataError
        On shapes that do not fit, frames without labels, and values that cannot be used.
    """
    account = Account()
    with progress_bar(None, path.name, progress, unit=" frames") as bar:
        for block in blocks:
            for part in _append(path, block, units, account, writer, options, asked):
                bar.update(part)
    require_named(path, account, options)
    return account.skipped, account.said(f"{path.name}: {units.said}{remark}", options)


def _append(
    path: Path,
    block: Block,
    units: Units,
    account: Account,
    writer: DatasetWriter,
    options: ImportOptions,
    asked: Questions,
) -> Iterator[int]:
    """Write a block in parts; yield the number of frames of each."""
    source = f"{path}: {block.name}" if block.name else str(path)
    key, given = block.positions
    positions = real_array(given, f"{source}: {key}") * units.factors["positions"]
    n, m = len(block.numbers), len(positions) if positions.ndim else 0
    if positions.shape != (m, n, 3):
        raise DataError(
            f"{source}: {key}: has shape {positions.shape}, expected (frames, {n}, 3) for {n} atoms"
        )
    cell = None if block.cell is None else block.cell * units.factors["positions"]
    pbc = np.zeros(3, bool) if block.pbc is None else block.pbc
    account.left.update(dict.fromkeys(block.left, m))
    labels = _labels(block, source, units, account, cell, pbc, m)
    kept = _labelled(labels, m)
    if not kept.all():
        if not options.skip_unlabelled:
            raise DataError(unlabelled(_where(path, block, int(np.argmin(kept))), block.left))
        account.skipped += m - int(kept.sum())
    account.frames += int(kept.sum())
    places = np.flatnonzero(kept)
    cells = None if cell is None else np.broadcast_to(cell, (m, 3, 3))
    pbcs = np.broadcast_to(pbc, (m, 3))
    step = max(1, ATOMS_AT_ONCE // n)
    for rows in (places[first : first + step] for first in range(0, len(places), step)):
        known = {name: label[rows] for name, label in labels.items() if name in LABELS}
        others = {name: label[rows] for name, label in labels.items() if name not in LABELS}
        writer.append(
            block.numbers,
            positions[rows],
            **known,
            cell=None if cells is None else cells[rows],
            pbc=None if cells is None else pbcs[rows],
            labels=others,
            source=source,
        )
        for k, frame in enumerate(rows):
            asked.add(
                path,
                _where(path, block, frame),
                block.numbers,
                positions[frame],
                np.zeros((3, 3)) if cells is None else cells[frame],
                pbcs[frame],
                **{name: label[k] for name, label in known.items()},
                state=block.state,
            )
        yield len(rows)


def _where(path: Path, block: Block, frame: int) -> str:
    return f"{path} ({f'frame {frame} of {block.name}' if block.name else f'its frame {frame}'})"


def _labels(
    block: Block,
    source: str,
    units: Units,
    account: Account,
    cell: np.ndarray | None,
    pbc: np.ndarray,
    m: int,
) -> dict[str, np.ndarray]:
    """Labels in eV and Å, `(m, …)`, NaN in frames that lack them; counts frames with each."""
    n, labels = len(block.numbers), {}
    volume = np.ones(m) if cell is None else np.broadcast_to(np.abs(np.linalg.det(cell)), (m,))
    for name, (key, values) in block.labels.items():
        account.taken[name, key] += 0
        if name == "stress" and not pbc.any():
            account.unperiodic += m
            continue
        label = converted(name, key, values, units, volume, source, (m,))
        shape = {"energy": (m,), "forces": (m, n, 3), "stress": (m, 6)}.get(name)
        shape = shape or (m, *label.shape[1:])
        if label.shape != shape:
            raise DataError(
                f"{source}: {key}: has shape {label.shape}, expected {shape} for {n} atoms"
            )
        missing = _missing(label)
        account.taken[name, key] += m - int(missing.sum())
        account.nan[name] += int(missing.sum())
        labels[name] = label
    return labels


def _missing(label: np.ndarray) -> np.ndarray:
    """Frames `(m,)` in which a label is NaN all over."""
    if label.dtype.kind == "U":
        return np.zeros(len(label), bool)
    return np.isnan(label).reshape(len(label), -1).all(axis=1) & (label.size > 0)


def _labelled(labels: Mapping[str, np.ndarray], m: int) -> np.ndarray:
    """Frames `(m,)` that have any label."""
    return np.any([np.zeros(m, bool), *(~_missing(label) for label in labels.values())], axis=0)
