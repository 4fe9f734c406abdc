"""`biasgrad compare-levels`: do sets of data differ by composition alone?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_biasgrad.cli.options import CheckpointFile, Device, Method, Overwrite
from ase_biasgrad.cli.potential import resident_frames
from ase_biasgrad.files import refuse_existing

if TYPE_CHECKING:
    from ase_biasgrad.levels_of_theory import FTest, LevelComparison


def compare_levels(
    checkpoint: CheckpointFile,
    data: Annotated[
        list[Path], typer.Argument(help="datasets, each of one level of theory named as its file")
    ],
    by: Annotated[
        str | None,
        typer.Option(
            help="label of the frames, a number or text, that tells their level in one dataset"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="checkpoint with a reference for each level"),
    ] = None,
    method: Method = "least-squares",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Fit a bias to each level of theory, and test whether they differ by composition alone."""
    import numpy as np

    from ase_biasgrad.checkpoint import load_checkpoint, save_checkpoint
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.training.stages.levels import fit_bias_by_level, frames_by_label

    if output is not None:
        refuse_existing(output, overwrite, [checkpoint, *data])
    if by is not None and len(data) > 1:
        raise typer.BadParameter("--by tells the levels of one dataset; name one, or leave it out")
    loaded = load_checkpoint(checkpoint)
    datasets = {path.stem: Dataset(path) for path in data}
    if len(datasets) < len(data):
        raise typer.BadParameter("levels are named by their files: two of them have one name")
    if by is not None:
        only = datasets.popitem()[1]
        chosen = {name: (only, frames) for name, frames in frames_by_label(only, by).items()}
    else:
        chosen = {name: (d, np.arange(len(d))) for name, d in datasets.items()}
    frames = {name: resident_frames(loaded, *one, device) for name, one in chosen.items()}
    found = fit_bias_by_level(loaded.potential, frames, method)  # type: ignore[arg-type]
    for line in told(found):
        typer.echo(line)
    if output is not None:
        for name, bias in found.biases.items():
            loaded.potential.add_reference(name, bias)
        save_checkpoint(output, loaded.potential.cpu(), loaded.training)
        typer.echo(f"checkpoint with references {', '.join(found.biases)}: {output}")


def told(found: LevelComparison) -> list[str]:
    """Lines on the frames of each level, both tests, and what they mean."""
    lines = [
        f"{name}: {bias.fit_report['frames']} frames, {bias.fit_report['compositions']} "
        f"compositions, spread within them {_mev(bias.fit_report['noise'])}"
        for name, bias in found.biases.items()
    ]
    lines.append(f"energies per element of each level against shared ones: {_test(found.elements)}")
    lines.append(
        f"dependence on the geometry that is not the same for all: {_test(found.geometry)}, "
        f"{_mev(found.geometry_rms)} per atom"
    )
    if found.by_composition_alone is None:
        lines.append(
            "too few frames of different levels have the same composition to tell if geometry "
            "matters"
        )
    elif found.by_composition_alone:
        lines.append(
            "the levels differ by composition alone, as far as this model can tell: they may train "
            "one potential, with a bias for each"
        )
    else:
        lines.append("the levels differ by more than composition; by feature, alone:")
        ranked = sorted(found.dependence.items(), key=lambda item: -item[1])
        lines += [f"  {name}: {_mev(size)} per atom" for name, size in ranked[:10]]
    return lines


def _mev(energy: float | None) -> str:
    return "unknown" if energy is None else f"{1000 * energy:.2f} meV"


def _test(test: FTest) -> str:
    if test.f != test.f:
        return "no degrees of freedom to test"
    known = test.probability == test.probability
    return f"F{test.degrees} = {test.f:.3g}, p " + (
        f"= {test.probability:.2g}" if known else "not determined"
    )
