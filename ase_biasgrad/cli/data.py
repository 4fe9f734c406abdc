"""`biasgrad data …`: make, import and look at datasets."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_biasgrad.cli.options import (
    ARGUMENTS,
    CALCULATORS,
    Overwrite,
    Seed,
    Structure,
    made_calculator,
)
from ase_biasgrad.files import refuse_existing

if TYPE_CHECKING:
    from ase_biasgrad.data.importers import ImportReport


class Label(StrEnum):
    """Labels that we know the units of."""

    energy = "energy"
    forces = "forces"
    stress = "stress"


app = typer.Typer(no_args_is_help=True)
Output = Annotated[Path, typer.Option("--output", "-o", help="new dataset file")]
Labels = Annotated[str, typer.Option(help="label set of rMD17 files: revised or original")]


@app.command("import")
def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="npz, HDF5, extxyz, ASE databases, folders of DeePMD, … of any number"),
    ],
    output: Output,
    energy_unit: Annotated[str | None, typer.Option(help="eV, kcal/mol, Hartree, …")] = None,
    length_unit: Annotated[str | None, typer.Option(help="Angstrom, Bohr, nm")] = None,
    labels: Labels = "revised",
    key: Annotated[
        list[str] | None,
        typer.Option(
            help="key of a label in the files, such as energy=dft_energy; other names are imported "
            "without conversion"
        ),
    ] = None,
    without: Annotated[
        list[Label] | None, typer.Option(help="a label to leave out; may be repeated")
    ] = None,
    skip_unlabelled: Annotated[
        bool, typer.Option(help="leave out frames without any label")
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="import implausible numbers, too")
    ] = False,
    format: Annotated[
        str | None, typer.Option(help="ASE's name of the format: extxyz, vasp-out, …")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Import reference data into one dataset file, in eV and Å."""
    from ase_biasgrad.data.importers import ImportOptions, import_files

    refuse_existing(output, overwrite, files)
    options = ImportOptions(
        labels,
        energy_unit,
        length_unit,
        dict(_pair(text) for text in key or []),
        skip_unlabelled,
        tuple(label.value for label in without or []),
        accept,
        format,
    )
    _say(import_files(files, output, options), output)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"--key {text!r}: write NAME=KEY, such as energy=dft_energy")
    return name, value


@app.command()
def md17(
    molecule: Annotated[str, typer.Argument(help="such as ethanol")],
    output: Output,
    revised: Annotated[bool, typer.Option("--revised", help="rMD17")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="a file at hand instead of a download")
    ] = None,
    labels: Labels = "revised",
    overwrite: Overwrite = False,
) -> None:
    """Import a molecule of MD17 or revised MD17."""
    from ase_biasgrad.data.sets.md17 import import_md17

    refuse_existing(output, overwrite, [source])
    _say(import_md17(molecule, output, revised, source, labels), output)


