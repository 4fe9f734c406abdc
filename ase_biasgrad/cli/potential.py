"""Commands about a potential at hand: `fit-bias`, `evaluate`, `convert`, `info`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ase_biasgrad.cli.options import Device, Overwrite
from ase_biasgrad.files import file_hash, refuse_existing

if TYPE_CHECKING:
    from ase_biasgrad.bias import Bias
    from ase_biasgrad.checkpoint import Checkpoint
    from ase_biasgrad.training.frames.device_frames import DeviceFrames

CheckpointPath = Annotated[Path, typer.Argument(help="checkpoint (*.safetensors)")]
DataPath = Annotated[Path, typer.Argument(help="dataset (HDF5) of `biasgrad data …`")]
Frames = Annotated[
    str | None,
    typer.Option(help="frames to use, as a slice such as :1000 or ::10; all by default"),
]


def fit_bias(
    checkpoint: CheckpointPath,
    data: DataPath,
    output: Annotated[Path, typer.Option("--output", "-o", help="new checkpoint")],
    method: Annotated[
        str,
        typer.Option(help="auto, mean, median, efwt, least-squares, least-absolute-deviation"),
    ] = "auto",
    frames: Frames = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Run the bias stage alone; forces and stress stay the same, bit for bit."""
    from ase_biasgrad.checkpoint import save_checkpoint
    from ase_biasgrad.metrics import error_norms
    from ase_biasgrad.training.stages import bias as bias_stage

    refuse_existing(output, overwrite, [checkpoint, data])
    loaded, resident = _loaded(checkpoint, data, frames, device)
    left = bias_stage.fit_bias(loaded.potential, resident, method)
    history = {
        **loaded.training,
        "bias_fitted_on": {"sha256": file_hash(data), "frames": len(resident)},
    }
    save_checkpoint(output, loaded.potential.cpu(), history)
    bias = loaded.potential.bias
    fit = {key: value for key, value in bias.fit_report.items() if key != "reference"}
    typer.echo(f"energy zero: {bias.zero}; fit: {fit}")
    if fit["rank"] < fit["elements"]:
        typer.echo(
            "the data does not determine every element: the smallest values were taken, and only "
            "compositions that combine those of the data have a known energy zero"
        )
    for line in _residuals_by_composition(bias):
        typer.echo(line)
    norms = error_norms(left)
    typer.echo(
        f"energy residuals left: MAE {1000 * norms.mae:.3f} meV, RMSE {1000 * norms.rmse:.3f} meV"
    )
    typer.echo(f"checkpoint: {output}")


def _residuals_by_composition(bias: Bias) -> list[str]:
    """Lines with the mean residual of each composition, the largest by atom first; 20 at most."""
    from ase_biasgrad.bias import KNOWN_WITHIN
    from ase_biasgrad.data.dataset import formula

    rows = zip(bias.compositions.numpy(), bias.residuals.tolist(), bias.isolated, strict=True)
    table = sorted(
        ((abs(left) / counts.sum(), left, counts, isolated) for counts, left, isolated in rows),
        key=lambda row: -row[0],
    )
    lines = [
        f"  {formula(counts)}{' (isolated atom)' if isolated else ''}: {1000 * left:.3f} meV"
        + (", too far off: its energy zero is not known" if by_atom > KNOWN_WITHIN else "")
        for by_atom, left, counts, isolated in table[:20]
    ]
    more = [f"  and {len(table) - 20} more compositions, nearer"] if len(table) > 20 else []
    return ["mean residual left at each composition:", *lines, *more]


