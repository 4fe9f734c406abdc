"""`biasgrad benchmark md17`: two stages against joint losses, molecule by molecule."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def md17(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="folder; finished rows in it are kept")
    ] = Path("md17"),
    data: Annotated[
        Path | None, typer.Option(help="folder with rMD17's npz files (default: downloaded)")
    ] = None,
    molecule: Annotated[
        list[str] | None, typer.Option(help="may be repeated (default: six of rMD17)")
    ] = None,
    backbone: Annotated[
        list[str] | None, typer.Option(help="may be repeated (default: painn)")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="revised, original; may be repeated (default: both)")
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option(help="energy weights of joint losses; may be repeated")
    ] = None,
    joint: Annotated[bool, typer.Option(help="joint losses, or two stages alone")] = True,
    seed: Annotated[list[int] | None, typer.Option(help="may be repeated (default: 0)")] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 1000,
    minutes: Annotated[
        float | None, typer.Option(min=0.01, help="time of each training, instead of epochs")
    ] = None,
    train: Annotated[int, typer.Option(min=1, help="training frames")] = 950,
    validation: Annotated[int, typer.Option(min=1, help="validation frames")] = 50,
    test: Annotated[int, typer.Option(min=1, help="test frames")] = 1000,
    batch_size: Annotated[int, typer.Option(min=1)] = 10,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-9, help="the largest (default: that of `train`)")
    ] = None,
    elastic_weight: Annotated[
        float | None, typer.Option(min=0, help="of the force loss (default: that of `train`)")
    ] = None,
    arguments: Annotated[
        str, typer.Option(help="of the backbones, as YAML: '{features: 64}'")
    ] = "{}",
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda")] = "auto",
) -> None:
    """Joint losses (energies centred) beside two stages with each bias fit, on test frames."""
    from ase_biasgrad.machine import hardware, versions
    from ase_biasgrad.training.benchmarks import md17 as md17_table
    from ase_biasgrad.training.benchmarks import tables
    from ase_biasgrad.training.config import plain_yaml

    given = plain_yaml(arguments, "--arguments")
    if not isinstance(given, dict):
        raise ValueError(f"--arguments {arguments!r}: write them as '{{features: 64}}'")
    default = md17_table.Study()
    study = md17_table.Study(
        tuple(molecule or default.molecules),
        tuple(backbone or default.backbones),
        tuple(labels or default.labels),
        tuple((weight or default.weights) if joint else ()),
        tuple(seed or default.seeds),
        epochs=epochs,
        minutes=minutes,
        train=train,
        validation=validation,
        test=test,
        batch_size=batch_size,
        learning_rate=learning_rate or default.learning_rate,
        elastic_weight=default.elastic_weight if elastic_weight is None else elastic_weight,
        arguments=given,
        accelerator=accelerator,
    )
    typer.echo(f"{versions()}\n{hardware()}\n{tables.head(md17_table.COLUMNS)}")
    last = ""
    for row in md17_table.run_study(study, output, data):
        if row.training.molecule != last and row.training.molecule in md17_table.PUBLISHED:
            typer.echo(tables.line(md17_table.published_row(row.training.molecule).cells()))
        last = row.training.molecule
        typer.echo(tables.line(row.cells()))
