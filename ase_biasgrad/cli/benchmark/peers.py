"""`biasgrad benchmark peers`: other packages' potentials beside ours, in the same minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def peers(
    data: Annotated[Path, typer.Argument(help="dataset of one molecule (`biasgrad data …`)")],
    test_data: Annotated[
        Path | None, typer.Option(help="dataset to test on (default: other frames of the first)")
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="folder of results; what is there is not repeated"),
    ] = Path("peers"),
    environments: Annotated[
        Path, typer.Option(help="folder for an environment of each peer, made if it is not there")
    ] = Path("peer-environments"),
    peer: Annotated[
        list[str] | None, typer.Option(help="by name, may be repeated (default: all)")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.01, help="of training, on one core of the processor")
    ] = 10.0,
    train: Annotated[int, typer.Option(min=1, help="training frames")] = 950,
    validation: Annotated[int, typer.Option(min=1, help="validation frames")] = 50,
    test: Annotated[int, typer.Option(min=1, help="test frames")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="split, weights and order")] = 0,
    least_epochs: Annotated[
        int, typer.Option(min=1, help="a network is made smaller until so many fit into the time")
    ] = 10,
) -> None:
    """Train each peer for the same minutes of one core, test all on the same frames.

    Each is trained with its authors' settings, in an environment of its own; a peer that cannot be
    installed or fails is a row that says so. Times are of the processor.
    """
    from ase_biasgrad.machine import hardware, versions
    from ase_biasgrad.training.benchmarks import tables
    from ase_biasgrad.training.benchmarks.peers.comparison import (
        COLUMNS,
        all_peers,
        compare,
        driver_of,
    )
    from ase_biasgrad.training.benchmarks.peers.frames import parts
    from ase_biasgrad.training.benchmarks.peers.measurement import Task

    chosen = [driver_of(name) for name in peer or all_peers()]
    frames = parts(data, test_data, train, validation, test, seed)
    task = Task(*frames, minutes=minutes, seed=seed, least_epochs=least_epochs)
    typer.echo(f"{versions()}\n{hardware('cpu', 1)}", err=True)

    def report(line: str) -> None:
        typer.echo(line, err=True)

    rows = list(compare(task, chosen, output, environments, report))
    typer.echo(tables.table(COLUMNS, [row.cells() for row in rows]))
