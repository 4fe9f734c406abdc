"""`biasgrad committee`: several potentials, or one with readouts, with calibrated spreads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ase_biasgrad.cli.options import Overwrite
from ase_biasgrad.files import refuse_existing


def committee(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="run folders of the same data and data.seed, each with another seed; or a single "
            "run, whose potential gets readouts"
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="committee (*.safetensors)")],
    report: Annotated[
        Path | None, typer.Option(help="folder for the reliability diagram and its numbers")
    ] = None,
    readouts: Annotated[
        int, typer.Option(min=2, help="of a single run: last layers that its spread is taken over")
    ] = 4,
    overwrite: Overwrite = False,
) -> None:
    """Make a committee whose spreads are scaled to errors on validation frames."""
    refuse_existing(output, overwrite)
    from ase_biasgrad.training.evaluation.committee import make_committee
    from ase_biasgrad.training.evaluation.report import reliability_table, write_reliability

    found = make_committee(runs, output, readouts=readouts)
    typer.echo(reliability_table(found))
    if report is not None:
        write_reliability(report, found)
        typer.echo(f"report: {report}")
    typer.echo(f"committee: {output}")
