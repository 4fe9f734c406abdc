"""The published MD17 and revised MD17 files: downloaded, or taken from files at hand."""

from __future__ import annotations

import tarfile
from pathlib import Path

from ase_biasgrad.dataset import DataError
from ase_biasgrad.importers import ImportOptions, ImportReport, import_files

# Chmiela et al. 2017, Sci. Adv. 3, e1603015; files as named by their authors
MD17_URL = "http://www.quantum-machine.org/gdml/data/npz/md17_{molecule}.npz"
MD17_MOLECULES = (
    "aspirin",
    "benzene2017",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "salicylic",
    "toluene",
    "uracil",
)
# Christensen and von Lilienfeld 2020, arXiv:2007.09593
RMD17_URL = "https://figshare.com/ndownloader/files/23950376"
RMD17_MOLECULES = (
    "aspirin",
    "azobenzene",
    "benzene",
    "ethanol",
    "malonaldehyde",
    "naphthalene",
    "paracetamol",
    "salicylic",
    "toluene",
    "uracil",
)


def import_md17(
    molecule: str,
    output: str | Path,
    revised: bool = False,
    source: str | Path | None = None,
    labels: str = "revised",
    progress: bool = True,
) -> ImportReport:
    """Bring one molecule into the dataset file `output` (kcal/mol and Å become eV and Å).

    Parameters
    ----------
    molecule
        As in the published file names.
    revised
        rMD17 instead of MD17.
    source
        A file at hand instead of a download: an npz file, or the rMD17 archive.
    labels
        Of an rMD17 file: `revised`, or `original` for the MD17 labels that it also holds.

    Raises
    ------
    DataError
        If the molecule is not in the set, or the file cannot be read.
    """
    known = RMD17_MOLECULES if revised else MD17_MOLECULES
    if source is None and molecule not in known:
        raise DataError(f"no molecule {molecule!r} in {'rMD17' if revised else 'MD17'}: {known}")
    path = _download(molecule, revised) if source is None else Path(source)
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if tarfile.is_tarfile(path):
        path = _extracted(path, molecule)
    options = ImportOptions(labels=labels, energy_unit="kcal/mol", length_unit="Angstrom")
    return import_files([path], output, options, progress)


def _download(molecule: str, revised: bool) -> Path:
    """Fetch into pooch's cache. The authors publish no checksums, so none is compared."""
    import pooch

    url = RMD17_URL if revised else MD17_URL.format(molecule=molecule)
    name = "rmd17.tar.bz2" if revised else f"md17_{molecule}.npz"
    try:
        return Path(
            pooch.retrieve(
                url,
                known_hash=None,
                fname=name,
                path=pooch.os_cache("ase-biasgrad"),
                downloader=pooch.HTTPDownloader(progressbar=True),
            )
        )
    except Exception as error:
        raise DataError(
            f"{name}: the download failed ({error}); fetch it by hand and name it with --from"
        ) from error


def _extracted(archive: Path, molecule: str) -> Path:
    """The molecule's npz file of the rMD17 archive, beside the archive."""
    target = archive.parent / f"rmd17_{molecule}.npz"
    if target.exists():
        return target
    from ase_biasgrad.files import whole_file

    with tarfile.open(archive) as tar:
        for member in tar:
            if Path(member.name).name == target.name:
                content = tar.extractfile(member)
                assert content is not None
                with whole_file(target) as temporary:
                    temporary.write_bytes(content.read())
                return target
    raise DataError(f"{archive}: holds no {target.name}")
