"""`DatasetWriter`: frames into one file that appears when it is whole; `DatasetAppender`: more."""

from __future__ import annotations

import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from ase_biasgrad.data.appended import end_of_hdf5, read_records, record_of
from ase_biasgrad.data.dataset import (
    BYTES_BUFFERED,
    CLOSEST,
    FORMAT,
    HEADER,
    HEADER_SIZE,
    RESERVED,
    ROWS_WORTH_CHUNKS,
    UNITS,
    VERSION,
    DataError,
    Dataset,
    Frame,
    Group,
    atomic_numbers,
    formula,
    label_shapes,
    real_array,
)
from ase_biasgrad.data.digests import write_digests
from ase_biasgrad.data.hdf5 import CHECKED, add_column, new_file, set_text
from ase_biasgrad.files import whole_file
from ase_biasgrad.neighbours import pairs_within

_STRUCTURE = ("positions", "cell", "pbc")
ROWS_AT_ONCE = 2**22  # bytes of positions, of frames that are copied


@dataclass
class _Buffer:
    """Frames of one group that are not yet in the file."""

    numbers: np.ndarray
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    frames: int = 0
    bytes: int = 0

    def columns(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(values) for name, values in self.rows.items()}


class _Checked(ABC):
    """Taker of frames, which checks them."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.frames = 0
        # texts of a label and their places, None for a label of numbers
        self._texts: dict[str, dict[str, int] | None] = {}
        self._shapes: dict[tuple[bytes, frozenset[str]], dict[str, tuple[int, ...]]] = {}

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
        labels: Mapping[str, Any] | None = None,
        source: str = "",
    ) -> None:
        """Add one frame, or a block of `m` frames of the same atoms.

        Shapes are those of the file without or with the leading `m`; units eV, Å. `labels` are
        others by name: numbers, kept as they are, or one text a frame, such as the name of a level
        of theory. A label may be missing in any frame: None, or NaN all over. `source` is named in
        errors.

        Raises
        ------
        DataError
            On wrong shapes, values that are not finite, unknown elements, or atoms on top of each
            other.
        """
        source = source or str(self.path)
        where = f"of frame {self.frames}"
        numbers = atomic_numbers(numbers, source, where)
        block = real_array(positions, f"{source}: positions {where}")
        single = block.ndim == 2
        m = 1 if single else len(block)
        given: dict[str, Any] = {
            "positions": block,
            "energy": energy,
            "forces": forces,
            "stress": stress,
        }
        if (cell is not None and bool(np.any(cell))) or bool(np.any(pbc)):
            given["cell"] = np.zeros((3, 3)) if cell is None else cell
            given["pbc"] = np.zeros(3, bool) if pbc is None else pbc
        rows = {}
        for name, shape in label_shapes(len(numbers)).items():
            if given.get(name) is None:
                continue
            kind = bool if name == "pbc" else np.float64
            values = real_array(given[name], f"{source}: {name} {where}", kind)
            if name in ("cell", "pbc") and values.shape == shape and not single:
                values = np.broadcast_to(values, (m, *shape))
            values = values[None] if single else values
            if values.shape != (m, *shape):
                expected = shape if single else (m, *shape)
                found = values.shape[1:] if single else values.shape
                raise DataError(
                    f"{source}: {name} {where}: has shape "
                    f"{found}, expected {expected} for {len(numbers)} atoms"
                )
            rows[name] = values
        for name, value in (labels or {}).items():
            rows[name] = self._other_label(name, value, m, single, f"{source}: {name} {where}")
        if m:
            self._check(rows, source)
            self._store(numbers, rows, m)
            self.frames += m

    def append_frame(self, frame: Frame, source: str = "") -> None:
        """Add a frame of a dataset as it is; errors as those of `append`."""
        self.append(
            frame.numbers,
            frame.positions,
            energy=frame.energy,
            forces=frame.forces,
            stress=frame.stress,
            cell=frame.cell,
            pbc=frame.pbc,
            labels=frame.labels,
            source=source,
        )

    def _other_label(self, name: str, value: Any, m: int, single: bool, where: str) -> np.ndarray:
        if name in RESERVED or "/" in name or not name.strip("."):
            raise DataError(f"{where}: a label cannot have this name")
        text = np.asarray(value).dtype.kind == "U"
        places = self._texts.setdefault(name, {} if text else None)
        if (places is not None) != text:
            raise DataError(f"{where}: is text in some frames, and numbers in others")
        if places is not None:
            if np.ndim(value) != (0 if single else 1):
                raise DataError(f"{where}: has shape {np.shape(value)}, expected one text a frame")
            found = [places.setdefault(str(t), len(places)) for t in np.atleast_1d(value)]
            value = found[0] if single else found
        values = real_array(value, where)
        values = values[None] if single else values
        if values.ndim == 0 or len(values) != m:
            raise DataError(f"{where}: has shape {values.shape}, expected ({m}, …)")
        return values

    def _check(self, rows: dict[str, np.ndarray], source: str) -> None:
        if "stress" in rows and not ("pbc" in rows and rows["pbc"].any()):
            raise DataError(
                f"{source}: stress of frame {self.frames}: the frame is not periodic, so it "
                "cannot have one"
            )
        for name, values in rows.items():
            good = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if name not in _STRUCTURE:
                good |= missing(values)
            if not good.all():
                frame = self.frames + int(np.argmin(good))
                raise DataError(
                    f"{source}: {name} of frame {frame}: holds NaN or infinity (NaN all over "
                    "marks a missing label)"
                )
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

    @abstractmethod
    def _store(self, numbers: np.ndarray, rows: dict[str, np.ndarray], m: int) -> None:
        """Keep `m` frames of the same atoms, which may lack labels."""

    def _same_shapes(
        self, numbers: np.ndarray, columns: Mapping[str, np.ndarray], frame: int
    ) -> None:
        """Require the shapes of frames of the same atoms with the same labels before `frame`."""
        shapes = {name: values.shape[1:] for name, values in columns.items()}
        known = self._shapes.setdefault((numbers.tobytes(), frozenset(shapes)), shapes)
        for name, shape in shapes.items():
            if shape != known[name]:
                raise DataError(
                    f"{self.path}: {name} of frame {frame}: has shape {shape}, frames of the same "
                    f"atoms before it {known[name]}"
                )

    def _same_texts(self, dataset: Dataset, group: Group) -> None:
        """Give the texts of a group the places that they have in its dataset."""
        for name in group.other_labels():
            if (texts := dataset.texts(name)) is None:
                self._texts[name] = None
                continue
            places = self._texts.setdefault(name, {})
            assert places is not None  # a label is text in all groups or in none
            used = int(np.asarray(group.read(name)).max()) + 1
            places |= {text: k for k, text in enumerate(texts[:used])}


class DatasetWriter(_Checked):
    """Write frames one after another in bounded memory; use it as a context manager.

    The file appears under its name when the block ends without an exception, and not at all
    otherwise.

    Parameters
    ----------
    path
        The new file.
    provenance
        JSON values that say where the data comes from.

    Raises
    ------
    TypeError
        If `provenance` is no JSON.
    """

    fewest = 1  # frames

    def __init__(self, path: str | Path, provenance: dict[str, Any] | None = None) -> None:
        super().__init__(path)
        self._provenance = json.loads(json.dumps(provenance or {}))
        self._buffers: dict[tuple[bytes, frozenset[str]], _Buffer] = {}
        self._names: dict[tuple[bytes, frozenset[str]], str] = {}
        self._bytes = 0

    def __enter__(self) -> DatasetWriter:
        self._whole = whole_file(self.path)
        self._temporary = self._whole.__enter__()
        self._file = new_file(self._temporary, userblock_size=HEADER_SIZE)
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
            if kind is None:
                with self._temporary.open("r+b") as file:
                    file.write(HEADER)
        except BaseException as problem:
            self._file.close()
            self._whole.__exit__(type(problem), problem, problem.__traceback__)
            raise
        self._whole.__exit__(kind, error, trace)

    def note(self, **provenance: Any) -> None:
        """Add to the provenance; errors as in the constructor."""
        self._provenance.update(json.loads(json.dumps(provenance)))

    def take(self, dataset: Dataset, groups: Iterable[Group]) -> None:
        """Begin with groups of a dataset as they are, which hold its first frames."""
        for group in sorted(groups, key=lambda g: int(g.index[0])):
            self._same_texts(dataset, group)
            names = group.columns()
            step = max(1, ROWS_AT_ONCE // (24 * len(group.numbers)))
            for first in range(0, len(group), step):
                rows = np.arange(first, min(first + step, len(group)))
                columns = {name: np.asarray(group.read(name, rows)) for name in names}
                self._keep(group.numbers, {**columns, "index": group.index[rows]})
            self.frames += len(group)

    def _store(self, numbers: np.ndarray, rows: dict[str, np.ndarray], m: int) -> None:
        """Put frames with the same labels together; those they lack are not stored."""
        index = np.arange(self.frames, self.frames + m)
        names, missing = _missing_labels(rows, m)
        for lacks in np.unique(missing, axis=1).T:
            chosen = np.flatnonzero((missing == lacks[:, None]).all(axis=0))
            gone = {name for name, lack in zip(names, lacks, strict=True) if lack}
            part = {name: values[chosen] for name, values in rows.items() if name not in gone}
            self._keep(numbers, {**part, "index": index[chosen]})

    def _keep(self, numbers: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        key = (numbers.tobytes(), frozenset(rows))
        name = f"{len(self._names):06d}_{formula(np.bincount(numbers))}"
        self._names.setdefault(key, name)
        buffer = self._buffers.setdefault(key, _Buffer(numbers.copy()))
        self._same_shapes(numbers, rows, int(rows["index"][0]))
        for name, values in rows.items():
            buffer.rows.setdefault(name, []).append(np.array(values))
        size = sum(values.nbytes for values in rows.values())
        buffer.bytes += size
        buffer.frames += len(rows["index"])
        self._bytes += size
        if self._bytes >= BYTES_BUFFERED:
            self._flush()

    def _flush(self) -> None:
        """Write the groups with many frames waiting, or all where that would free too little.

        Small groups wait, as one that is known whole takes much less room in the file.
        """
        large = [key for key, b in self._buffers.items() if b.frames >= ROWS_WORTH_CHUNKS]
        if 2 * sum(self._buffers[key].bytes for key in large) < self._bytes:
            large = list(self._buffers)
        for key in large:
            buffer = self._buffers.pop(key)
            self._bytes -= buffer.bytes
            self._extend(self._names[key], buffer)

    def _extend(self, name: str, buffer: _Buffer) -> None:
        frames = self._file.require_group("frames")
        columns = buffer.columns()
        if name not in frames:
            _growing_group(frames.create_group(name), buffer.numbers, columns)
        for key, values in columns.items():
            stored = frames[name][key]
            stored.resize(len(stored) + len(values), axis=0)
            stored[len(stored) - len(values) :] = values

    def _finish(self) -> None:
        if self.frames < self.fewest:
            raise DataError(f"{self.path}: no frames to write")
        frames = self._file.require_group("frames")
        for key, buffer in self._buffers.items():
            name = self._names[key]
            if name in frames or buffer.frames >= ROWS_WORTH_CHUNKS:
                self._extend(name, buffer)
                continue
            group = frames.create_group(name)
            for column, values in {"numbers": buffer.numbers, **buffer.columns()}.items():
                add_column(group, column, values)
        self._file.attrs.update(version=VERSION, frames=self.frames)
        set_text(self._file, "format", FORMAT)
        set_text(self._file, "units", json.dumps(UNITS))
        texts = {name: list(places) for name, places in self._texts.items() if places}
        provenance = {**self._provenance, **({"label_texts": texts} if texts else {})}
        set_text(self._file, "provenance", json.dumps(provenance))
        write_digests(self._file)


class _Empty(DatasetWriter):
    """HDF5 part of a file whose frames are all behind it."""

    fewest = 0


class DatasetAppender(_Checked):
    """Append frames to a dataset, each in the file when `append` returns; a context manager.

    A process that is killed loses no frame of an earlier call, and readers see whole frames alone.
    What is appended comes behind the HDF5 part of the file (`appended.py`), where `Dataset` finds
    it. When the block ends without an exception it is folded in, which writes the file anew. Frames
    of one session should fit into memory.

    Parameters
    ----------
    path
        A dataset, or a new file, which appears with its first frame.
    provenance
        Of a new file, as in `DatasetWriter`.
    order
        Labels of numbers. Frames are put in the order of these when they are folded in, so that it
        does not matter in which they came.

    Raises
    ------
    DataError
        If the file is no dataset, is damaged, or is changed by others meanwhile.
    OSError
        If the system cannot write; all frames before are in the file.
    """

    def __init__(
        self, path: str | Path, provenance: dict[str, Any] | None = None, order: Sequence[str] = ()
    ) -> None:
        super().__init__(path)
        self._provenance, self._order = provenance, tuple(order)
        self._file: io.FileIO | None = None
        self._begin = self._end = 0  # of the records in it

    def __enter__(self) -> DatasetAppender:
        if self.path.exists():
            self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            if kind is None and self._end > self._begin:
                _fold(self.path, self._order)

    def _open(self) -> None:
        """Know what is in the file, and remove a frame that was never finished."""
        if end_of_hdf5(self.path, HEADER_SIZE) is None:
            _fold(self.path, self._order)  # of an early version
        with Dataset(self.path) as dataset:
            self.frames = len(dataset)
            for group in dataset.groups():
                self._same_texts(dataset, group)
                first = {k: np.asarray(group.read(k, np.array([0]))) for k in group.columns()}
                self._same_shapes(group.numbers, first, int(group.index[0]))
        self._begin = end_of_hdf5(self.path, HEADER_SIZE) or 0
        _, self._end = read_records(self.path, HEADER_SIZE)
        self._file = io.FileIO(self.path, "r+")
        self._file.truncate(self._end)

    def _store(self, numbers: np.ndarray, rows: dict[str, np.ndarray], m: int) -> None:
        """Write a record for frames after each other that have the same labels."""
        for name in set(self._order) - set(rows):
            raise DataError(
                f"{self.path}: {name} of frame {self.frames}: is missing, and frames are put in "
                "its order"
            )
        names, missing = _missing_labels(rows, m)
        changes = np.flatnonzero((missing[:, 1:] != missing[:, :-1]).any(axis=0)) + 1
        for part in np.split(np.arange(m), changes):
            gone = {name for name, lack in zip(names, missing[:, part[0]], strict=True) if lack}
            columns = {k: self._texts_of(k, v[part]) for k, v in rows.items() if k not in gone}
            self._same_shapes(numbers, columns, self.frames + int(part[0]))
            self._write({"numbers": numbers, **columns})

    def _texts_of(self, name: str, values: np.ndarray) -> np.ndarray:
        """Values of a label, of texts these in place of their places."""
        if (places := self._texts.get(name)) is None:
            return values
        return np.array(list(places))[values.astype(np.int64)]

    def _write(self, columns: dict[str, np.ndarray]) -> None:
        """Write a record, or the file that begins with it."""
        record = record_of(columns)
        if self._file is None:
            with whole_file(self.path) as temporary:
                with _Empty(temporary, self._provenance):
                    pass
                with temporary.open("ab") as file:
                    file.write(record)
            self._file = io.FileIO(self.path, "r+")
            self._end = self._file.seek(0, io.SEEK_END)
            self._begin = self._end - len(record)
            return
        here, there = os.fstat(self._file.fileno()), os.stat(self.path)
        if here.st_size != self._end or not os.path.samestat(here, there):
            raise DataError(f"{self.path}: another process changes it; append from one alone")
        left = memoryview(record)
        self._file.seek(self._end)
        try:
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError:
            self._file.truncate(self._end)
            raise
        self._end += len(record)


def _fold(path: Path, order: Sequence[str]) -> None:
    """Write a dataset anew, with the frames behind its HDF5 part in it."""
    with DatasetWriter(path) as writer, Dataset(path) as dataset:
        writer.note(**dataset.provenance)
        first = len(dataset) - dataset.appended
        writer.take(dataset, (g for g in dataset.groups() if g.index[0] < first))
        frames = [dataset[k] for k in range(first, len(dataset))]
        for frame in sorted(frames, key=lambda frame: [float(frame.labels[k]) for k in order]):
            writer.append_frame(frame, str(path))


def _missing_labels(rows: Mapping[str, np.ndarray], m: int) -> tuple[list[str], np.ndarray]:
    """Names of labels, and `(labels, m)` where a frame lacks one."""
    names = [name for name in rows if name not in _STRUCTURE]
    return names, np.array([missing(rows[name]) for name in names]).reshape(len(names), m)


def _growing_group(
    group: h5py.Group, numbers: np.ndarray, columns: Mapping[str, np.ndarray]
) -> None:
    """Empty columns that can be extended: chunked, lightly compressed, with checksums."""
    add_column(group, "numbers", numbers)
    for name, values in columns.items():
        shape = values.shape[1:]
        length = max(1, min(1024, 32768 // max(1, int(np.prod(shape)))))
        group.create_dataset(
            name,
            (0, *shape),
            values.dtype,
            maxshape=(None, *shape),
            chunks=(length, *(max(1, k) for k in shape)),
            shuffle=True,
            **{**CHECKED, "compression_opts": 1},
        )


def missing(values: np.ndarray) -> np.ndarray:
    """Rows `(m,)` that are NaN all over."""
    if not values.size or values.dtype.kind != "f":
        return np.zeros(len(values), bool)
    return np.isnan(values).reshape(len(values), -1).all(axis=1)


def closest_pair(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, distance: float = CLOSEST
) -> tuple[int, int] | None:
    """A pair of atoms closer than `distance` (Å), or None."""
    if not pbc.any() and len(positions) <= 64:
        delta = positions[:, None] - positions[None, :]
        square = np.einsum("ijk,ijk->ij", delta, delta)
        centre, neighbour = np.nonzero(square < distance**2)
        close = np.flatnonzero(centre < neighbour)
        return (int(centre[close[0]]), int(neighbour[close[0]])) if len(close) else None
    edges = pairs_within(positions, cell, pbc, distance)
    return (int(edges.centre[0]), int(edges.neighbour[0])) if len(edges) else None