@app.command()
def qm7(
    output: Output,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="qm7.mat at hand instead of a download; other .mat or .npz files with its "
            "arrays, or a folder of xyz files with energies",
        ),
    ] = None,
    energy_unit: Annotated[str | None, typer.Option(help="of other sources")] = None,
    length_unit: Annotated[str | None, typer.Option(help="of other .mat and .npz files")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Import QM7: atomization energies of small molecules, with folds for cross-validation."""
    from ase_biasgrad.data.sets.qm7 import import_qm7

    refuse_existing(output, overwrite, [source])
    _say(import_qm7(output, source, energy_unit, length_unit), output)


@app.command()
def sample(
    structure: Structure,
    output: Output,
    calculator: Annotated[str, typer.Option(help=CALCULATORS)] = "gfn2-xtb",
    arguments: Annotated[list[str] | None, typer.Option(help=ARGUMENTS)] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="K; may be repeated")] = None,
    frames: Annotated[int, typer.Option(min=1, help="kept at each temperature")] = 1000,
    interval: Annotated[int, typer.Option(min=1, help="steps between kept frames")] = 10,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    friction: Annotated[float, typer.Option(help="1/fs")] = 0.02,
    equilibration: Annotated[int, typer.Option(min=0, help="steps before the first")] = 500,
    relax: Annotated[bool, typer.Option(help="relax the structure first")] = True,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Make reference data by Langevin dynamics."""
    from ase_biasgrad.data import sampling

    refuse_existing(output, overwrite, [structure])
    atoms = sampling.starting_structure(structure)
    labeller, keywords = made_calculator(calculator, arguments)
    if relax:
        atoms = sampling.relaxed(atoms, labeller)
    sampling.sample(
        atoms,
        labeller,
        output,
        temperatures=temperature or [500.0],
        frames=frames,
        interval=interval,
        timestep=timestep,
        friction=friction,
        equilibration=equilibration,
        seed=seed,
        provenance={"calculator": calculator, "arguments": keywords, "structure": structure},
    )
    typer.echo(f"{output}: {frames * len(temperature or [500.0])} frames by {calculator}")


@app.command()
def qm9(
    output: Output,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from", help="dsgdb9nsd.xyz.tar.bz2 at hand instead of a download, or an npz extract"
        ),
    ] = None,
    uncharacterized: Annotated[
        Path | None, typer.Option(help="uncharacterized.txt at hand instead of a download")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Import QM9: energies in eV, six properties in the units of the literature."""
    from ase_biasgrad.data.sets.qm9 import import_qm9

    refuse_existing(output, overwrite, [source, uncharacterized])
    _say(import_qm9(output, source, uncharacterized), output)


@app.command()
def nbody(
    output: Annotated[Path, typer.Option("--output", "-o", help="new file (HDF5)")],
    variant: Annotated[
        str, typer.Option(help="paper (in a box, 5000/1000/1000) or egnn (3000/2000/2000)")
    ] = "paper",
    seed: Seed = 0,
    size: Annotated[
        list[str] | None,
        typer.Option(help="simulations of a split: train=200, validation=…, test=…"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Simulate the charged particles of the N-body benchmark."""
    from ase_biasgrad.data.sets.nbody import SPLITS, open_dataset, write_dataset

    refuse_existing(output, overwrite)
    sizes: dict[str, int] = {}
    for text in size or []:
        split, _, number = text.partition("=")
        if split not in SPLITS or not number.isdigit() or int(number) < 1:
            raise typer.BadParameter(f"--size {text!r}: write train=…, validation=… or test=…")
        sizes[split] = int(number)
    write_dataset(output, variant, seed, sizes, progress=True)
    data = open_dataset(output)
    written = ", ".join(f"{len(data.read(split))} {split}" for split in SPLITS)
    typer.echo(f"{output}: simulations of {data.system.frames} frames: {written}")


@app.command()
def info(
    path: Annotated[Path, typer.Argument(help="dataset file")],
    check: Annotated[
        bool,
        typer.Option("--check", help="compare the content with the digests stored in the file"),
    ] = False,
) -> None:
    """Show the content of a dataset."""
    import json

    import numpy as np

    from ase_biasgrad.data.dataset import LABELS, Dataset, formula
    from ase_biasgrad.data.statistics import label_statistics

    if check:
        _check(path)
    units = {"energy": " eV", "forces": " eV/Å", "stress": " eV/Å³"}
    with Dataset(path) as dataset:
        groups = dataset.groups()
        labels = [label for label in LABELS if any(group.has(label) for group in groups)]
        labels += sorted({name for group in groups for name in group.other_labels()})
        typer.echo(f"{path}: {len(dataset)} frames; labels: {', '.join(labels) or 'none'}")
        counts = dataset.compositions()
        compositions, frames = np.unique(counts, axis=0, return_counts=True)
        for composition, number in list(zip(compositions, frames, strict=True))[:20]:
            typer.echo(f"  {formula(composition)}: {number} frames, {composition.sum()} atoms each")
        if len(compositions) > 20:
            typer.echo(f"  … and {len(compositions) - 20} more compositions")
        for label in labels:
            if (texts := dataset.texts(label)) is not None:
                some = f"in {dataset.count(label)} of {len(dataset)} frames"
                typer.echo(f"  {label}: {some}, one of {', '.join(texts)}")
                continue
            found = label_statistics(dataset, label)
            some = "" if found.frames == len(dataset) else f"in {found.frames} frames, "
            typer.echo(
                f"  {label}: {some}mean {found.mean:.10g}, standard deviation "
                f"{found.deviation:.6g}, from {found.least:.10g} to {found.largest:.10g}"
                + units.get(label, "")
            )
        typer.echo(f"  provenance: {json.dumps(dataset.provenance, ensure_ascii=False)}")
        typer.echo(f"  sha256 of the content: {dataset.hash()}")


def _check(path: Path) -> None:
    from ase_biasgrad.data.dataset import DataError
    from ase_biasgrad.data.digests import damages

    if found := damages(path):
        raise DataError("\n  ".join([f"{path}: is not as it was written:", *found]))
    typer.echo(f"{path}: all content is as it was written")


def _say(report: ImportReport, output: Path) -> None:
    for conversion in report.conversions:
        typer.echo(conversion)
    if report.skipped:
        typer.echo(f"left out {report.skipped} frames without labels")
    for question in report.accepted:
        typer.echo(f"accepted: {question}")
    typer.echo(f"{output}: {report.frames} frames")
