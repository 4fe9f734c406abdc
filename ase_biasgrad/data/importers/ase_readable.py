"""Everything that ASE reads: extxyz, trajectories, outputs, databases (SchNetPack's included)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ase_biasgrad.data.dataset import LABELS, DataError, real_array
from ase_biasgrad.data.importers.options import ImportOptions, describe, said_unit
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.units import energy_unit, force_unit, length_unit, stress_unit

# where a label is, in the order of preference
KEYS: dict[str, tuple[str, ...]] = {
    "energy": ("REF_energy", "energy"),
    "forces": ("REF_forces", "forces"),
    "stress": ("REF_stress", "stress"),
}


@dataclass(frozen=True)
class _Units:
    """Units of a source: names of two, factors of all, and who says so."""

    energy: str
    length: str
    factors: dict[str, float]
    by: str


def import_ase(
    path: Path, writer: DatasetWriter, options: ImportOptions, progress: bool
) -> tuple[int, str]:
    """Append all frames; the number of frames left out, and a line on what was converted.

    Raises
    ------
    DataError
        On a file that ASE cannot read, and on frames that lack labels or have bad ones.
    """
    units = _units(path, options)
    named = {name: (key,) for name, key in (options.keys or {}).items()}
    choices = {k: v for k, v in {**KEYS, **named}.items() if k not in options.without}
    others = [name for name in choices if name not in LABELS]
    skipped = 0
    frames = tqdm(_frames(path), path.name, disable=not progress, leave=False)
    for frame, (atoms, values) in enumerate(frames):
        where = f"{path} (its frame {frame})"
        labels = _labels(atoms, values, choices, where)
        if options.skip_unlabelled and any(
            name in choices and name not in labels for name in ("energy", "forces")
        ):
            skipped += 1
            continue
        _require_labels(labels, named, options, where)
        length = units.factors["positions"]
        writer.append(
            atoms.numbers,
            atoms.positions * length,
            **{name: labels[name] * units.factors[name] for name in LABELS if name in labels},
            cell=atoms.cell.array * length,
            pbc=atoms.pbc,
            labels={name: labels[name] for name in others},
            source=where,
        )
    return skipped, describe(path, units.energy, units.length, units.by, others)


def _require_labels(
    labels: Mapping[str, np.ndarray],
    named: Mapping[str, tuple[str]],
    options: ImportOptions,
    where: str,
) -> None:
    for name, (key,) in named.items():
        if name not in labels and name not in options.without:
            raise DataError(f"{where}: has no {key} (for {name})")
    if not labels:
        looked = ", ".join(key for name in LABELS for key in KEYS[name])
        raise DataError(
            f"{where}: has no labels under {looked}; name them with --key, or leave such frames "
            "out with --skip-unlabelled"
        )


def _units(path: Path, options: ImportOptions) -> _Units:
    """SchNetPack's databases say their units; all else that ASE reads is in eV and Å."""
    own = _database_units(path, options) if path.suffix == ".db" else {}
    energy = said_unit(path, "energy", options.energy_unit, own.get("energy"), energy_unit)
    length = said_unit(path, "length", options.length_unit, own.get("positions"), length_unit)
    by = "as its metadata say" if own else "ASE's convention"
    if options.energy_unit or options.length_unit:
        by = "as you say"
    energy, length = energy or "eV", length or "Angstrom"
    factors = {
        "positions": length_unit(length),
        "energy": energy_unit(energy),
        "forces": energy_unit(energy) / length_unit(length),
        "stress": energy_unit(energy) / length_unit(length) ** 3,
    }
    for name, factor in (("forces", force_unit), ("stress", stress_unit)):
        if name in own:
            factors[name] = factor(own[name])
            by += f", {name} in {own[name]}"
    return _Units(energy, length, factors, by)


def _database_units(path: Path, options: ImportOptions) -> dict[str, str]:
    """Units in the metadata of a SchNetPack database, by our names; empty for others."""
    from ase.db import connect

    try:
        metadata = connect(str(path)).metadata
    except Exception as error:
        # whatever the database library makes of a foreign file
        raise DataError(f"{path}: no ASE database, or a damaged one: {error}") from error
    properties = metadata.get("_property_unit_dict", {})
    if not properties:
        return {}
    keys = {**{name: name for name in LABELS}, **(options.keys or {})}
    wanted = [name for name in LABELS if name not in options.without]
    own = {name: properties[keys[name]] for name in wanted if properties.get(keys[name])}
    if "energy" in wanted and keys["energy"] not in properties:
        raise DataError(
            f"{path}: a SchNetPack database without the property {keys['energy']!r}; name its "
            f"energy with --key energy=…, or do without it (--without energy): it has "
            f"{sorted(properties)}"
        )
    if metadata.get("_distance_unit"):
        own["positions"] = metadata["_distance_unit"]
    return own


def _frames(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Frames of a file, and the values that a database keeps in its rows beside ASE's own."""
    from ase.db import connect
    from ase.io import iread

    try:
        if path.suffix == ".db":
            for row in connect(str(path)).select():
                yield row.toatoms(), dict(row.data)
            return
        for atoms in iread(str(path), index=":"):
            yield atoms, {}
    except DataError:
        raise
    except Exception as error:
        # readers of ASE raise whatever their format makes them
        raise DataError(f"{path}: ASE cannot read it: {type(error).__name__}: {error}") from error


def _labels(
    atoms: Any, values: dict[str, Any], choices: dict[str, tuple[str, ...]], where: str
) -> dict[str, np.ndarray]:
    """Labels that a frame has, in the units of the source."""
    results = {} if atoms.calc is None else atoms.calc.results
    labels = {}
    for name, keys in choices.items():
        for key in keys:
            places = (values, atoms.info, atoms.arrays, results)
            found = next((p[key] for p in places if p.get(key) is not None), None)
            if found is None:
                continue
            array = real_array(found, f"{where}: {key}")
            if name == "energy" and array.size == 1:
                array = array.reshape(())  # SchNetPack keeps it as (1,)
            labels[name] = _voigt(array, f"{where}: {key}") if name == "stress" else array
            break
    return labels


def _voigt(stress: np.ndarray, where: str) -> np.ndarray:
    """`(6,)` in ASE's order, of that or of a `(3, 3)` matrix."""
    if stress.shape == (6,):
        return stress
    if stress.size == 9:
        full = stress.reshape(3, 3)
        if not np.allclose(full, full.T, atol=1e-6):
            raise DataError(f"{where}: is not symmetric")
        return full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    raise DataError(f"{where}: has shape {stress.shape}, expected (6,) or (3, 3)")
