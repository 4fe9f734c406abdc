"""Datasets: one HDF5 file of labelled frames in eV and Å, written as a stream, read lazily.

A file has the attributes `format`, `version`, `units` and `provenance` (JSON), and a group per
composition: `frames/<name>` with `numbers (n,)`, `index (m,)` (place of each frame in the order
of writing), `positions (m, n, 3)` and, where the frames have them, `energy (m,)`,
`forces (m, n, 3)`, `stress (m, 6)`, `cell (m, 3, 3)` and `pbc (m, 3)`, and other labels by name
`(m, …)`. Frames whose atoms come in another order, or that lack labels, form groups of their own:
a label that a frame lacks is not in its group. A label of texts is stored as their places in the
list of its name in `label_texts` of the provenance. `digests` are those of the content
(`digests.py`). Frames that were appended and are not yet in the HDF5 part come behind it
(`appended.py`).

The file begins with a block of 512 bytes that names the format, as HDF5 allows, so that
`ase.io.read` knows the file by its content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ase_biasgrad.data.appended import read_records
from ase_biasgrad.data.hdf5 import get_text
from ase_biasgrad.units import N_ELEMENTS

if TYPE_CHECKING:
    from ase import Atoms

FORMAT, VERSION = "ase-biasgrad dataset", 1
UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å", "stress": "eV/Å³, Voigt, tension > 0"}
LABELS = ("energy", "forces", "stress")
CLOSEST = 0.1  # Å; atoms closer than this lie on top of each other
RESERVED = ("numbers", "index", "positions", "cell", "pbc", *LABELS)
BYTES_BUFFERED = 32 * 2**20
ROWS_WORTH_CHUNKS = 64  # groups of fewer frames are written in one piece where possible
HEADER = b"ase-biasgrad dataset\n"  # at the start of the file, for readers that look there
HEADER_SIZE = 512


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
    labels: dict[str, np.ndarray] = field(default_factory=dict)  # all others, as written

    def atoms(self) -> Atoms:
        """Convert to `ase.Atoms`, labels in a `SinglePointCalculator`, others in `info`."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator

        atoms = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.pbc)
        atoms.info.update(self.labels)
        labels = {name: getattr(self, name) for name in LABELS if getattr(self, name) is not None}
        if labels:
            atoms.calc = SinglePointCalculator(atoms, **labels)
        return atoms


def label_shapes(n: int) -> dict[str, tuple[int, ...]]:
    return {
        "positions": (n, 3),
        "energy": (),
        "forces": (n, 3),
        "stress": (6,),
        "cell": (3, 3),
        "pbc": (3,),
    }


def real_array(values: Any, where: str, kind: type = np.float64) -> np.ndarray:
    """Real numbers as an array of `kind`.

    Raises `DataError` if they are complex, text or no regular array; the message begins with
    `where`.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "biuf":
            raise DataError(f"{where}: holds {array.dtype}, expected real numbers")
        return array.astype(kind)
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: {error}") from error


def atomic_numbers(numbers: Any, source: str, where: str) -> np.ndarray:
    """Atomic numbers `(n,)` as int64.

    Raises `DataError` if they are no atomic numbers of elements.
    """
    found = real_array(numbers, f"{source}: numbers {where}")
    whole = np.rint(found)
    if found.ndim != 1 or not len(found) or not np.all((whole >= 1) & (whole < N_ELEMENTS)):
        raise DataError(
            f"{source}: numbers {where}: {found.tolist()} are no atomic numbers "
            f"(1…{N_ELEMENTS - 1})"
        )
    if not np.array_equal(found, whole):
        raise DataError(f"{source}: numbers {where}: {found.tolist()} are not integers")
    return whole.astype(np.int64)


def formula(counts: np.ndarray) -> str:
    """Chemical formula (Hill order) of a composition, counts by atomic number."""
    from ase.data import chemical_symbols
    from ase.formula import Formula

    symbols = {chemical_symbols[z]: int(counts[z]) for z in np.flatnonzero(counts)}
    return f"{Formula.from_dict(symbols):hill}"


class Group:
    """Frames of the same atoms in the same order.

    Attributes
    ----------
    name
        In the file.
    numbers
        Atomic numbers `(n,)`.
    index
        Places of its frames `(m,)` in the dataset, ascending.
    """

    def __init__(
        self, name: str, path: Path, stored: Mapping[str, Any], in_memory: bool = False
    ) -> None:
        self.name, self._path = name, path
        self.numbers = atomic_numbers(stored["numbers"][()], str(path), f"of {self.name}")
        index = real_array(stored["index"][()], f"index of {self.name}")
        self.index = index.astype(np.int64)
        ascends = index.ndim == 1 and bool((np.diff(self.index, prepend=-1) > 0).all())
        if not (ascends and np.array_equal(index, self.index)):
            raise ValueError(f"index of {self.name}: {index} are not frames in their order")
        self._keys = frozenset(stored) - {"numbers", "index"}
        if "positions" not in self._keys:
            raise ValueError(f"positions of {self.name}: missing")
        self._group = stored
        # columns read or opened; an open one keeps its last chunk for the next frame
        self._columns: dict[str, h5py.Dataset | np.ndarray] = {}
        if in_memory:
            self._columns = {key: np.asarray(self.read(key)) for key in self._keys}

    def __len__(self) -> int:
        return len(self.index)

    def has(self, name: str) -> bool:
        return name in self._keys

    def columns(self) -> list[str]:
        """Names of what it has, beside numbers and index."""
        return [name for name in label_shapes(0) if self.has(name)] + self.other_labels()

    def other_labels(self) -> list[str]:
        """Names of labels beside energy, forces and stress."""
        return sorted(self._keys - set(RESERVED))

    def read(self, name: str, rows: np.ndarray | None = None) -> np.ndarray | None:
        """Rows of `name` in the order asked for, all by default; None if the group has none.

        Raises `IndexError` if a row is not in 0…m−1, and `DataError` if the file is damaged.
        """
        if name not in self._keys:
            return None
        if rows is not None:
            rows = np.asarray(rows, np.int64)
            if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
                raise IndexError(f"{self._path}: {self.name} has the rows 0…{len(self) - 1}")
        with self._named(name):
            values = self._column(name)
            if isinstance(values, np.ndarray):
                return values if rows is None else values[rows]
            return values[()] if rows is None else _rows(values, rows)

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Name the column in whatever h5py makes of a damaged file."""
        try:
            yield
        except Exception as error:
            raise DataError(f"{self._path}: {name} of {self.name}: damaged: {error}") from error

    def _column(self, name: str) -> h5py.Dataset | np.ndarray:
        if name not in self._columns:
            self._columns[name] = self._fitting(name, self._group[name])
        return self._columns[name]

    def _fitting(self, name: str, column: Any) -> Any:
        """The column, if its type and shape are those of its name."""
        m, shape = len(self), label_shapes(len(self.numbers)).get(name, column.shape[1:])
        if column.shape != (m, *shape) or column.dtype.kind not in "biuf":
            raise ValueError(f"{column.dtype} {column.shape}, expected {(m, *shape)}")
        return column

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """`name` in consecutive pieces of bounded size; nothing if the group has none."""
        if name not in self._keys:
            return
        with self._named(name):
            length = _block_length(self._column(name))
        for first in range(0, len(self), length):
            block = self.read(name, np.arange(first, min(first + length, len(self))))
            assert block is not None
            yield block


