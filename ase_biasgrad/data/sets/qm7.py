"""QM7 and sets laid out like it: atomization energies of molecules, in folds to be tested on.

Blum and Reymond 2009, J. Am. Chem. Soc. 131, 8732; Rupp et al. 2012, Phys. Rev. Lett. 108, 058301.
The label `fold (m,)` of our dataset file says which fold each molecule is tested in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.data.dataset import DataError, Dataset, real_array
from ase_biasgrad.data.download import fetch
from ase_biasgrad.data.importers.blocks import Block, Source, append_source
from ase_biasgrad.data.importers.npz import load_arrays
from ase_biasgrad.data.importers.options import ImportOptions, ImportReport, units_of
from ase_biasgrad.data.importers.plausibility import Questions
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.files import file_hash

URL = "http://quantum-machine.org/data/qm7.mat"
SIZE = 17_884_280
SHA256 = "fd6c26c1086887310518e6a6da778253bc5d3ceb8166007a679a740fff9ee6ea"
UNITS = {"energy": "kcal/mol", "positions": "Bohr"}  # of the published file
FOLDS = 5
TABLES = ("energies.txt", "energies.csv")  # of a folder: lines of file name and energy
ARRAYS = ("Z", "R", "T", "P")


def import_qm7(
    output: str | Path,
    source: str | Path | None = None,
    energy_unit: str | None = None,
    length_unit: str | None = None,
    progress: bool = True,
) -> ImportReport:
    """Bring QM7, or molecules laid out like it, into the dataset file `output` in eV and Å.

    Raises `DataError` on a source that cannot be read, is damaged, or whose units nobody says.

    Parameters
    ----------
    source
        `qm7.mat` as published, by default downloaded; any other .mat or .npz file with its arrays
        (`Z (m, n)` and `R (m, n, 3)` padded with zeros, `T (m,)` or `(1, m)`, optionally the
        folds `P (folds, m/folds)`); or a folder of xyz files, each with its energy as
        `energy=…` or as the only word of the comment line, or with all energies in a table
        `energies.txt` or `energies.csv` of file names and numbers.
    energy_unit, length_unit
        Of the source; known of the published file (by its checksum) only, and xyz files are in Å.
    """
    path = Path(source or fetch(URL, "qm7.mat", f"sha256:{SHA256}"))
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    own = _own_units(path)
    if not (energy_unit or "energy" in own) or not (length_unit or "positions" in own):
        raise DataError(_no_units(path))
    options = ImportOptions(energy_unit=energy_unit, length_unit=length_unit, keys={"fold": "fold"})
    units = units_of(path, options, own, "as published" if "energy" in own else "in xyz files")
    molecules, folds = _read_folder(path) if path.is_dir() else _read_arrays(path)
    origin = "of the source"
    if folds is None:
        energies = np.concatenate([each.labels["energy"][1] for each in molecules])
        folds, origin = stratified_folds(energies), "sorted by energy, index modulo 5"
    provenance = {
        "sources": [path.name],
        "energy": "of atomization: of the molecule less that of its free atoms",
        "folds": origin,
    }
    blocks = (
        replace(each, labels={**each.labels, "fold": ("fold", fold[None])})
        for each, fold in zip(molecules, folds, strict=True)
    )
    with DatasetWriter(output, provenance) as writer:
        _, said = append_source(path, Source(blocks, units), writer, options, progress, Questions())
    return ImportReport(len(folds), 0, [said, f"{folds.max() + 1} folds: {origin}"])


def _molecule(name: str, numbers: np.ndarray, positions: np.ndarray, energy: float) -> Block:
    labels = {"energy": ("energy", np.array([energy]))}
    return Block(name, numbers, ("positions", positions[None]), labels, ())


def stratified_folds(energies: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    """Fold `(m,)` of each molecule: sorted by energy `(m,)`, the place modulo `folds`.

    Every fold then has molecules of all energies; of equal energies the first comes first.
    """
    fold = np.empty(len(energies), np.int64)
    fold[np.argsort(energies, kind="stable")] = np.arange(len(energies)) % folds
    return fold


def folds_of(dataset: Dataset) -> np.ndarray:
    """The label `fold (m,)` of a dataset, or `stratified_folds` of its energies without one.

    Raises `DataError` if there is neither, or the label is no fold.
    """
    if not dataset.has("energy"):
        raise DataError(f"{dataset.path}: has no energies, and molecules are sorted by them")
    if not dataset.has("fold"):
        return stratified_folds(column(dataset, "energy"))
    folds = column(dataset, "fold")
    if not np.array_equal(np.unique(folds), np.arange(len(np.unique(folds)))):
        raise DataError(f"{dataset.path}: the label fold is not 0, 1, 2, … without gaps")
    return folds.astype(np.int64)


def column(dataset: Dataset, label: str) -> np.ndarray:
    """A label of one number per frame, `(m,)` float64 in the order of frames.

    Raises `DataError` if some frames have none, or more than one number.
    """
    values = np.empty(len(dataset))
    for group in dataset.groups():
        rows = group.read(label)
        if rows is None or rows.shape != (len(group),):
            raise DataError(f"{dataset.path}: {group.name}: {label} is not one number per frame")
        values[group.index] = rows
    return values


def _own_units(path: Path) -> dict[str, str]:
    """Units that follow from the source itself, by our names."""
    if path.is_dir():
        return {"positions": "Angstrom"}
    return UNITS if path.stat().st_size == SIZE and file_hash(path) == SHA256 else {}


def _no_units(path: Path) -> str:
    other = ""
    if path.suffix == ".mat":
        other = (
            f"is not the published qm7.mat ({SIZE} bytes, sha256 {SHA256[:12]}…; this one has "
            f"{path.stat().st_size} bytes): a download that broke off, or other data, which "
        )
    return (
        f"{path}: {other}does not say its units; name them with --energy-unit (kcal/mol, Hartree, "
        "eV, …) and, unless they are xyz files, --length-unit (Angstrom, Bohr)"
    )


def _read_arrays(path: Path) -> tuple[list[Block], np.ndarray | None]:
    """Molecules, and their folds where the file has them."""
    arrays = _load_mat(path) if path.suffix == ".mat" else load_arrays(path, ARRAYS)
    for name in ("Z", "R", "T"):
        if name not in arrays:
            raise DataError(
                f"{path}: has no array {name}: not laid out like QM7 (Z, R, T and P), or a "
                "download that broke off"
            )
    charges = real_array(arrays["Z"], f"{path}: Z")
    positions = real_array(arrays["R"], f"{path}: R")
    energies = real_array(arrays["T"], f"{path}: T").reshape(-1)
    m = len(energies)
    if charges.ndim != 2 or len(charges) != m or positions.shape != (*charges.shape, 3):
        raise DataError(
            f"{path}: Z {charges.shape}, R {positions.shape} and T {np.shape(arrays['T'])} do not "
            "fit each other; expected (m, n), (m, n, 3) and (1, m)"
        )
    molecules = [
        _molecule(f"molecule {k}", z[z != 0], r[z != 0], energy)
        for k, (z, r, energy) in enumerate(zip(charges, positions, energies, strict=True))
    ]
    return molecules, _folds(path, arrays["P"], m) if "P" in arrays else None


def _load_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        return loadmat(path, variable_names=ARRAYS)
    except Exception as error:  # scipy raises whatever the damaged bytes lead to
        raise DataError(f"{path}: no MATLAB file, or a damaged one: {error}") from error


def _folds(path: Path, places: Any, m: int) -> np.ndarray:
    """Fold of each molecule `(m,)` from the rows of P, the molecules of each fold."""
    rows = real_array(places, f"{path}: P")
    if rows.ndim != 2 or not np.array_equal(np.sort(rows.ravel()), np.arange(m)):
        raise DataError(f"{path}: P {rows.shape} does not hold each of the {m} molecules once")
    fold = np.empty(m, np.int64)
    fold[rows.astype(np.int64)] = np.arange(len(rows))[:, None]
    return fold


def _read_folder(folder: Path) -> tuple[list[Block], None]:
    files = sorted(folder.glob("*.xyz"), key=lambda path: _natural(path.name))
    if not files:
        raise DataError(f"{folder}: holds no *.xyz files")
    table = _energy_table(folder)
    molecules = []
    for file in files:
        for frame, atoms in enumerate(_read_xyz(file)):
            energy = table.get(file.name, table.get(file.stem)) if table else _own_energy(atoms)
            if energy is None:
                where = "energies table" if table else "comment line (energy=…, or a number alone)"
                raise DataError(f"{file}: frame {frame}: has no energy in its {where}")
            name = f"{file.name}, frame {frame}"
            molecules.append(_molecule(name, atoms.numbers, atoms.positions, energy))
    return molecules, None


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 9.xyz before 10.xyz."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _read_xyz(file: Path) -> Iterator[Any]:
    from ase.io import iread

    try:
        yield from iread(file, ":", "extxyz", do_not_split_by_at_sign=True)
    except Exception as error:  # ASE raises whatever the line leads to
        raise DataError(f"{file}: cannot be read as xyz: {error}") from error


def _own_energy(atoms: Any) -> float | None:
    """Energy of the comment line: `energy=…`, which ASE makes a result, or one number alone."""
    if atoms.calc is not None and "energy" in atoms.calc.results:
        return float(atoms.calc.results["energy"])
    if len(atoms.info) == 1:
        try:
            return float(next(iter(atoms.info)))
        except ValueError:
            return None
    return None


def _energy_table(folder: Path) -> dict[str, float]:
    """File names, with or without .xyz, and their energies; empty without a table."""
    energies: dict[str, float] = {}
    for path in (folder / name for name in TABLES):
        if not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            words = re.split(r"[,;\s]+", line.partition("#")[0].strip())
            if words == [""]:
                continue
            try:
                name, energy = words
                value = float(energy)
            except ValueError as error:
                if number == 1:  # a heading
                    continue
                raise DataError(
                    f"{path}: line {number}: {line!r} is not a file name and an energy"
                ) from error
            if name in energies:
                raise DataError(f"{path}: line {number}: {name} has an energy already")
            energies[name] = value
    return energies
