"""The published MD17 and revised MD17 files: downloaded, or taken from files at hand."""

from __future__ import annotations

import lzma
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ase_biasgrad.data.dataset import DataError, atomic_numbers, formula
from ase_biasgrad.data.download import fetch
from ase_biasgrad.data.importers import ImportOptions, ImportReport, import_files
from ase_biasgrad.data.importers.npz import STRUCTURE, load_arrays
from ase_biasgrad.files import whole_file

# Chmiela et al. 2017, Sci. Adv. 3, e1603015; files as named by their authors
MD17_URL = "http://www.quantum-machine.org/gdml/data/npz/md17_{molecule}.npz"
MD17_MOLECULES = {
    "aspirin": "C9H8O4",
    "benzene2017": "C6H6",
    "ethanol": "C2H6O",
    "malonaldehyde": "C3H4O2",
    "naphthalene": "C10H8",
    "salicylic": "C7H6O3",
    "toluene": "C7H8",
    "uracil": "C4H4N2O2",
}
# Christensen and von Lilienfeld 2020, arXiv:2007.09593
RMD17_URL = "https://figshare.com/ndownloader/files/23950376"
RMD17_MOLECULES = {
    **{name: made for name, made in MD17_MOLECULES.items() if name != "benzene2017"},
    "azobenzene": "C12H10N2",
    "benzene": "C6H6",
    "paracetamol": "C8H9NO2",
}


def import_md17(
    molecule: str,
    output: str | Path,
    revised: bool = False,
    source: str | Path | None = None,
    labels: str = "revised",
    progress: bool = True,
) -> ImportReport:
    """Bring one molecule into the dataset file `output` (kcal/mol and Å become eV and Å).

    Raises `DataError` if the molecule is not in the set, the file holds another, or it cannot be
    read.

    Parameters
    ----------
    molecule
        As in the published file names; what is brought in must have its composition.
    revised
        rMD17 instead of MD17.
    source
        A file at hand instead of a download: an npz file, or the rMD17 archive.
    labels
        Of an rMD17 file: `revised`, or `original` for the MD17 labels that it also holds.
    """
    known = RMD17_MOLECULES if revised else MD17_MOLECULES
    if source is not None:
        known = {**RMD17_MOLECULES, **MD17_MOLECULES}
    if molecule not in known:
        raise DataError(
            f"no molecule {molecule!r} in {'rMD17' if revised else 'MD17'}; use one of: "
            f"{', '.join(known)} (files of others: `biasgrad data import`)"
        )
    path = _download(molecule, revised) if source is None else Path(source)
    if not path.is_file():
        raise DataError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
    with tempfile.TemporaryDirectory() as aside:
        if tarfile.is_tarfile(path):
            path = _extracted(path, molecule, path.parent if source is None else Path(aside))
        _check_composition(path, molecule, known[molecule])
        # published as they are: what is odd in them is said, and does not keep anyone from them
        options = ImportOptions(labels, "kcal/mol", "Angstrom", accept=True)
        return import_files([path], output, options, progress)


def _check_composition(path: Path, molecule: str, expected: str) -> None:
    for numbers in load_arrays(path, STRUCTURE["numbers"]).values():
        found = formula(np.bincount(atomic_numbers(numbers, str(path), "of all frames")))
        if found != expected:
            raise DataError(f"{path}: is {found}, and {molecule} is {expected}")


def _download(molecule: str, revised: bool) -> Path:
    """Fetch files that have no published checksums, but carry those of their format."""
    url = RMD17_URL if revised else MD17_URL.format(molecule=molecule)
    name = "rmd17.tar.bz2" if revised else f"md17_{molecule}.npz"
    path = fetch(url, name)
    if not (tarfile.is_tarfile(path) or zipfile.is_zipfile(path)):
        path.unlink()  # a page that says sorry, which must not stay in the cache
        raise DataError(f"{url}: sends no {name}; fetch it by hand and name it with --from")
    return path


def _extracted(archive: Path, molecule: str, folder: Path) -> Path:
    """The molecule's npz file of the rMD17 archive, in `folder`: the cache, or one of our own."""
    target = folder / f"rmd17_{molecule}.npz"
    if target.exists():
        return target
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if Path(member.name).name == target.name and (content := tar.extractfile(member)):
                    with whole_file(target) as temporary, temporary.open("wb") as file:
                        shutil.copyfileobj(content, file)
                    return target
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # the disk's; bz2's have no number
            raise
        raise DataError(f"{archive}: a truncated or damaged archive: {error}") from error
    raise DataError(f"{archive}: holds no {target.name}")
