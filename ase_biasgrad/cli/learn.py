"""`biasgrad learn`: from structures and a reference calculator to a potential."""

from __future__ import annotations

import functools
import os
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.options import ARGUMENTS, CALCULATORS, keyword_arguments

if TYPE_CHECKING:
    from ase_biasgrad.training.active.folder import LearnFolder
    from ase_biasgrad.training.active.jobs import MakeExecutor


class Explorer(StrEnum):
    """Ways to meet structures."""

    md = "md"
    displacements = "displacements"
    relaxation = "relaxation"
    strain = "strain"
    neb = "neb"


def learn(
    structures: Annotated[
        list[str] | None, typer.Argument(help="files that ASE reads, or names of molecules")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="new folder")] = Path("learned"),
    calculator: Annotated[str, typer.Option(help=f"the reference: {CALCULATORS}")] = "gfn2-xtb",
    arguments: Annotated[list[str] | None, typer.Option(help=ARGUMENTS)] = None,
    temperature: Annotated[list[float] | None, typer.Option(help="K; may be repeated")] = None,
    budget: Annotated[int, typer.Option(min=10, help="labels in all")] = 500,
    initial: Annotated[int, typer.Option(min=10, help="labels before the first training")] = 20,
    per_round: Annotated[
        int | None, typer.Option(min=1, help="labels of a round; an eighth of the budget")
    ] = None,
    members: Annotated[int, typer.Option(min=2, help="of the committee")] = 4,
    explorer: Annotated[
        list[Explorer] | None, typer.Option(help="may be repeated; md by default")
    ] = None,
    trajectories: Annotated[
        int,
        typer.Option(min=1, help="at each temperature: from the structure, then the newest frames"),
    ] = 4,
    steps: Annotated[int, typer.Option(min=1, help="of each trajectory")] = 2000,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    friction: Annotated[float, typer.Option(help="1/fs")] = 0.02,
    limit: Annotated[
        float,
        typer.Option(help="eV/Å; explorations are unsure above it, and end at three times as much"),
    ] = 0.2,
    displacement: Annotated[
        float, typer.Option(help="largest root mean square of random displacements, Å")
    ] = 0.15,
    strain: Annotated[float, typer.Option(help="largest strain of cells")] = 0.05,
    training_steps: Annotated[
        int, typer.Option(min=1, help="steps of the training of a member in a round")
    ] = 1500,
    final_steps: Annotated[
        int, typer.Option(min=1, help="steps of the training of the final potential")
    ] = 6000,
    option: Annotated[
        list[str] | None,
        typer.Option(help="of trainings, such as backbone.features=64; may be repeated"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; one a core by default")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(help="address of a running Dask cluster, in place of processes")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="go on in this folder")] = None,
) -> None:
    """Make a potential: explore, label what the potential is not sure of, train, and again.

    Everything that is done is kept in the folder; after an interruption --resume goes on.
    """
    if (resume is None) == (not structures):
        raise typer.BadParameter("name structures to begin with, or --resume FOLDER")
    from ase_biasgrad.training.active.folder import LearnFolder
    from ase_biasgrad.training.active.options import LearnOptions

    if resume is not None:
        folder = LearnFolder.existing(resume)
    else:
        from ase_biasgrad.data.sampling import starting_structure

        keywords = keyword_arguments(arguments)
        options = LearnOptions(
            calculator=calculator,
            arguments=keywords,
            temperatures=tuple(temperature or [300.0]),
            budget=budget,
            initial=min(initial, budget),
            per_round=per_round or max(1, (budget - initial) // 8),
            members=members,
            explorers=tuple(dict.fromkeys(e.value for e in explorer or [Explorer.md])),
            trajectories=trajectories,
            steps=steps,
            timestep=timestep,
            friction=friction,
            limit=limit,
            displacement=displacement,
            strain=strain,
            training_steps=training_steps,
            final_steps=final_steps,
            seed=seed,
            config=_training_options(option or []),
        )
        assert structures is not None  # by the check above
        atoms = [starting_structure(name) for name in structures]
        folder = LearnFolder.new(output, atoms, options)
    _run(folder, _executor(folder, workers, dask))


def _executor(folder: LearnFolder, workers: int | None, dask: str | None) -> MakeExecutor:
    from ase_biasgrad.data.labelling import Reference
    from ase_biasgrad.training.active.jobs import dask_executor, process_executor

    options = folder.options()
    reference = Reference(options.calculator, options.arguments)
    if dask is not None:
        return dask_executor(dask, reference)
    return process_executor(workers or os.cpu_count() or 1, reference)


def _run(folder: LearnFolder, make_executor: MakeExecutor) -> None:
    from ase_biasgrad.calculators import BiasGradCalculator
    from ase_biasgrad.training.active.jobs import running
    from ase_biasgrad.training.active.learn import learn as go_on
    from ase_biasgrad.training.active.report import rounds_table, write_learning_report

    make = functools.partial(BiasGradCalculator, device="cpu")
    try:
        with running(make_executor) as jobs:
            learned = go_on(folder, jobs, make, typer.echo)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with: biasgrad learn --resume {folder.path}", err=True)
        raise typer.Exit(130) from None
    report = write_learning_report(folder, learned)
    typer.echo(rounds_table(learned.rounds))
    typer.echo(f"potential: {learned.potential}; committee: {learned.committee}")
    typer.echo(f"data: {learned.data}; report: {report}")


def _training_options(given: list[str]) -> dict[str, Any]:
    """Options of trainings, group by group, from `group.name=value`."""
    from ase_biasgrad.training.config import plain_yaml

    found: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        group, dot, name = key.partition(".")
        if not equals or not dot or not name or group in ("data", "fine_tuning"):
            raise typer.BadParameter(f"--option {text!r}: write it as backbone.features=64")
        below = found.setdefault(group, {})
        *parents, last = name.split(".")
        for parent in parents:
            below = below.setdefault(parent, {})
        below[last] = plain_yaml(value, f"--option {text!r}")
    return found
