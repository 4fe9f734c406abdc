"""Datasets: one HDF5 file of labelled frames in eV and Å, written as a stream, read lazily.

A file has the attributes `format`, `version`, `units` and `provenance` (JSON), and a group per
composition: `frames/<name>` with `numbers (n,)`, `index (m,)` (place of each frame in the order
of writing), `positions (m, n, 3)` and, where the frames have them, `energy (m,)`,
`forces (m, n, 3)`, `stress (m, 6)`, `cell (m, 3, 3)` and `pbc (m, 3)`. Frames whose atoms come
in another order form a group of their own. Every frame of a file has the same labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ase_biasgrad.files import whole_file
from ase_biasgrad.neighbours import pairs_within

if TYPE_CHECKING:
    from ase import Atoms

FORMAT, VERSION = "ase-biasgrad dataset", 1
UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å³, Voigt, tension > 0"}
LABELS = ("energy", "forces", "stress")
CLOSEST = 0.1  # Å; atoms closer than this lie on top of each other
FRAMES_BUFFERED = 2048


class DataError(ValueError):
    """Data that cannot be used; the message names file, key and frame."""


@dataclass(frozen=True)
class Frame:
    """One structure and its labels; what the file does not have is None."""

    numbers: np.ndarray  # (n,)
    positions: np.ndarray  # (n, 3) Å
    cell: np.ndarray  # (3, 3) Å
    pbc: np.ndarray  # (3,) bool
    energy: float | None  # eV
    forces: np.ndarray | None  # (n, 3) eV/Å
    stress: np.ndarray | None  # (6,) eV/Å³

    def atoms(self) -> Atoms:
        """As `ase.Atoms`, labels in a `SinglePointCalculator`."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator

        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc)
        labels = {name: getattr(self, name) for name in LABELS if getattr(self, name) is not None}
        if labels:
            atoms.calc = SinglePointCalculator(atoms, **labels)
        return atoms


def _shapes(n: int) -> dict[str, tuple[int, ...]]:
    return {
        "positions": (n, 3),
        "energy": (),
        "forces": (n, 3),
        "stress": (6,),
        "cell": (3, 3),
        "pbc": (3,),
    }


@dataclass
class _Buffer:
    """Frames of one group that are not yet in the file."""

    numbers: np.ndarray
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    index: list[np.ndarray] = field(default_factory=list)


