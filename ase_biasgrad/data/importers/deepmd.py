"""Folders of DeePMD-kit (`deepmd/npy`, `deepmd/npy/mixed`, `deepmd/raw`), read by dpdata.

A system is a folder with `type.raw`, `type_map.raw` and frames in `set.*/*.npy` or `*.raw`, in eV
and Å; a virial is −∂E/∂ε in eV. dpdata (Zeng et al., J. Chem. Inf. Model. 65, 11497, 2025) is the
extra `dpdata`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.data.importers.blocks import Block, Source
from ase_biasgrad.data.importers.labels import chosen_keys
from ase_biasgrad.data.importers.options import ImportOptions, units_of

TYPES, MIXED = "type.raw", "real_atom_types"
# DeePMD's names of files, and dpdata's of what is in them
IN_DPDATA = {"energy": "energies", "force": "forces", "virial": "virials"}
STRUCTURE = ("box", "coord", "type", "type_map", MIXED)


def is_deepmd(folder: Path) -> bool:
    """Test for a folder that is or holds systems of DeePMD-kit."""
    return next(folder.rglob(TYPES), None) is not None


def read_deepmd(path: Path, options: ImportOptions) -> Source:
    """Read the frames of all systems in a folder.

    Raises `ImportError` if dpdata is not installed, and `DataError` on what dpdata cannot read,
    unknown elements, and labels that only some sets have.
    """
    try:
        import dpdata
    except ImportError as error:
        raise ImportError(
            f"{path}: folders of DeePMD need dpdata; install it with: "
            "pip install 'ase-biasgrad[dpdata]'"
        ) from error
    units = units_of(path, options, {}, convention="DeePMD's convention")
    systems = sorted(file.parent for file in path.rglob(TYPES))
    blocks = (block for system in systems for block in _blocks(path, system, options))
    return Source(blocks, units, f"; read by dpdata {dpdata.__version__}")


def _blocks(path: Path, system: Path, options: ImportOptions) -> Iterator[Block]:
    import dpdata

    name = str(system.relative_to(path)) if system != path else ""
    files = _files(system)
    try:
        if MIXED in files:
            found = dpdata.MultiSystems().load_systems_from_file(system, fmt="deepmd/npy/mixed")
            parts = list(found.systems.values())
        else:
            fmt = "deepmd/npy" if list(system.glob("set.*")) else "deepmd/raw"
            parts = [dpdata.LabeledSystem(system, fmt=fmt)]
    except Exception as error:
        # dpdata raises whatever NumPy and its formats make of a damaged folder
        said = f"{type(error).__name__}: {error}"
        raise DataError(f"{system}: dpdata cannot read it: {said}") from error
    for part in parts:
        yield _block(system, name, files, part.data, options)


def _files(system: Path) -> list[str]:
    """Names of what a system holds, without endings; those of labels are in all of its sets."""
    sets = [folder for folder in system.glob("set.*") if folder.is_dir()]
    beside = {file.stem for file in system.glob("*.raw")}
    if not sets:
        return sorted(beside)
    counts = Counter(file.stem for folder in sets for file in folder.glob("*.npy"))
    for name, count in counts.items():
        if count < len(sets):
            raise DataError(
                f"{system}: {name}.npy is in {count} of {len(sets)} sets; dpdata cannot tell its "
                "frames, so import the sets as systems of their own"
            )
    return sorted({*counts, *beside})


def _block(
    system: Path, name: str, files: list[str], data: dict[str, Any], options: ImportOptions
) -> Block:
    from ase.data import atomic_numbers

    names = [str(element) for element in data["atom_names"]]
    if unknown := [element for element in names if element not in atomic_numbers]:
        raise DataError(
            f"{system}: {', '.join(unknown)} are no elements; name those of {TYPES} in type_map.raw"
        )
    present = {
        file: np.asarray(data[IN_DPDATA.get(file, file)])
        for file in files
        if IN_DPDATA.get(file, file) in data and file not in STRUCTURE
    }
    chosen = chosen_keys(present, options)
    return Block(
        name,
        np.array([atomic_numbers[names[k]] for k in data["atom_types"]]),
        ("coord", np.asarray(data["coords"])),
        {label: (key, present[key]) for label, key in chosen.items()},
        [file for file in files if file not in (*STRUCTURE, *chosen.values())],
        np.asarray(data["cells"], np.float64),
        np.full(3, not data.get("nopbc", False)),
    )
