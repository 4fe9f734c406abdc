"""Sources as blocks of frames of the same atoms: converted, counted and written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ase_biasgrad.data.dataset import LABELS, DataError, real_array
from ase_biasgrad.data.importers.labels import Account, converted, require_named, told, unlabelled
from ase_biasgrad.data.importers.options import ImportOptions, Units
from ase_biasgrad.data.importers.plausibility import Questions
from ase_biasgrad.data.writer import DatasetWriter, missing
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
    frame: int | None = None  # its number in the source, of a block that is one of its frames

    def where(self, path: Path, row: int | None = None) -> str:
        """Place of a row, or of all of the block, for messages."""
        if self.frame is not None:
            return f"{path} (its frame {self.frame})"
        if row is None:
            return f"{path}: {self.name}" if self.name else str(path)
        return f"{path} ({f'frame {row} of {self.name}' if self.name else f'its frame {row}'})"


@dataclass(frozen=True)
class Source:
    """A file or folder as its reader opens it; `remark` ends the heading of its account."""

    blocks: Iterable[Block]
    units: Units
    remark: str = ""


def append_source(
    path: Path,
    source: Source,
    writer: DatasetWriter,
    options: ImportOptions,
    progress: bool,
    asked: Questions,
) -> tuple[int, str]:
    """Append all frames; the number of those left out, and an account.

    Raises `DataError` on shapes that do not fit, frames without labels, and values that cannot be
    used.
    """
    account = Account()
    with progress_bar(None, path.name, progress, unit=" frames") as bar:
        for block in source.blocks:
            for part in _append(path, block, source.units, account, writer, options, asked):
                bar.update(part)
    require_named(path, account, options)
    heading = f"{path.name}: {source.units.said}{source.remark}"
    return account.skipped, account.said(heading, options)


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
    source = block.where(path)
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
    kept = np.any([np.zeros(m, bool), *(~missing(label) for label in labels.values())], axis=0)
    if not kept.all():
        if not options.skip_unlabelled:
            raise DataError(unlabelled(block.where(path, int(np.argmin(kept))), block.left))
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
                block.where(path, frame),
                block.numbers,
                positions[frame],
                np.zeros((3, 3)) if cells is None else cells[frame],
                pbcs[frame],
                **{name: label[k] for name, label in known.items()},
                state=block.state,
            )
        yield len(rows)


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
        label = converted(name, key, values, units, volume, source)
        shape = {"energy": (m,), "forces": (m, n, 3), "stress": (m, 6)}.get(name)
        shape = shape or (m, *label.shape[1:])
        if label.shape != shape:
            raise DataError(
                f"{source}: {key}: has shape {told(label.shape)}, expected {told(shape)} for "
                f"{name} of {n} atoms"
            )
        absent = missing(label)
        account.taken[name, key] += m - int(absent.sum())
        account.nan[name] += int(absent.sum())
        labels[name] = label
    return labels
