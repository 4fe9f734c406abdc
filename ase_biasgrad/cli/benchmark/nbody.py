"""`biasgrad benchmark nbody`: how well networks predict the motion of charged particles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_biasgrad.cli.options import Device, Results


def nbody(
    data: Annotated[Path, typer.Argument(help="simulations (`biasgrad data nbody`)")],
    output: Results = Path("nbody"),
    network: Annotated[
        list[str] | None, typer.Option(help="to train; may be repeated (default: none)")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="may be repeated")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="passes over the simulations")] = 100,
    batch_size: Annotated[int, typer.Option(min=1)] = 64,
    learning_rate: Annotated[float, typer.Option(help="largest")] = 2e-3,
    device: Device = "auto",
) -> None:
    """Train networks, if any are named, and print the table of all results so far.

    The same command goes on with a training that was interrupted; `biasgrad predict` takes the
    networks that it leaves.
    """
    from ase_biasgrad.data.sets.nbody import open_dataset
    from ase_biasgrad.machine import torch_device
    from ase_biasgrad.training.benchmarks.loop import TrainingOptions
    from ase_biasgrad.training.benchmarks.nbody.table import NETWORKS, run, table

    if unknown := set(network or []) - set(NETWORKS):
        raise typer.BadParameter(f"--network {sorted(unknown)}: choose of {list(NETWORKS)}")
    simulations = open_dataset(data)
    for name in network or []:
        for one in seed or [0]:
            options = TrainingOptions(epochs, batch_size, learning_rate, seed=one)
            typer.echo(f"{name}, seed {one}")
            run(simulations, name, options, output, typer.echo, torch_device(device))
    typer.echo(table(simulations, output))
