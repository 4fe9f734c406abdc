"""Digests of a dataset's content, stored in it by the writer and compared by `damages`.

The dataset `digests (k, 16)` holds the first bytes of SHA-256: first that of the texts, names and
shapes, then one for each chunk of rows of each column, groups and columns by name. HDF5's own
checksums tell damage of the file; these tell values that were changed by whoever wrote to it, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ase_biasgrad.data.appended import read_records
from ase_biasgrad.data.dataset import DataError, opened
from ase_biasgrad.data.hdf5 import add_column, get_text

NAME, SIZE = "digests", 16
BYTES_AT_ONCE = 2**16
TEXTS = ("format", "units", "provenance")


@dataclass(frozen=True)
class _Part:
    """Consecutive rows of a column."""

    column: h5py.Dataset
    first: int
    last: int  # included

    def digest(self) -> bytes:
        whole, end = hashlib.sha256(), self.last + 1
        step = max(1, BYTES_AT_ONCE // max(1, self.column[:1].nbytes))
        for first in range(self.first, end, step):
            whole.update(np.ascontiguousarray(self.column[first : min(first + step, end)]).data)
        return whole.digest()[:SIZE]

    def said(self) -> str:
        """Group, column and frames, for a reader of the dataset."""
        group, _, name = self.column.name.removeprefix("/frames/").rpartition("/")
        if name == "numbers":
            return f"{group}: numbers"
        where = f"rows {self.first}–{self.last}"
        try:
            index = self.column.parent["index"][self.first : self.last + 1]
            where += f", frames {index[0]}–{index[-1]} of the dataset"
        except Exception:  # where the index is what is damaged
            pass
        return f"{group}: {name} ({where})"


def _parts(file: h5py.File) -> Iterator[_Part]:
    """Parts of all columns, of the length of their chunks."""
    for group in file["frames"].values():
        for column in group.values():
            length = column.chunks[0] if column.chunks else max(1, len(column))
            for first in range(0, len(column), length):
                yield _Part(column, first, min(first + length, len(column)) - 1)


def _structure(file: h5py.File) -> bytes:
    columns = [
        f"{column.name} {column.dtype.str} {column.shape} {column.chunks}"
        for group in file["frames"].values()
        for column in group.values()
    ]
    numbers = [str(int(file.attrs[name])) for name in ("version", "frames")]
    texts = [get_text(file, name) for name in TEXTS]
    return hashlib.sha256("\n".join([*texts, *numbers, *columns]).encode()).digest()[:SIZE]


def write_digests(file: h5py.File) -> None:
    """Add the digests of what an otherwise finished file holds."""
    found = [_structure(file), *(part.digest() for part in _parts(file))]
    add_column(file, NAME, np.frombuffer(b"".join(found), np.uint8).reshape(-1, SIZE))


def damages(path: str | Path) -> list[str]:
    """A line for each part of the file that is not what was written: group, column, frames.

    Raises `FileNotFoundError` if there is no such file, and `DataError` if it is no dataset, is
    damaged so far that its parts cannot be told, or is of a version that stored no digests.
    """
    path = Path(path)
    with opened(path) as file:
        if NAME not in file:
            raise DataError(
                f"{path}: holds no digests, as earlier versions wrote none; `biasgrad data import "
                f"{path} -o NEW.h5` makes a copy that has them"
            )
        try:
            structure, *stored = [row.tobytes() for row in file[NAME][()]]
            if structure != _structure(file):
                return ["its texts, or the names and shapes of its columns, were changed"]
            found = [
                f"{part.said()} {problem}"
                for part, digest in zip(_parts(file), stored, strict=True)
                if (problem := _problem(part, digest))
            ]
            try:
                read_records(path, file.userblock_size)
            except ValueError as error:
                found.append(str(error))
            return found
        except Exception as error:  # whatever h5py makes of a damaged file
            raise DataError(f"{path}: damaged dataset file: {error}") from error


def _problem(part: _Part, digest: bytes) -> str:
    try:
        return "" if part.digest() == digest else "was changed"
    except Exception as error:  # whatever h5py makes of a damaged chunk
        return f"cannot be read ({error})"
