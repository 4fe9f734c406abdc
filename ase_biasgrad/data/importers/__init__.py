"""Reference data of others, brought into our dataset file, in our units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.data.importers.ase_readable import import_ase
from ase_biasgrad.data.importers.npz import import_npz
from ase_biasgrad.data.importers.options import DEFAULTS, ImportOptions, ImportReport
from ase_biasgrad.data.writer import DatasetWriter

__all__ = ["ImportOptions", "ImportReport", "import_files"]


def import_files(
    paths: Sequence[str | Path],
    output: str | Path,
    options: ImportOptions = DEFAULTS,
    progress: bool = True,
) -> ImportReport:
    """Read `paths` one after another into the dataset file `output`.

    `.npz` files are those of MD17, rMD17 and sGDML; everything else is read by ASE.

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
    provenance: dict[str, object] = {"sources": [path.name for path in sources]}
    if any(path.suffix == ".npz" for path in sources):
        provenance["labels"] = options.labels  # of rMD17 files; others have one set
    with DatasetWriter(output, provenance) as writer:
        for path in sources:
            if not path.is_file():
                raise DataError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}")
            read = import_npz if path.suffix == ".npz" else import_ase
            skipped, said = read(path, writer, options, progress)
            report = ImportReport(
                writer.frames, report.skipped + skipped, [*report.conversions, said]
            )
    return report