def _block_length(values: h5py.Dataset | np.ndarray) -> int:
    """Rows of some MB: a whole number of chunks."""
    chunks = getattr(values, "chunks", None)
    chunk = chunks[0] if chunks else 64
    size = 8 * max(1, int(np.prod(values.shape[1:]))) * chunk
    return chunk * max(1, 2**22 // size)


def _rows(stored: h5py.Dataset, rows: np.ndarray) -> np.ndarray:
    """Rows in any order, by way of whole chunks: h5py's own selection of rows is slow."""
    unique, back = np.unique(rows, return_inverse=True)
    length = stored.chunks[0] if stored.chunks else 64
    if len(unique) * 4 > len(stored):
        length = _block_length(stored)
    found = np.empty((len(unique), *stored.shape[1:]), stored.dtype)
    for first in np.unique(unique // length) * length:
        low, high = np.searchsorted(unique, [first, first + length])
        if high == low + 1:  # one frame: HDF5 keeps its chunk for the next
            found[low] = stored[int(unique[low])]
        else:
            found[low:high] = stored[first : first + length][unique[low:high] - first]
    return found[back.reshape(-1)]


class Dataset:
    """A dataset file opened for reading: a sequence of `Frame`.

    Parameters
    ----------
    path
        The file.
    in_memory
        Read everything now; otherwise frames are read when asked for.

    Attributes
    ----------
    appended
        Frames that come behind the HDF5 part; they are the last ones.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If it is no dataset of ours, is damaged, or comes from a newer version.
    """

    def __init__(self, path: str | Path, in_memory: bool = False) -> None:
        self.path = Path(path)
        self._file = opened(self.path)
        try:
            self.provenance: dict[str, Any] = json.loads(get_text(self._file, "provenance"))
            frames = self._file["frames"]
            self._groups = [
                Group(name, self.path, group, in_memory) for name, group in frames.items()
            ]
            frame_count = int(self._file.attrs["frames"])
            if sum(map(len, self._groups)) != frame_count:
                raise ValueError("its frames do not add up")
            behind, _ = read_records(self.path, self._file.userblock_size)
            self._groups += self._behind(behind, frame_count)
            self.appended = sum(map(len, self._groups)) - frame_count
            frame_count += self.appended
            self._group_of = np.full(frame_count, -1, np.int64)
            self._row_of = np.zeros_like(self._group_of)
            for k, group in enumerate(self._groups):
                self._group_of[group.index] = k
                self._row_of[group.index] = np.arange(len(group))
        except Exception as error:
            self._file.close()
            said = str(error).removeprefix(f"{self.path}: ")
            raise DataError(f"{self.path}: damaged dataset file: {said}") from error
        if (self._group_of < 0).any():
            frame = int(np.argmax(self._group_of < 0))
            raise DataError(f"{self.path}: damaged dataset file: frame {frame} is missing")
        if in_memory:
            self.close()

    def _behind(self, records: list[dict[str, np.ndarray]], first: int) -> list[Group]:
        """Groups of the records behind the HDF5 part, whose frames are counted from `first`."""
        alike: dict[tuple[bytes, frozenset[str]], list[dict[str, np.ndarray]]] = {}
        for record in records:
            count = len(record["positions"])
            rows = {name: self._as_stored(name, values) for name, values in record.items()}
            rows["index"] = np.arange(first, first + count)
            first += count
            alike.setdefault((record["numbers"].tobytes(), frozenset(rows)), []).append(rows)
        groups = []
        for k, same in enumerate(alike.values()):
            columns = {
                name: np.concatenate([rows[name] for rows in same])
                for name in same[0]
                if name != "numbers"
            }
            columns["numbers"] = same[0]["numbers"]
            name = f"appended_{k:06d}_{formula(np.bincount(columns['numbers']))}"
            groups.append(Group(name, self.path, columns))
        return groups

    def _as_stored(self, name: str, values: np.ndarray) -> np.ndarray:
        """Values of a record; of texts their places, of which those of new ones are made."""
        if values.dtype.kind != "U":
            return values
        texts = self.provenance.setdefault("label_texts", {}).setdefault(name, [])
        texts += [text for text in dict.fromkeys(values.tolist()) if text not in texts]
        return np.array([texts.index(text) for text in values.tolist()], np.float64)

    def __len__(self) -> int:
        return len(self._group_of)

    def __getitem__(self, frame: int) -> Frame:
        if not -len(self) <= frame < len(self):
            raise IndexError(f"{self.path}: there is no frame {frame}, it has {len(self)}")
        group, row = self._groups[self._group_of[frame]], np.array([self._row_of[frame]])
        others = group.other_labels()
        values = {name: group.read(name, row) for name in (*label_shapes(0), *others)}
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
            {name: self._as_written(name, one[name]) for name in others},
        )

    def _as_written(self, label: str, value: Any) -> np.ndarray:
        texts = self.texts(label)
        return np.asarray(value if texts is None else texts[int(value)])

    def texts(self, label: str) -> list[str] | None:
        """Texts of a label, whose values are their places; None for a label of numbers."""
        texts: list[str] | None = self.provenance.get("label_texts", {}).get(label)
        return texts

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
        """Test that every frame has `label` (energy, forces, stress, or another by name)."""
        return all(group.has(label) for group in self._groups)

    def count(self, label: str) -> int:
        """Frames that have `label` (energy, forces, stress, or another by name)."""
        return sum(len(group) for group in self._groups if group.has(label))

    def compositions(self) -> np.ndarray:
        """Atoms of each element in each frame, `(m, N_ELEMENTS)` int64 by atomic number."""
        counts = np.stack([np.bincount(g.numbers, minlength=N_ELEMENTS) for g in self._groups])
        return counts[self._group_of].astype(np.int64, copy=False)

    def hash(self) -> str:
        """SHA-256 over numbers, positions and labels in the order of frames, hexadecimal."""
        digest, alike = hashlib.sha256(), dict[tuple[bytes, tuple[str, ...]], list[Group]]()
        for group in sorted(self._groups, key=lambda g: int(g.index[0])):
            # those behind the HDF5 part may go on with a group in it
            key = group.numbers.tobytes(), tuple(group.columns())
            alike.setdefault(key, []).append(group)
        for (numbers, names), groups in alike.items():
            digest.update(numbers)
            for group in groups:
                digest.update(group.index.tobytes())
            for name in names:
                digest.update(name.encode())
                for group in groups:
                    for block in group.blocks(name):
                        digest.update(np.ascontiguousarray(block).tobytes())
        return digest.hexdigest()


def opened(path: Path) -> h5py.File:
    """A dataset file of a version that we read; errors as those of `Dataset`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such dataset")
    try:
        file = h5py.File(path, "r")
    except Exception as error:
        raise DataError(
            f"{path}: no HDF5 file, or a truncated one ({error}); make datasets with "
            "`biasgrad data import`"
        ) from error
    try:
        if "format" not in file.attrs or get_text(file, "format") != FORMAT:
            raise DataError("an HDF5 file, but no dataset of ase-biasgrad")
        if not 0 < (found := int(file.attrs.get("version", -1))) <= VERSION:
            raise DataError(f"has version {found}, this package reads {VERSION}; update it")
    except Exception as error:
        file.close()
        damaged = "" if isinstance(error, DataError) else "damaged dataset file: "
        raise DataError(f"{path}: {damaged}{error}") from error
    return file


def read_biasgrad(filename: str, index: int | slice = -1) -> Iterator[Atoms]:
    """Frames in the order of writing, for `ase.io.read("data.h5", index=":10")`."""
    with Dataset(filename) as dataset:
        chosen = range(len(dataset))[index]
        for frame in [chosen] if isinstance(chosen, int) else chosen:
            yield dataset[frame].atoms()
