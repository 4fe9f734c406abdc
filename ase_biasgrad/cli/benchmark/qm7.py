"""`biasgrad benchmark qm7`: what each step from a dense network to a potential buys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_biasgrad.cli.options import Device, Overwrite, Results, Seed


def qm7(
    data: Annotated[Path, typer.Argument(help="dataset with energies (`biasgrad data qm7`)")],
    output: Results = Path("qm7"),
    row: Annotated[
        list[str] | None,
        typer.Option(help="model (row of the table); may be repeated (default: all)"),
    ] = None,
    fold: Annotated[
        list[int] | None,
        typer.Option(min=0, help="test on this fold; may be repeated (default: all)"),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(help="processor time (of all threads) of each network that learns in steps"),
    ] = 20.0,
    size: Annotated[
        list[int] | None,
        typer.Option(min=1, help="train on so many molecules instead of all; may be repeated"),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Cross-validate each model of the QM7 table; print the table of all results so far.

    The same command goes on with a training that was interrupted; `biasgrad predict` takes the
    networks that it leaves.
    """
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.files import refuse_existing, write_whole
    from ase_biasgrad.machine import torch_device
    from ase_biasgrad.training.benchmarks.qm7 import ladder
    from ase_biasgrad.training.benchmarks.qm7.table import table, write_learning_curves
    from ase_biasgrad.training.benchmarks.qm7.task import molecules_of
    from ase_biasgrad.training.benchmarks.results import Store

    chosen, store = ladder.chosen_rows(row or []), Store(output, "qm7")
    drawn = output / "table.md", output / "learning_curves.svg"
    if not store.results():  # these are then not of earlier runs
        for path in filter(Path.exists, drawn):
            refuse_existing(path, overwrite)
    molecules = molecules_of(Dataset(data, in_memory=True))
    available = range(int(molecules.folds.max()) + 1)
    if missing := sorted(set(fold or []) - set(available)):
        raise typer.BadParameter(f"--fold {missing[0]}: {data} has folds 0 to {available[-1]}")
    sizes: list[int | None] = [*size] if size else [None]
    for one in chosen:
        for tested in fold or available:
            for trained_on in sizes:
                result = ladder.run(
                    one,
                    molecules,
                    tested,
                    store,
                    trained_on,
                    minutes,
                    seed,
                    typer.echo,
                    torch_device(device),
                )
                figures = result.figures
                typer.echo(
                    f"{one.key}, fold {tested}, {figures['trained_on']} molecules: MAE "
                    f"{figures['mae']:.2f}, RMSE {figures['rmse']:.2f} kcal/mol, "
                    f"{figures['seconds']:.0f} s. {figures['note']}"
                )
    results, rows = store.results(molecules.digest), ladder.rows()
    text = table(rows, results)
    write_whole(drawn[0], text + "\n")
    write_learning_curves(rows, results, drawn[1])
    machines = sorted({result.figures["hardware"] for result in results})
    typer.echo(f"errors in kcal/mol, on {'; '.join(machines)}\n{text}")
    typer.echo(f"{drawn[0]}, {drawn[1]}")
