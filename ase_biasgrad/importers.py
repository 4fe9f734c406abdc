"""Reference data of others, brought into our dataset file, in our units.

`.npz` files of MD17, rMD17 and sGDML, and everything that ASE reads (its databases included).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ase_biasgrad.dataset import DataError, DatasetWriter
from ase_biasgrad.units import energy_unit, length_unit

# names of the same thing in the files of MD17/sGDML and of rMD17, revised and original labels
NPZ_KEYS: dict[str, tuple[str, ...]] = {
    "numbers": ("nuclear_charges", "z"),
    "positions": ("coords", "R"),
}
NPZ_LABELS: dict[str, dict[str, tuple[str, ...]]] = {
    "revised": {"energy": ("energies", "E"), "forces": ("forces", "F")},
    "original": {"energy": ("old_energies",), "forces": ("old_forces",)},
}
ASE_KEYS = {
    "energy": ("REF_energy", "energy"),
    "forces": ("REF_forces", "forces"),
    "stress": ("REF_stress", "stress"),
}


@dataclass(frozen=True)
class ImportReport:
    """What an import did."""

    frames: int
    skipped: int
    conversions: list[str]


@dataclass(frozen=True)
class ImportOptions:
    """How sources are read.

    `labels` chooses among the label sets of an rMD17 file (`revised`, `original`); `keys` names
    the labels in the source, such as `{"energy": "dft_energy"}`; `skip_unlabelled` leaves out
    frames that lack energy or forces instead of refusing them.
    """

    labels: str = "revised"
    energy_unit: str | None = None
    length_unit: str | None = None
    keys: dict[str, str] | None = None
    skip_unlabelled: bool = False


def import_files(
    paths: Sequence[str | Path],
    output: str | Path,
    options: ImportOptions = ImportOptions(),
    progress: bool = True,
) -> ImportReport:
    """Read `paths` one after another into the dataset file `output`.

    Raises
    ------
    DataError
        On a source that cannot be read, has no units, or has bad values: the message names file,
        key and frame, and no output file is left behind.
    ase_biasgrad.units.UnitError
        On an unknown unit.
    """
    sources = [Path(path) for path in paths]
    report = ImportReport(0, 0, [])
    provenance = {"sources": [path.name for path in sources], "labels": options.labels}
    with DatasetWriter(output, provenance) as writer:
        for path in sources:
            if not path.is_file():
                raise DataError(f"{path}: no such file")
            read = _import_npz if path.suffix == ".npz" else _import_ase
            skipped, conversion = read(path, writer, options, progress)
            report = ImportReport(
                writer.frames, report.skipped + skipped, [*report.conversions, conversion]
            )
    return report


def _import_npz(
    path: Path, writer: DatasetWriter, options: ImportOptions, progress: bool
) -> tuple[int, str]:
    if options.labels not in NPZ_LABELS:
        raise DataError(f"labels {options.labels!r} are unknown; use {' or '.join(NPZ_LABELS)}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: no npz file, or a truncated one: {error}") from error
    energy, length, said = _npz_units(path, arrays, options)
    names = {**NPZ_KEYS, **NPZ_LABELS[options.labels]}
    named = {name: (key,) for name, key in (options.keys or {}).items()}
    found = {name: _key(path, arrays, keys) for name, keys in {**names, **named}.items()}
    numbers, positions = arrays[found["numbers"]], arrays[found["positions"]]
    m = len(positions)
    energies = np.asarray(arrays[found["energy"]], np.float64).reshape(-1)
    forces = np.asarray(arrays[found["forces"]], np.float64)
    if positions.shape != (m, len(numbers), 3):
        raise DataError(
            f"{path}: {found['positions']}: has shape {positions.shape}, expected "
            f"(frames, {len(numbers)}, 3)"
        )
    for key, values, shape in (
        (found["energy"], energies, (m,)),
        (found["forces"], forces, positions.shape),
    ):
        if values.shape != shape:
            raise DataError(f"{path}: {key}: has shape {values.shape}, expected {shape}")
    step = max(1, 50_000 // max(1, len(numbers)))
    for first in tqdm(range(0, m, step), path.name, disable=not progress, leave=False):
        rows = slice(first, first + step)
        writer.append(
            numbers,
            np.asarray(positions[rows], np.float64) * length,
            energy=energies[rows] * energy,
            forces=forces[rows] * (energy / length),
            source=str(path),
        )
    return 0, said


def _key(path: Path, arrays: dict[str, np.ndarray], keys: tuple[str, ...]) -> str:
    for key in keys:
        if key in arrays:
            return key
    raise DataError(f"{path}: has no {' or '.join(keys)}; its keys are {sorted(arrays)}")


def _npz_units(
    path: Path, arrays: dict[str, np.ndarray], options: ImportOptions
) -> tuple[float, float, str]:
    """eV per energy unit, Å per length unit, and what to say about it."""
    own = {k: str(arrays[f"{k}_unit"]) for k in ("e", "r") if f"{k}_unit" in arrays}
    energy = options.energy_unit or own.get("e")
    length = options.length_unit or own.get("r")
    if energy is None or length is None:
        missing = " and ".join(
            option
            for option, value in (("--energy-unit", energy), ("--length-unit", length))
            if value is None
        )
        raise DataError(
            f"{path}: says nothing of its units; name them with {missing} (MD17, rMD17 and most "
            "sGDML files: kcal/mol and Angstrom)"
        )
    said = f"{path.name}: energies {energy} → eV, lengths {length} → Å"
    return energy_unit(energy), length_unit(length), said


def _import_ase(
    path: Path, writer: DatasetWriter, options: ImportOptions, progress: bool
) -> tuple[int, str]:
    energy_name, length_name, convention = _ase_units(path, options)
    energy, length = energy_unit(energy_name), length_unit(length_name)
    keys = {n: (k,) for n, k in (options.keys or {}).items()}
    skipped = 0
    for frame, (atoms, values) in enumerate(
        tqdm(_ase_frames(path), path.name, disable=not progress, leave=False)
    ):
        labels = {
            name: _ase_label(atoms, values, keys.get(name, choices))
            for name, choices in ASE_KEYS.items()
        }
        for name in keys:
            if labels.get(name) is None and not options.skip_unlabelled:
                raise DataError(f"{path}: frame {frame}: has no {keys[name][0]} (for {name})")
        if options.skip_unlabelled and (labels["energy"] is None or labels["forces"] is None):
            skipped += 1
            continue
        if all(value is None for value in labels.values()):
            raise DataError(
                f"{path}: frame {frame}: has no labels under {ASE_KEYS}; name them with --key, or "
                "leave such frames out with --skip-unlabelled"
            )
        stress = labels["stress"]
        writer.append(
            atoms.numbers,
            atoms.positions * length,
            energy=None if labels["energy"] is None else float(labels["energy"]) * energy,
            forces=None if labels["forces"] is None else labels["forces"] * (energy / length),
            stress=None if stress is None else _voigt(path, frame, stress) * (energy / length**3),
            cell=atoms.cell.array * length,
            pbc=atoms.pbc,
            source=f"{path} (its frame {frame})",
        )
    units = f"energies {energy_name} → eV, lengths {length_name} → Å"
    return skipped, f"{path.name}: {units} ({convention})"


def _ase_units(path: Path, options: ImportOptions) -> tuple[str, str, str]:
    """Names of the energy and length units of a file, and who says so.

    SchNetPack's databases carry their units as metadata; everything else that ASE reads is in
    eV and Å unless the options say otherwise.
    """
    own: dict[str, str] = {}
    if path.suffix == ".db":
        from ase.db import connect

        metadata = connect(str(path)).metadata
        key = (options.keys or {}).get("energy", "energy")
        properties = metadata.get("_property_unit_dict", {})
        own = {"energy": properties.get(key, ""), "length": metadata.get("_distance_unit", "")}
        if properties and not own["energy"]:
            raise DataError(
                f"{path}: a SchNetPack database without the property {key!r}; name its energy "
                f"with --key energy=…: it has {sorted(properties)}"
            )
        forces = properties.get((options.keys or {}).get("forces", "forces"))
        expected = energy_unit(own["energy"] or "eV") / length_unit(own["length"] or "Angstrom")
        if forces is not None and not np.isclose(_force_unit(path, forces), expected):
            raise DataError(
                f"{path}: its forces are in {forces}, its energies and lengths in "
                f"{own['energy']} and {own['length']}; convert them to units that belong together"
            )
    energy = options.energy_unit or own.get("energy") or "eV"
    length = options.length_unit or own.get("length") or "Angstrom"
    if options.energy_unit or options.length_unit:
        return energy, length, "as you said"
    return energy, length, "its metadata" if own.get("energy") else "ASE's convention"


def _force_unit(path: Path, name: str) -> float:
    """A unit such as `kcal/mol/Ang` in eV/Å."""
    energy, slash, length = name.rpartition("/")
    if not slash:
        raise DataError(f"{path}: {name!r} is no unit of forces, such as eV/Ang")
    return energy_unit(energy) / length_unit(length)


def _ase_frames(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Frames of a file and the values that its rows hold beside ASE's own (databases)."""
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


def _ase_label(atoms: Any, values: dict[str, Any], choices: tuple[str, ...]) -> Any:
    results = {} if atoms.calc is None else atoms.calc.results
    for key in choices:
        for place in (values, atoms.info, atoms.arrays, results):
            if place.get(key) is not None:
                array = np.asarray(place[key], np.float64)
                return array.reshape(()) if array.size == 1 else array
    return None


def _voigt(path: Path, frame: int, stress: np.ndarray) -> np.ndarray:
    if stress.shape == (6,):
        return stress
    if stress.size == 9:
        full = stress.reshape(3, 3)
        if not np.allclose(full, full.T, atol=1e-6):
            raise DataError(f"{path}: frame {frame}: its stress is not symmetric")
        return full[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    raise DataError(f"{path}: frame {frame}: its stress has shape {stress.shape}, expected (6,)")
