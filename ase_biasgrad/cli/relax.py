"""`biasgrad relax`: one structure by an optimizer of ASE, or several together."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.options import (
    Checkpoints,
    Device,
    Dtype,
    Overwrite,
    check_writable,
    frame_slice,
)
from ase_biasgrad.files import refuse_existing, whole_file

if TYPE_CHECKING:
    from ase import Atoms
    from ase.filters import Filter

    from ase_biasgrad.calculators import BiasGradCalculator, Relaxation


class Optimizer(StrEnum):
    """Optimizers of ASE."""

    lbfgs = "lbfgs"
    bfgs = "bfgs"
    fire = "fire"


def relax(
    structures: Annotated[
        list[str],
        typer.Argument(help="files that ASE reads, or names of molecules; several relax together"),
    ],
    checkpoint: Checkpoints,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="any format that ASE writes, one file for all")
    ],
    fmax: Annotated[float, typer.Option(help="largest force left, eV/Å")] = 0.02,
    steps: Annotated[int, typer.Option(min=1, help="largest number of steps")] = 500,
    optimizer: Annotated[
        Optimizer, typer.Option(help="several structures take lbfgs")
    ] = Optimizer.lbfgs,
    cell: Annotated[bool, typer.Option("--cell", help="relax the cell as well")] = False,
    frames: Annotated[
        str | None,
        typer.Option(help="frames of each file, as a slice such as : or ::10; by default the last"),
    ] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(help="write the path here; of several structures, paths into this folder"),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float64",
    overwrite: Overwrite = False,
) -> None:
    """Relax structures, several together; exit code 1 if one does not converge.

    Of several structures each converges on its own. One that fails is named in the table at the
    end, and left out of the output.
    """
    from ase.filters import FrechetCellFilter

    from ase_biasgrad.calculators import BiasGradCalculator

    check_writable(output)
    if trajectory is not None and trajectory.resolve() == output.resolve():
        raise typer.BadParameter(f"{output}: is named for the result and for --trajectory")
    inputs: list[str | Path] = [*structures, *checkpoint]
    refuse_existing(output, overwrite, inputs)
    alone = len(structures) == 1 and frames is None
    if not alone:
        _check_several(output, optimizer)
    elif trajectory is not None:
        refuse_existing(trajectory, overwrite, inputs)
    named = _named_structures(structures, frames)
    paths: dict[str, Path] = {}
    if trajectory is not None and not alone:
        paths = _trajectories(trajectory, [name for name, _ in named], overwrite, inputs)
    targets = [FrechetCellFilter(atoms) if cell else atoms for _, atoms in named]
    calculator = BiasGradCalculator(list(checkpoint), device=device, dtype=dtype)
    if alone:
        named[0][1].calc = calculator
        converged = _relax_one(targets[0], optimizer, output, fmax, steps, trajectory)
    else:
        converged = _relax_together(named, targets, calculator, output, fmax, steps, paths)
    raise typer.Exit(0 if converged else 1)


def _relax_one(
    target: Atoms | Filter,
    optimizer: Optimizer,
    output: Path,
    fmax: float,
    steps: int,
    trajectory: Path | None,
) -> bool:
    """Relax one structure by an optimizer of ASE; True if it converged."""
    from ase import optimize

    algorithm = getattr(optimize, optimizer.value.upper())
    search = algorithm(target, trajectory=None if trajectory is None else str(trajectory))
    converged = bool(search.run(fmax=fmax, steps=steps))
    atoms = getattr(target, "atoms", target)
    _write(output, atoms)
    verdict = "converged" if converged else "NOT converged"
    typer.echo(
        f"{verdict} after {search.nsteps} steps: energy {atoms.get_potential_energy():.6f} eV, "
        f"written to {output}"
    )
    return converged


def _write(output: Path, atoms: Any) -> None:
    from ase.io import write
    from ase.io.formats import filetype

    with whole_file(output) as temporary:
        write(temporary, atoms, format=filetype(str(output), read=False))


def _named_structures(files: Sequence[str], frames: str | None) -> list[tuple[str, Atoms]]:
    """Structures and their names: of each file the last frame, or those of the slice `frames`."""
    from ase_biasgrad.data.sampling import starting_structure

    if frames is None:
        return [(name, starting_structure(name)) for name in files]
    return [named for name in files for named in _frames(name, frames)]


def _frames(name: str, frames: str) -> list[tuple[str, Atoms]]:
    from ase.io import read

    if not Path(name).is_file():
        raise FileNotFoundError(f"{name}: is no file, of which --frames {frames} could be taken")
    chosen = frame_slice(frames)
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


def _relax_together(
    structures: list[tuple[str, Atoms]],
    targets: list[Atoms | Filter],
    calculator: BiasGradCalculator,
    output: Path,
    fmax: float,
    steps: int,
    paths: dict[str, Path],
) -> bool:
    """Relax all, print a table and write those that did not fail; True if all have converged.

    `paths` are trajectories by the names of the structures, or empty.
    """
    from ase.io import Trajectory

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

        outcomes = relax_many(targets, calculator, fmax, steps, observe)
    results = []
    for name, structure, outcome in zip(names, atoms, outcomes, strict=True):
        if outcome.error is None:
            structure.info["relaxed_from"] = name
            structure.info["relaxed_converged"] = outcome.converged
            results.append(structure)
    if results:
        _write(output, results)
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


def _check_several(output: Path, optimizer: Optimizer) -> None:
    """Refuse what is for one structure alone."""
    from ase.io.formats import filetype, ioformats

    if optimizer is not Optimizer.lbfgs:
        raise typer.BadParameter(
            f"--optimizer {optimizer.value}: several structures relax by lbfgs; leave it out"
        )
    if ioformats[filetype(str(output), read=False)].single:
        raise typer.BadParameter(
            f"{output}: this format holds one structure; name one for several, such as relaxed.xyz"
        )


def _trajectories(
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
