"""`biasgrad benchmark qm9`: how well the SE(3)-Transformer predicts properties of molecules."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ase_biasgrad.cli.options import Device, Results


class Readout(StrEnum):
    """Readout of a property from the atoms."""

    mean = "mean"
    dipole = "dipole"


def qm9(
    data: Annotated[Path, typer.Argument(help="dataset (`biasgrad data qm9`)")],
    label: Annotated[
        str | None, typer.Option("--property", help="mu, alpha, homo, lumo, gap or Cv; to train")
    ] = None,
    output: Results = Path("qm9"),
    train: Annotated[int, typer.Option(min=2, help="molecules; the paper's number")] = 100_000,
    validation: Annotated[int, typer.Option(min=1, help="molecules")] = 18_000,
    test: Annotated[int | None, typer.Option(min=1, help="molecules (default: the rest)")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 50,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    learning_rate: Annotated[float, typer.Option(help="largest")] = 1e-3,
    layers: Annotated[int, typer.Option(min=1, help="the paper's number")] = 7,
    channels: Annotated[int, typer.Option(min=1, help="of each degree")] = 32,
    heads: Annotated[int, typer.Option(min=1)] = 8,
    max_degree: Annotated[int, typer.Option(min=0, help="highest degree")] = 3,
    cutoff: Annotated[
        float | None, typer.Option(help="edges between all pairs within it, Å (default: bonds)")
    ] = None,
    readout: Annotated[
        Readout | None,
        typer.Option(
            help="function of the atoms' mean, as in the paper, or length of their dipole "
            "(default: dipole for mu, else mean)",
            show_default=False,
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            help="processor time (of all threads) that ends the training, if epochs do not"
        ),
    ] = None,
    low_memory: Annotated[
        bool, typer.Option(help="recompute kernels in the backward pass")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="split, weights and order")] = 0,
    device: Device = "auto",
) -> None:
    """Train on a property, if one is named, and print the table of all results so far.

    The same command goes on with a training that was interrupted; `biasgrad predict` takes the
    network that it leaves.
    """
    from ase_biasgrad.machine import torch_device
    from ase_biasgrad.training.benchmarks.loop import TrainingOptions
    from ase_biasgrad.training.benchmarks.qm9.network import QM9Options
    from ase_biasgrad.training.benchmarks.qm9.table import run, table

    if label is not None:
        sizes = {"train": train, "validation": validation}
        chosen = readout or (Readout.dipole if label == "mu" else Readout.mean)
        network = QM9Options(
            layers, channels, heads, max_degree=max_degree, low_memory=low_memory,
            readout=chosen.value,
        )  # fmt: skip
        run(
            data,
            label,
            network,
            TrainingOptions(
                epochs, batch_size, learning_rate, ema_decay=0.995, minutes=minutes, seed=seed
            ),
            sizes if test is None else {**sizes, "test": test},
            cutoff,
            output,
            typer.echo,
            torch_device(device),
        )
    typer.echo(table(data, output))
