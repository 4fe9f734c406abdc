"""The npz files of MD17, rMD17 and sGDML: one molecule or crystal, many frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ase_biasgrad.data.dataset import DataError, real_array
from ase_biasgrad.data.importers.blocks import Block, Source
from ase_biasgrad.data.importers.labels import choose, wanted_labels
from ase_biasgrad.data.importers.options import ImportOptions, units_of

# names of the same thing in the files of rMD17, of MD17/sGDML and of others
STRUCTURE: dict[str, tuple[str, ...]] = {
    "numbers": ("nuclear_charges", "z", "atomic_numbers", "numbers", "Z"),
    "positions": ("coords", "R", "positions", "coordinates"),
}
LABEL_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "revised": {"energy": ("energies", "E"), "forces": ("forces", "F")},
    "original": {"energy": ("old_energies",), "forces": ("old_forces",)},
}
UNITS = {
    "energy": ("e_unit", "energy_unit", "energy_units"),  # the first as sGDML writes them
    "positions": ("r_unit", "length_unit", "length_units"),
}
LATTICE, CELL, PBC = "lattice", "cell", "pbc"  # sGDML's, and ASE's
# what sGDML and rMD17 say of a file beside its frames
ABOUT = ("name", "theory", "type", "md5", "code_version", "old_indices")


def read_npz(path: Path, options: ImportOptions) -> Source:
    """Read an npz file.

    Raises `DataError` on a file that cannot be read, has no units, lacks a key or has arrays that
    do not fit.
    """
    arrays = load_arrays(path)
    own = {kind: _text(arrays[k]) for kind, keys in UNITS.items() for k in keys if k in arrays}
    units = units_of(path, options, own, fallback=False)
    found = {name: _key(path, arrays, names) for name, names in STRUCTURE.items()}
    found |= _label_keys(path, arrays, options)
    values = _fitting(path, arrays, found)
    cell, pbc, said_of_cell = _cell(path, arrays, len(values["positions"]))
    used = {*found.values(), *ABOUT, *(key for names in UNITS.values() for key in names)}
    used |= {LATTICE} if LATTICE in arrays else {CELL, PBC} if cell is not None else set()
    labels = {name: (key, values[name]) for name, key in found.items() if name not in STRUCTURE}
    left = [key for key in arrays if key not in used]
    block = Block(
        "", values["numbers"], (found["positions"], values["positions"]), labels, left, cell, pbc
    )
    return Source([block], units, said_of_cell)


def _label_keys(
    path: Path, arrays: dict[str, np.ndarray], options: ImportOptions
) -> dict[str, str]:
    """Keys of the labels, by label: those named, those of the label set, and plain names."""
    if options.labels not in LABEL_SETS:
        raise DataError(f"labels {options.labels!r} are unknown; use {' or '.join(LABEL_SETS)}")
    found, named = {}, options.keys or {}
    for name in wanted_labels(options):
        names = (named[name],) if name in named else LABEL_SETS[options.labels].get(name, ())
        key = next((key for key in names if key in arrays), None)
        if key is None and options.labels == "revised" and name not in named:
            key = choose(name, arrays, options)
        # sGDML files may hold forces alone
        needed = name in named or (names and (name, options.labels) != ("energy", "revised"))
        if key is None and needed:
            key = _key(path, arrays, names)
        if key is not None:
            found[name] = key
    return found


def load_arrays(path: Path, keys: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of a file among `keys`, all by default; no objects are read.

    Raises `DataError` if it is no npz file, or a damaged one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if twice := {key for key in file.files if file.files.count(key) > 1}:
                raise ValueError(f"{min(twice)}: stands in it twice")
            if (listed := _parts_listed(path)) not in (len(file.files), ZIP64):
                raise ValueError(f"{len(file.files)} of its {listed} arrays are found")
            return {key: file[key] for key in file.files if keys is None or key in keys}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except Exception as error:
        # zipfile, zlib and numpy's header parser each raise errors of their own
        raise DataError(f"{path}: no npz file, or a truncated one: {error}") from error


def _key(path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> str:
    for key in keys:
        if key in arrays:
            return key
    raise DataError(f"{path}: has no {' or '.join(keys)}; its keys are {sorted(arrays)}")


def _text(value: np.ndarray) -> str:
    content = value.reshape(-1)[0] if value.size else ""
    return content.decode() if isinstance(content, bytes) else str(content)


def _fitting(
    path: Path, arrays: dict[str, np.ndarray], found: dict[str, str]
) -> dict[str, np.ndarray]:
    """The arrays as real numbers, `(atoms,)` and `(frames, …)`, structures checked."""
    values = {name: real_array(arrays[key], f"{path}: {key}") for name, key in found.items()}
    if values["numbers"].ndim != 1:
        raise DataError(
            f"{path}: {found['numbers']}: has shape {values['numbers'].shape}, expected (atoms,): "
            "all frames of an npz file have the same atoms"
        )
    if values["positions"].ndim == 3 and len(values["positions"]) == 0:
        raise DataError(f"{path}: {found['positions']}: has no frames")
    return values


def _cell(
    path: Path, arrays: dict[str, np.ndarray], m: int
) -> tuple[np.ndarray | None, np.ndarray, str]:
    """Cell `(3, 3)` or `(m, 3, 3)`, vectors in rows; pbc; and a remark on both.

    ASE's `cell` has its vectors in rows. sGDML wrote `lattice` in rows first and in columns later.
    """
    key = LATTICE if LATTICE in arrays else CELL
    pbc = np.zeros(3, bool)
    if PBC in arrays:
        pbc = real_array(arrays[PBC], f"{path}: {PBC}", bool)
        if pbc.shape not in ((), (1,), (3,), (m, 3)):
            raise DataError(f"{path}: {PBC}: has shape {pbc.shape}, expected (3,) or ({m}, 3)")
        pbc = pbc if pbc.ndim == 2 else np.broadcast_to(pbc, (3,))
    if key not in arrays:
        if pbc.any():
            raise DataError(f"{path}: {PBC} says periodic, and there is no {CELL}")
        return None, pbc, ""
    cell = real_array(arrays[key], f"{path}: {key}")
    if cell.shape not in ((3, 3), (m, 3, 3)) or (key == LATTICE and cell.ndim == 3):
        expected = "(3, 3)" if key == LATTICE else f"(3, 3) or ({m}, 3, 3)"
        raise DataError(f"{path}: {key}: has shape {cell.shape}, expected {expected}")
    if key == LATTICE and not np.array_equal(cell, cell.T):
        raise DataError(
            f"{path}: {LATTICE}: sGDML kept the vectors in rows or in columns, depending on its "
            "version, and this cell is not the same either way; import the frames as extxyz"
        )
    if PBC in arrays:
        return cell, pbc, f"; {key} and pbc as they are"
    periodic = np.full(3, bool(cell.any()))
    return cell, periodic, f"; {key} without pbc, taken as periodic in three directions"


ZIP64 = 0xFFFF  # the number stands elsewhere
LONGEST_END = 22 + 0xFFFF  # bytes of the last record and its comment


def _parts_listed(path: Path) -> int:
    """Parts of a zip file as its last record counts them, which `zipfile` does not compare."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - LONGEST_END))
        end = file.read()
    return int.from_bytes(end[end.rindex(b"PK\5\6") + 10 :][:2], "little")
