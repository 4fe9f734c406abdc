"""Reference data of others, brought into our dataset file, in our units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ase_biasgrad.data.dataset import HEADER, DataError
from ase_biasgrad.data.importers.ase_readable import read_ase
from ase_biasgrad.data.importers.blocks import Source, append_source
from ase_biasgrad.data.importers.deepmd import is_deepmd, read_deepmd
from ase_biasgrad.data.importers.hdf5 import read_hdf5
from ase_biasgrad.data.importers.npz import read_npz
from ase_biasgrad.data.importers.options import DEFAULTS, ImportOptions, ImportReport
from ase_biasgrad.data.importers.plausibility import Questions
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.files import refuse_own_input

HDF5_NAMES = (".h5", ".hdf5", ".hdf")

__all__ = ["ImportOptions", "ImportReport", "import_files"]


def import_files(
    paths: Sequence[str | Path],
    output: str | Path,
    options: ImportOptions = DEFAULTS,
    progress: bool = True,
) -> ImportReport:
    """Read `paths` one after another into the dataset file `output`.

    `.npz` files are those of MD17, rMD17 and sGDML, `.h5` and `.hdf5` those of ANI-1x, SPICE and
    MACE, folders those of DeePMD (by dpdata); everything else is read by ASE.

    Raises
    ------
    DataError
        On a source that cannot be read, has no units, or has bad values: the message names file,
        key and frame, and no output file is left behind. Also on implausible numbers that
        `options` do not accept.
    ImportError
        If a folder of DeePMD comes without dpdata.
    ase_biasgrad.units.UnitError
        On an unknown unit.
    ValueError
        If `output` is one of `paths`.
    """
    sources = [Path(path) for path in paths]
    refuse_own_input(output, sources)
    provenance: dict[str, object] = {"sources": [path.name for path in sources]}
    if any(path.suffix == ".npz" for path in sources):
        provenance["labels"] = options.labels  # of rMD17 files; others have one set
    asked, skipped, accounts = Questions(), 0, []
    with DatasetWriter(output, provenance) as writer:
        for path in sources:
            source = _reader(path, options)(path, options)
            left, said = append_source(path, source, writer, options, progress, asked)
            skipped += left
            accounts.append(said)
        if not writer.frames:
            raise DataError(f"{', '.join(map(str, sources))}: no frame has a label; {accounts}")
        questions = asked.found()
        if questions and not options.accept:
            raise DataError(
                "\n  ".join(["these numbers are hardly meant:", *questions])
                + "\nmend the data or the units, or go on with --accept"
            )
        writer.note(imported=accounts, **({"accepted": questions} if questions else {}))
    return ImportReport(writer.frames, skipped, accounts, questions)


def _reader(path: Path, options: ImportOptions) -> Callable[[Path, ImportOptions], Source]:
    """Function that reads `path`, known by its name and first bytes."""
    if path.is_dir() and is_deepmd(path):
        return read_deepmd
    if not path.is_file():
        raise DataError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
    if options.format is not None:
        return read_ase
    if path.suffix == ".npz":
        return read_npz
    with path.open("rb") as file:
        ours = file.read(len(HEADER)) == HEADER  # which ASE reads by our plugin
    return read_hdf5 if path.suffix in HDF5_NAMES and not ours else read_ase