def evaluate(
    checkpoint: CheckpointPath,
    data: DataPath,
    json: Annotated[Path | None, typer.Option(help="write the numbers here")] = None,
    report: Annotated[
        Path | None, typer.Option(help="write a report with pictures into this folder")
    ] = None,
    frames: Frames = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Errors of a potential on labelled frames."""
    from ase_biasgrad.training.evaluation.evaluate import evaluate as measured
    from ase_biasgrad.training.evaluation.evaluate import save_json, table

    if json is not None:
        refuse_existing(json, overwrite, [checkpoint, data])
    if report is not None and any(report.glob("*")):
        refuse_existing(report, overwrite)
    loaded, resident = _loaded(checkpoint, data, frames, device)
    result = measured(loaded.potential, resident, progress=True)
    typer.echo(table(result))
    if json is not None:
        save_json(result, json)
    if report is not None:
        from ase_biasgrad.training.evaluation.report import write_report

        metrics = checkpoint.parent / "metrics.csv"
        pictures = write_report(report, result, metrics if metrics.exists() else None)
        typer.echo("pictures: " + ", ".join(str(picture) for picture in pictures))


def convert(
    model: Annotated[Path, typer.Argument(help="SchNetPack model file (best_model)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="new checkpoint")],
    energy_unit: Annotated[str, typer.Option(help="unit of the model's energies")],
    length_unit: Annotated[str, typer.Option(help="unit of the model's lengths")] = "Angstrom",
    data: Annotated[Path | None, typer.Option(help="dataset to fit the bias to")] = None,
    method: Annotated[str, typer.Option(help="bias fit, as in fit-bias")] = "auto",
    trust: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="I trust this file: reading it runs code that it contains"
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Bring in a SchNetPack model (SchNet or PaiNN), and fit its bias if data is given."""
    from ase_biasgrad.checkpoint import save_checkpoint
    from ase_biasgrad.convert import convert_schnetpack

    refuse_existing(output, overwrite, [model])
    if not trust:
        raise typer.BadParameter(
            "SchNetPack models are pickles, and reading one runs code that it contains; "
            "say --trust-pickle if you trust where it comes from"
        )
    potential = convert_schnetpack(model, energy_unit, length_unit)
    if data is not None:
        from ase_biasgrad.data.dataset import Dataset
        from ase_biasgrad.training.frames.device_frames import DeviceFrames
        from ase_biasgrad.training.stages.bias import fit_bias

        dataset = Dataset(data)
        fit_bias(potential, DeviceFrames(dataset, range(len(dataset)), potential.cutoff), method)
    save_checkpoint(
        output, potential, {"converted_from": {"file": model.name, "sha256": file_hash(model)}}
    )
    typer.echo(f"checkpoint: {output}; energy zero: {potential.bias.zero}")


def info(checkpoint: CheckpointPath) -> None:
    """Show the content and the history of a checkpoint."""
    import json

    from ase_biasgrad.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    content = {"sha256": loaded.sha256, **loaded.metadata}
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def _loaded(
    checkpoint: Path, data: Path, frames: str | None, device: str
) -> tuple[Checkpoint, DeviceFrames]:
    import torch

    from ase_biasgrad.checkpoint import load_checkpoint
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.training.frames.device_frames import DeviceFrames

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded, dataset = load_checkpoint(checkpoint), Dataset(data)
    loaded.potential.to(device)
    chosen = range(len(dataset))[_slice(frames)]
    if not len(chosen):
        raise ValueError(f"--frames {frames}: holds none of the {len(dataset)} frames of {data}")
    unknown = set(dataset.compositions()[list(chosen)].sum(axis=0).nonzero()[0].tolist()) - set(
        loaded.potential.elements
    )
    if unknown:
        from ase.data import chemical_symbols

        raise ValueError(
            f"{data}: holds {sorted(chemical_symbols[z] for z in unknown)}, which {checkpoint} "
            f"was not trained for; it knows "
            f"{[chemical_symbols[z] for z in loaded.potential.elements]}"
        )
    return loaded, DeviceFrames(dataset, chosen, loaded.potential.cutoff, device, progress=True)


def _slice(text: str | None) -> slice:
    if text is None:
        return slice(None)
    try:
        parts = [int(part) if part else None for part in text.split(":")]
    except ValueError:
        parts = []
    if not 2 <= len(parts) <= 3:
        raise typer.BadParameter(f"--frames {text!r} is no slice such as :1000, 500: or ::10")
    return slice(*parts)