class DatasetWriter:
    """Write frames one after another in bounded memory; use it as a context manager.

    The file appears under its name when the block ends without an exception, and not at all
    otherwise.

    Parameters
    ----------
    path
        The new file.
    provenance
        JSON values that say where the data comes from.
    """

    def __init__(self, path: str | Path, provenance: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.frames = 0
        self._provenance = provenance or {}
        self._labels: frozenset[str] | None = None
        self._buffers: dict[tuple[bytes, bool], _Buffer] = {}
        self._names: dict[tuple[bytes, bool], str] = {}
        self._buffered = 0

    def __enter__(self) -> DatasetWriter:
        self._whole = whole_file(self.path)
        self._file = h5py.File(self._whole.__enter__(), "w")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
            self._file.close()
        except BaseException as problem:
            self._file.close()
            self._whole.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._whole.__exit__(kind, error, trace)

    def append(
        self,
        numbers: np.ndarray,
        positions: np.ndarray,
        *,
        energy: float | np.ndarray | None = None,
        forces: np.ndarray | None = None,
        stress: np.ndarray | None = None,
        cell: np.ndarray | None = None,
        pbc: np.ndarray | Sequence[bool] | None = None,
        source: str = "",
    ) -> None:
        """Add one frame, or a block of `m` frames of the same atoms.

        Shapes are those of the file without or with the leading `m`; units eV, Å. `source` is
        named in errors.

        Raises
        ------
        DataError
            On wrong shapes, values that are not finite, unknown elements, atoms on top of each
            other, or labels that other frames do not have.
        """
        source = source or str(self.path)
        numbers = np.asarray(numbers, np.int64)
        block = np.asarray(positions, np.float64)
        single = block.ndim == 2
        m = 1 if single else len(block)
        if numbers.ndim != 1 or not ((numbers >= 1) & (numbers <= 118)).all():
            raise DataError(f"{source}: numbers: {numbers.tolist()} are no atomic numbers (1…118)")
        given = {"positions": positions, "energy": energy, "forces": forces, "stress": stress}
        has_cell = (cell is not None and bool(np.any(cell))) or bool(np.any(pbc))
        if has_cell:
            given["cell"] = np.zeros((3, 3)) if cell is None else cell
            given["pbc"] = np.zeros(3, bool) if pbc is None else np.asarray(pbc, bool)
        rows = {}
        for name, shape in _shapes(len(numbers)).items():
            if given.get(name) is None:
                continue
            values = np.asarray(given[name], bool if name == "pbc" else np.float64)
            if name in ("cell", "pbc") and values.shape == shape and not single:
                values = np.broadcast_to(values, (m, *shape))
            values = values[None] if single else values
            if values.shape != (m, *shape):
                expected = shape if single else (m, *shape)
                found = values.shape[1:] if single else values.shape
                raise DataError(
                    f"{source}: {name} of frame {self.frames}: has shape "
                    f"{found}, expected {expected} for {len(numbers)} atoms"
                )
            rows[name] = values
        self._check(numbers, rows, source)
        self._store(numbers, has_cell, rows, m)

    def _check(self, numbers: np.ndarray, rows: dict[str, np.ndarray], source: str) -> None:
        labels = frozenset(rows) & frozenset(LABELS)
        if self._labels is None:
            self._labels = labels
        if labels != self._labels:
            raise DataError(
                f"{source}: frame {self.frames}: has the labels {sorted(labels)}, the frames "
                f"before it have {sorted(self._labels)}; every frame needs the same ones"
            )
        for name, values in rows.items():
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                frame = self.frames + int(np.argmin(finite))
                raise DataError(f"{source}: {name} of frame {frame}: holds NaN or infinity")
        for k, positions in enumerate(rows["positions"]):
            cell = rows["cell"][k] if "cell" in rows else np.zeros((3, 3))
            pbc = rows["pbc"][k] if "pbc" in rows else np.zeros(3, bool)
            try:
                pair = closest_pair(positions, cell, pbc)
            except ValueError as error:
                raise DataError(f"{source}: cell of frame {self.frames + k}: {error}") from error
            if pair is not None:
                raise DataError(
                    f"{source}: positions of frame {self.frames + k}: atoms {pair[0]} and "
                    f"{pair[1]} lie on top of each other (closer than {CLOSEST} Å); a wrong "
                    "length unit?"
                )

    def _store(
        self, numbers: np.ndarray, has_cell: bool, rows: dict[str, np.ndarray], m: int
    ) -> None:
        key = (numbers.tobytes(), has_cell)
        buffer = self._buffers.setdefault(key, _Buffer(numbers.copy()))
        for name, values in rows.items():
            buffer.rows.setdefault(name, []).append(np.array(values))
        buffer.index.append(np.arange(self.frames, self.frames + m))
        self.frames += m
        self._buffered += m
        if self._buffered >= FRAMES_BUFFERED:
            self._flush()

    def _flush(self) -> None:
        for key, buffer in self._buffers.items():
            if key not in self._names:
                self._names[key] = self._new_group(buffer)
            group = self._file["frames"][self._names[key]]
            columns = {name: np.concatenate(values) for name, values in buffer.rows.items()}
            columns["index"] = np.concatenate(buffer.index)
            for name, values in columns.items():
                stored = group[name]
                stored.resize(len(stored) + len(values), axis=0)
                stored[len(stored) - len(values) :] = values
        self._buffers.clear()
        self._buffered = 0

    def _new_group(self, buffer: _Buffer) -> str:
        name = f"{len(self._names):06d}_{formula(np.bincount(buffer.numbers))}"
        group = self._file.require_group("frames").create_group(name)
        group["numbers"] = buffer.numbers
        for key, values in buffer.rows.items():
            shape = values[0].shape[1:]
            length = max(1, min(256, 32768 // max(1, int(np.prod(shape)))))
            group.create_dataset(
                key,
                (0, *shape),
                values[0].dtype,
                maxshape=(None, *shape),
                chunks=(length, *shape),
                compression="gzip",
                compression_opts=1,
                shuffle=True,
            )
        group.create_dataset("index", (0,), np.int64, maxshape=(None,), chunks=(1024,))
        return name

    def _finish(self) -> None:
        self._flush()
        if self.frames == 0:
            raise DataError(f"{self.path}: no frames to write")
        self._file.attrs.update(
            format=FORMAT,
            version=VERSION,
            frames=self.frames,
            units=json.dumps(UNITS),
            provenance=json.dumps(self._provenance),
        )


def formula(counts: np.ndarray) -> str:
    """Chemical formula (Hill order) of a composition, counts by atomic number."""
    from ase.data import chemical_symbols
    from ase.formula import Formula

    symbols = {chemical_symbols[z]: int(counts[z]) for z in np.flatnonzero(counts)}
    return f"{Formula.from_dict(symbols):hill}"


def closest_pair(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray
) -> tuple[int, int] | None:
    """A pair of atoms closer than `CLOSEST`, or None."""
    if not pbc.any() and len(positions) <= 64:
        delta = positions[:, None] - positions[None, :]
        square = np.einsum("ijk,ijk->ij", delta, delta)
        centre, neighbour = np.nonzero(square < CLOSEST**2)
        close = np.flatnonzero(centre < neighbour)
        return (int(centre[close[0]]), int(neighbour[close[0]])) if len(close) else None
    edges = pairs_within(positions, cell, pbc, CLOSEST)
    return (int(edges.centre[0]), int(edges.neighbour[0])) if len(edges) else None


class Group:
    """Frames of the same atoms in the same order."""

    def __init__(self, name: str, stored: h5py.Group, in_memory: bool) -> None:
        self.name = name
        self.numbers: np.ndarray = stored["numbers"][()]
        self.index: np.ndarray = stored["index"][()]
        self._stored = {key: stored[key] for key in _shapes(0) if key in stored}
        if in_memory:
            self._stored = {key: values[()] for key, values in self._stored.items()}

    def __len__(self) -> int:
        return len(self.index)

    def has(self, name: str) -> bool:
        return name in self._stored

    def read(self, name: str, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Rows of `name` in the order asked for, all by default; None if the group has none."""
        if name not in self._stored:
            return None
        values = self._stored[name]
        if rows is None:
            return values[()] if isinstance(values, h5py.Dataset) else values
        rows = np.asarray(rows, np.int64)
        if isinstance(values, np.ndarray):
            return values[rows]
        if len(rows) > len(self) // 4:  # h5py's own selection is slow for many rows
            return values[()][rows]
        unique, back = np.unique(rows, return_inverse=True)
        return values[unique][back]


class Dataset:
    """A dataset file opened for reading: a sequence of `Frame`.

    Parameters
    ----------
    path
        The file.
    in_memory
        Read everything now; otherwise frames are read when asked for.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If it is no dataset of ours, is damaged, or comes from a newer version.
    """

    def __init__(self, path: str | Path, in_memory: bool = False) -> None:
        self.path = Path(path)
        self._file = _opened(self.path)
        try:
            self.provenance: dict[str, Any] = json.loads(self._file.attrs["provenance"])
            frames = self._file["frames"]
            self._groups = [Group(name, frames[name], in_memory) for name in frames]
            self._group_of = np.full(int(self._file.attrs["frames"]), -1, np.int64)
            self._row_of = np.zeros_like(self._group_of)
            for k, group in enumerate(self._groups):
                self._group_of[group.index] = k
                self._row_of[group.index] = np.arange(len(group))
        except (KeyError, OSError, ValueError, IndexError) as error:
            raise DataError(f"{self.path}: damaged dataset file: {error}") from error
        if (self._group_of < 0).any():
            frame = int(np.argmax(self._group_of < 0))
            raise DataError(f"{self.path}: damaged dataset file: frame {frame} is missing")
        if in_memory:
            self.close()

    def __len__(self) -> int:
        return len(self._group_of)

    def __getitem__(self, frame: int) -> Frame:
        if not -len(self) <= frame < len(self):
            raise IndexError(f"{self.path}: there is no frame {frame}, it has {len(self)}")
        group, row = self._groups[self._group_of[frame]], np.array([self._row_of[frame]])
        values = {name: group.read(name, row) for name in _shapes(0)}
        one = {name: None if v is None else v[0] for name, v in values.items()}
        energy = one["energy"]
        return Frame(
            group.numbers,
            np.asarray(one["positions"]),
            np.zeros((3, 3)) if one["cell"] is None else one["cell"],
            np.zeros(3, bool) if one["pbc"] is None else one["pbc"],
            None if energy is None else float(energy),
            one["forces"],
            one["stress"],
        )

    def __iter__(self) -> Iterator[Frame]:
        return (self[frame] for frame in range(len(self)))

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; in-memory datasets stay usable."""
        self._file.close()

    def groups(self) -> list[Group]:
        """The groups of the file."""
        return list(self._groups)

    def has(self, label: str) -> bool:
        """Whether every frame has `label` (energy, forces or stress)."""
        return all(group.has(label) for group in self._groups)

    def compositions(self) -> np.ndarray:
        """Atoms of each element in each frame, `(m, 119)` int64 by atomic number."""
        counts = np.stack([np.bincount(g.numbers, minlength=119) for g in self._groups])
        return counts[self._group_of].astype(np.int64)

    def hash(self) -> str:
        """SHA-256 over numbers, positions and labels in the order of frames, hexadecimal."""
        digest = hashlib.sha256()
        for group in sorted(self._groups, key=lambda g: int(g.index[0])):
            digest.update(np.ascontiguousarray(group.numbers).tobytes())
            digest.update(group.index.tobytes())
            for name in _shapes(0):
                values = group.read(name)
                if values is not None:
                    digest.update(name.encode())
                    digest.update(np.ascontiguousarray(values).tobytes())
        return digest.hexdigest()


def _opened(path: Path) -> h5py.File:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such dataset")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path}: no HDF5 file, or a truncated one ({error}); make datasets with "
            "`biasgrad data import`"
        ) from error
    if file.attrs.get("format") != FORMAT:
        file.close()
        raise DataError(f"{path}: an HDF5 file, but no dataset of ase-biasgrad")
    if (found := int(file.attrs["version"])) > VERSION:
        file.close()
        raise DataError(f"{path}: has version {found}, this package reads {VERSION}; update it")
    return file
