"""`DatasetWriter`: frames into one HDF5 file that appears when it is whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

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


@dataclass
class _Buffer:
    """Frames of one group that are not yet in the file."""

    numbers: np.ndarray
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)
    frames: int = 0
    bytes: int = 0

    def columns(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(values) for name, values in self.rows.items()}


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

    Raises
    ------
    TypeError
        If `provenance` is no JSON.
    """

    def __init__(self, path: str | Path, provenance: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.frames = 0
        self._provenance = json.loads(json.dumps(provenance or {}))
        self._buffers: dict[tuple[bytes, frozenset[str]], _Buffer] = {}
        self._names: dict[tuple[bytes, frozenset[str]], str] = {}
        self._bytes = 0
        # texts of a label and their places, None for a label of numbers
        self._texts: dict[str, dict[str, int] | None] = {}

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
                good |= _missing(values)
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

    def _store(self, numbers: np.ndarray, rows: dict[str, np.ndarray], m: int) -> None:
        """Put frames with the same labels together; those they lack are not stored."""
        index = np.arange(self.frames, self.frames + m)
        names = [name for name in rows if name not in _STRUCTURE]
        missing = np.array([_missing(rows[name]) for name in names]).reshape(len(names), m)
        for lacks in np.unique(missing, axis=1).T:
            chosen = np.flatnonzero((missing == lacks[:, None]).all(axis=0))
            gone = {name for name, lack in zip(names, lacks, strict=True) if lack}
            part = {name: values[chosen] for name, values in rows.items() if name not in gone}
            self._keep(numbers, {**part, "index": index[chosen]})
        self.frames += m
        if self._bytes >= BYTES_BUFFERED:
            self._flush()

    def _keep(self, numbers: np.ndarray, rows: dict[str, np.ndarray]) -> None:
        key = (numbers.tobytes(), frozenset(rows))
        name = f"{len(self._names):06d}_{formula(np.bincount(numbers))}"
        self._names.setdefault(key, name)
        buffer = self._buffers.setdefault(key, _Buffer(numbers.copy()))
        for name, values in rows.items():
            before = buffer.rows.setdefault(name, [])
            if before and before[0].shape[1:] != values.shape[1:]:
                raise DataError(
                    f"{self.path}: {name} of frame {rows['index'][0]}: has shape "
                    f"{values.shape[1:]}, frames of the same atoms before it {before[0].shape[1:]}"
                )
            before.append(np.array(values))
        size = sum(values.nbytes for values in rows.values())
        buffer.bytes += size
        buffer.frames += len(rows["index"])
        self._bytes += size

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
            if stored.shape[1:] != values.shape[1:]:
                raise DataError(
                    f"{self.path}: {key}: has shape {values.shape[1:]}, frames of the same atoms "
                    f"before have {stored.shape[1:]}"
                )
            stored.resize(len(stored) + len(values), axis=0)
            stored[len(stored) - len(values) :] = values

    def _finish(self) -> None:
        if self.frames == 0:
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


def _missing(values: np.ndarray) -> np.ndarray:
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
