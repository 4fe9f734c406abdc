"""Relaxations of many structures at once, for `biasgrad relax`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ase_biasgrad.files import refuse_existing, whole_file

if TYPE_CHECKING:
    from ase import Atoms

    from ase_biasgrad.calculators import BiasGradCalculator, Relaxation


def named_structures(files: Sequence[str], frames: str | None) -> list[tuple[str, Atoms]]:
    """Structures and their names: of each file the last frame, or those of the slice `frames`."""
    from ase_biasgrad.data.sampling import starting_structure

    if frames is None:
        return [(name, starting_structure(name)) for name in files]
    return [named for name in files for named in _frames(name, frames)]


def _frames(name: str, frames: str) -> list[tuple[str, Atoms]]:
    from ase.io import read
    from ase.io.formats import string2index

    if not Path(name).is_file():
        raise FileNotFoundError(f"{name}: is no file, of which --frames {frames} could be taken")
    try:
        chosen = string2index(frames)
    except ValueError:
        chosen = 0
    if not isinstance(chosen, slice):
        raise typer.BadParameter(f"--frames {frames!r} is no slice such as :, :1000 or ::10")
    try:
        found = read(name, ":", do_not_split_by_at_sign=True)
    except Exception as error:
        # readers of ASE raise whatever their format makes them
        said = f"{type(error).__name__}: {error}"
        raise ValueError(f"{name}: ASE cannot read it as structures: {said}") from error
    numbers = range(len(found))[chosen]
    if not numbers:
        raise ValueError(f"{name}: --frames {frames} leaves none of its {len(found)} frames")
    return [(f"{name}: frame {k}", found[k]) for k in numbers]


def relax_together(
    structures: list[tuple[str, Atoms]],
    calculator: BiasGradCalculator,
    output: Path,
    fmax: float,
    steps: int,
    cell: bool,
    paths: dict[str, Path],
) -> bool:
    """Relax all, print a table and write those that did not fail; True if all have converged.

    `paths` are trajectories by the names of the structures, or empty.
    """
    from ase.filters import FrechetCellFilter
    from ase.io import Trajectory, write
    from ase.io.formats import filetype

    from ase_biasgrad.calculators import relax_many
    from ase_biasgrad.progress import progress_bar

    names, atoms = zip(*structures, strict=True)
    for path in paths.values():
        path.parent.mkdir(exist_ok=True)
    written: set[int] = set()
    with progress_bar(description="evaluations") as done:

        def observe(index: int, structure: Atoms) -> None:
            done.update(1)
            if paths:
                mode = "a" if index in written else "w"
                written.add(index)
                with Trajectory(str(paths[names[index]]), mode, structure) as path:
                    path.write()

        targets = [FrechetCellFilter(each) if cell else each for each in atoms]
        outcomes = relax_many(targets, calculator, fmax, steps, observe)
    results = []
    for name, structure, outcome in zip(names, atoms, outcomes, strict=True):
        if outcome.error is None:
            structure.info["relaxed_from"] = name
            structure.info["relaxed_converged"] = outcome.converged
            results.append(structure)
    if results:
        with whole_file(output) as temporary:
            write(temporary, results, format=filetype(str(output), read=False))
    _table(names, atoms, outcomes)
    converged, failed = sum(outcome.converged for outcome in outcomes), len(names) - len(results)
    where = f"{len(results)} written to {output}" if results else "nothing is written"
    typer.echo(f"{converged} of {len(names)} converged, {failed} failed; {where}")
    return converged == len(names)


def _table(names: Sequence[str], atoms: Sequence[Atoms], outcomes: Sequence[Relaxation]) -> None:
    width = max(9, *map(len, names))
    typer.echo(f"{'structure':{width}s}  {'':13s}  steps   energy, eV  largest force, eV/Å")
    for name, structure, outcome in zip(names, atoms, outcomes, strict=True):
        if outcome.error is not None:
            typer.echo(f"{name:{width}s}  FAILED         {outcome.steps:5d}  {outcome.error}")
            continue
        verdict = "converged" if outcome.converged else "NOT converged"
        found = f"{structure.get_potential_energy():11.5f}  {outcome.fmax:.5f}"
        typer.echo(f"{name:{width}s}  {verdict:13s}  {outcome.steps:5d}  {found}")


def check_output_of_many(output: Path) -> None:
    """Refuse a format that holds one structure alone."""
    from ase.io.formats import filetype, ioformats

    if ioformats[filetype(str(output), read=False)].single:
        raise typer.BadParameter(
            f"{output}: this format holds one structure; name one for several, such as relaxed.xyz"
        )


def trajectories_of(
    folder: Path, names: Sequence[str], overwrite: bool, inputs: Sequence[str | Path]
) -> dict[str, Path]:
    """A trajectory in `folder` for each structure, named by its file; none there unasked."""
    if folder.exists() and not folder.is_dir():
        raise typer.BadParameter(
            f"{folder}: is a file; of several structures --trajectory names a folder"
        )
    paths: dict[str, Path] = {}
    for name in names:
        file, _, frame = name.partition(": frame ")
        path = folder / f"{Path(file).stem}{frame and '_' + frame}.traj"
        for other, taken in paths.items():
            if taken == path:
                raise typer.BadParameter(
                    f"{path}: would be the trajectory of {other} and of {name}; rename one of them"
                )
        paths[name] = path
    if folder.is_dir():
        for path in paths.values():
            refuse_existing(path, overwrite, inputs)
    else:
        refuse_existing(folder, overwrite)
    return paths
