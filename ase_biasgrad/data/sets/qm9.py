"""QM9: properties of 134 thousand small molecules, in the units that they are reported in.

Ramakrishnan, Dral, Rupp, von Lilienfeld 2014, Sci. Data 1, 140022. Published is an archive of one
file per molecule, and a list of the molecules whose geometry did not converge to the one that was
meant; these are left out.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import units as ase_units
from ase.data import atomic_numbers

from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.data.download import fetch
from ase_biasgrad.data.importers import ImportReport
from ase_biasgrad.data.importers.npz import load_arrays
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.progress import progress_bar

ARCHIVE_URL = "https://ndownloader.figshare.com/files/3195389"
UNCHARACTERIZED_URL = "https://ndownloader.figshare.com/files/3195404"
ELECTRONVOLTS = ase_units.Hartree  # of one Hartree
MEV = 1e3 * ELECTRONVOLTS
# name → place among the 15 numbers of a file's second line, factor to the unit
PROPERTIES = {
    "mu": (3, 1.0),
    "alpha": (4, 1.0),
    "homo": (5, MEV),
    "lumo": (6, MEV),
    "gap": (7, MEV),
    "Cv": (14, 1.0),
}
UNITS = {"mu": "D", "alpha": "bohr³", "homo": "meV", "lumo": "meV", "gap": "meV", "Cv": "cal/mol K"}
U0 = 10
NUMBERS = 15
EXTRACT_ARRAYS = ("id", "n_atoms", "Z", "R_micro", "E_elec_hartree", "mu_debye")


@dataclass(frozen=True)
class Molecule:
    """One molecule, as read."""

    id: int  # from 1, of the published set
    numbers: np.ndarray  # (n,)
    positions: np.ndarray  # (n, 3) Å
    energy: float  # eV
    properties: dict[str, float]  # in UNITS


def import_qm9(
    output: str | Path,
    source: str | Path | None = None,
    uncharacterized: str | Path | None = None,
    progress: bool = True,
) -> ImportReport:
    """Bring QM9 into the dataset file `output`: energies in eV, positions in Å.

    Other labels are those of `UNITS` that the source has, and `id`, the molecule's number in the
    published set. Raises `DataError` on a source that cannot be read.

    Parameters
    ----------
    source
        `dsgdb9nsd.xyz.tar.bz2` as published, by default downloaded, or an extract of it: an npz
        file with `id`, `n_atoms`, flat `Z` and `R_micro` (µÅ), `mu_debye` and, where it has
        them, energies `E_elec_hartree` (U0 less zero-point energy); NaN marks molecules without
        labels, which are left out.
    uncharacterized
        `uncharacterized.txt` as published, by default downloaded where the source is the archive.
    """
    if source is not None and Path(source).suffix == ".npz":
        molecules = _extract(Path(source))
        energy, skipped_for = "U0 less zero-point energy", "without labels"
        excluded = _excluded(Path(uncharacterized)) if uncharacterized else set()
    else:
        molecules = read_archive(_fetched(source, ARCHIVE_URL, "dsgdb9nsd.xyz.tar.bz2"))
        excluded = _excluded(_fetched(uncharacterized, UNCHARACTERIZED_URL, "uncharacterized.txt"))
        energy, skipped_for = "U0", "whose geometry did not converge"
    name = "QM9" if source is None else Path(source).name
    kept = skipped = 0
    with DatasetWriter(output, {"sources": [name], "energy": energy, "labels": UNITS}) as writer:
        for molecule in progress_bar(molecules, name, progress):
            if molecule.id in excluded or not np.isfinite(list(molecule.properties.values())).all():
                skipped += 1
                continue
            kept += 1
            writer.append(
                molecule.numbers,
                molecule.positions,
                energy=molecule.energy,
                labels={"id": molecule.id, **molecule.properties},
                source=f"{name}: molecule {molecule.id}",
            )
    said = [
        f"{name}: energies ({energy}) Hartree → eV; homo, lumo, gap Hartree → meV; "
        "alpha in bohr³, mu in D, Cv in cal/mol K as published",
        f"left out {skipped} molecules {skipped_for}",
    ]
    return ImportReport(kept, 0, said)


def read_archive(path: Path) -> Iterator[Molecule]:
    """The molecules of the published archive, or of a folder of its files, in order of names."""
    if path.is_dir():
        for file in sorted(path.glob("*.xyz")):
            yield parse_molecule(file.read_text(encoding="ascii"), str(file))
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None and member.name.endswith(".xyz"):
                    where = f"{path}: {member.name}"
                    yield parse_molecule(content.read().decode("ascii"), where)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: no readable archive: {error}") from error


def parse_molecule(text: str, where: str) -> Molecule:
    """A file of the archive: atoms, `gdb` number and 15 properties, then a line per atom.

    Raises `DataError` naming `where` and what is wrong.
    """
    lines = text.splitlines()
    try:
        atoms = int(lines[0])
        tag, number, *values = lines[1].split()
        rows = [line.split() for line in lines[2 : 2 + atoms]]
        if tag != "gdb" or len(values) != NUMBERS or len(rows) != atoms:
            raise ValueError(f"{len(values)} properties and {len(rows)} of {atoms} atoms")
        found = [_number(value) for value in values]
        return Molecule(
            id=int(number),
            numbers=np.array([atomic_numbers[row[0]] for row in rows]),
            positions=np.array([[_number(x) for x in row[1:4]] for row in rows]),
            energy=found[U0] * ELECTRONVOLTS,
            properties={name: found[k] * factor for name, (k, factor) in PROPERTIES.items()},
        )
    except (ValueError, IndexError, KeyError) as error:
        raise DataError(f"{where}: not as QM9's files are: {error!r}") from error


def _number(text: str) -> float:
    """Some numbers are written as Mathematica does: 1.2*^-5."""
    return float(text.replace("*^", "e"))


def _extract(path: Path) -> Iterator[Molecule]:
    arrays = load_arrays(path, EXTRACT_ARRAYS)
    if missing := set(EXTRACT_ARRAYS) - set(arrays):
        raise DataError(f"{path}: has no {sorted(missing)}, which an extract of QM9 needs")
    ends = np.cumsum(arrays["n_atoms"].astype(np.int64))
    if len(arrays["Z"]) != ends[-1] or len(arrays["R_micro"]) != ends[-1]:
        raise DataError(f"{path}: Z and R_micro have not as many atoms as n_atoms adds up to")
    for k, end in enumerate(ends):
        atoms = slice(end - arrays["n_atoms"][k], end)
        yield Molecule(
            id=int(arrays["id"][k]),
            numbers=arrays["Z"][atoms].astype(np.int64),
            positions=arrays["R_micro"][atoms] * 1e-6,
            energy=float(arrays["E_elec_hartree"][k]) * ELECTRONVOLTS,
            properties={"mu": float(arrays["mu_debye"][k])},
        )


def _excluded(path: Path) -> set[int]:
    """Numbers of the molecules in the published list: the first words of its lines."""
    try:
        words = [line.split()[:1] for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    found = {int(word) for line in words for word in line if word.isdigit()}
    if not found:
        raise DataError(f"{path}: no list of molecules (numbers at the beginning of lines)")
    return found


def _fetched(given: str | Path | None, url: str, name: str) -> Path:
    if given is not None:
        if not Path(given).exists():
            raise DataError(f"{given}: no such file")
        return Path(given)
    return fetch(url, name)
