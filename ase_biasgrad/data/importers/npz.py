"""The npz files of MD17, rMD17 and sGDML: one molecule or crystal, many frames."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ase_biasgrad.data.dataset import LABELS, DataError, real_array
from ase_biasgrad.data.importers.options import ImportOptions, describe, said_unit
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.units import energy_unit, length_unit

# names of the same thing in the files of rMD17 and of MD17/sGDML
STRUCTURE: dict[str, tuple[str, ...]] = {
    "numbers": ("nuclear_charges", "z"),
    "positions": ("coords", "R"),
}
LABEL_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "revised": {"energy": ("energies", "E"), "forces": ("forces", "F")},
    "original": {"energy": ("old_energies",), "forces": ("old_forces",)},
}
UNITS = {"energy": "e_unit", "length": "r_unit"}  # as sGDML writes them
LATTICE = "lattice"


def import_npz(
    path: Path, writer: DatasetWriter, options: ImportOptions, progress: bool
) -> tuple[int, str]:
    """Append all frames; frames left out (none), and a line on what was converted.

    Raises
    ------
    DataError
        On a file that cannot be read, has no units, lacks a key or has arrays that do not fit.
    """
    keys = _keys(options)
    candidates = [key for names in keys.values() for key in names]
    arrays = load_arrays(path, [*candidates, *UNITS.values(), LATTICE])
    energy, length = _units(path, arrays, options)
    if keys.get("energy") == LABEL_SETS["revised"]["energy"] and not any(
        key in arrays for key in keys["energy"]
    ):
        del keys["energy"]  # sGDML files may hold forces alone
    found = {name: _key(path, arrays, names) for name, names in keys.items()}
    values = _fitting(path, arrays, found)
    factors = {
        "positions": length_unit(length),
        "energy": energy_unit(energy),
        "forces": energy_unit(energy) / length_unit(length),
        "stress": energy_unit(energy) / length_unit(length) ** 3,
    }
    cell = _cell(path, arrays, factors["positions"])
    others = [name for name in values if name not in (*STRUCTURE, *LABELS)]
    m, n = values["positions"].shape[:2]
    step = max(1, 50_000 // n)
    for first in tqdm(range(0, m, step), path.name, disable=not progress, leave=False):
        rows = slice(first, first + step)
        writer.append(
            values["numbers"],
            **{k: values[k][rows] * factor for k, factor in factors.items() if k in values},
            cell=cell,
            pbc=None if cell is None else [True] * 3,
            labels={name: values[name][rows] for name in others},
            source=str(path),
        )
    by = "as you say" if options.energy_unit or options.length_unit else "as it says"
    said = describe(path, energy, length, by, others)
    return 0, said if "energy" in values else f"{said}; no energies"


def _keys(options: ImportOptions) -> dict[str, tuple[str, ...]]:
    """What to look for, and under which names."""
    if options.labels not in LABEL_SETS:
        raise DataError(f"labels {options.labels!r} are unknown; use {' or '.join(LABEL_SETS)}")
    named = {name: (key,) for name, key in (options.keys or {}).items()}
    labels = {**LABEL_SETS[options.labels], **named}
    return {**STRUCTURE, **{k: v for k, v in labels.items() if k not in options.without}}


def load_arrays(path: Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    """Those arrays of `keys` that the file has.

    Raises
    ------
    DataError
        If it is no npz file, or a damaged one.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in dict.fromkeys(keys) if key in file.files}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    except Exception as error:
        # zipfile, zlib and numpy's header parser each raise errors of their own
        raise DataError(f"{path}: no npz file, or a truncated one: {error}") from error


def _key(path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> str:
    for key in keys:
        if key in arrays:
            return key
    with np.load(path, allow_pickle=False) as file:
        raise DataError(f"{path}: has no {' or '.join(keys)}; its keys are {sorted(file.files)}")


def _units(path: Path, arrays: dict[str, np.ndarray], options: ImportOptions) -> tuple[str, str]:
    """Names of the energy and the length unit."""
    own = {kind: _text(arrays[key]) for kind, key in UNITS.items() if key in arrays}
    energy = said_unit(path, "energy", options.energy_unit, own.get("energy"), energy_unit)
    length = said_unit(path, "length", options.length_unit, own.get("length"), length_unit)
    if energy is None or length is None:
        missing = [f"--{k}-unit" for k, v in (("energy", energy), ("length", length)) if v is None]
        raise DataError(
            f"{path}: says nothing of its units; name them with {' and '.join(missing)} (MD17, "
            "rMD17 and most sGDML files: kcal/mol and Angstrom)"
        )
    return energy, length


def _text(value: np.ndarray) -> str:
    content = value.reshape(-1)[0] if value.size else ""
    return content.decode() if isinstance(content, bytes) else str(content)


def _fitting(
    path: Path, arrays: dict[str, np.ndarray], found: dict[str, str]
) -> dict[str, np.ndarray]:
    """The arrays as real numbers, `(atoms,)` and `(frames, …)`, shapes checked."""
    values = {name: real_array(arrays[key], f"{path}: {key}") for name, key in found.items()}
    if values["numbers"].ndim != 1:
        raise DataError(
            f"{path}: {found['numbers']}: has shape {values['numbers'].shape}, expected (atoms,): "
            "all frames of an npz file have the same atoms"
        )
    n, m = len(values["numbers"]), len(values["positions"]) if values["positions"].ndim else 0
    shapes = {"positions": (m, n, 3), "energy": (m,), "forces": (m, n, 3), "stress": (m, 6)}
    if "energy" in values and values["energy"].size == m:
        values["energy"] = values["energy"].reshape(m)  # (m, 1) in MD17
    for name, array in values.items():
        expected = shapes.get(name, (m, *array.shape[1:]))
        if name != "numbers" and array.shape != expected:
            raise DataError(
                f"{path}: {found[name]}: has shape {array.shape}, expected {expected} for {n} atoms"
            )
    if m == 0:
        raise DataError(f"{path}: {found['positions']}: has no frames")
    return values


def _cell(path: Path, arrays: dict[str, np.ndarray], length: float) -> np.ndarray | None:
    """Cell in Å, vectors in rows. sGDML wrote them in rows first and in columns later."""
    if LATTICE not in arrays:
        return None
    lattice = real_array(arrays[LATTICE], f"{path}: {LATTICE}")
    if lattice.shape != (3, 3):
        raise DataError(f"{path}: {LATTICE}: has shape {lattice.shape}, expected (3, 3)")
    if not np.array_equal(lattice, lattice.T):
        raise DataError(
            f"{path}: {LATTICE}: sGDML kept the vectors in rows or in columns, depending on its "
            "version, and this cell is not the same either way; import the frames as extxyz"
        )
    return lattice * length
