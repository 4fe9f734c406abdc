"""Commands about energy zeros: `fit-bias`, `rebias`, `convert-energies`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.options import (
    ARGUMENTS,
    CALCULATORS,
    CheckpointFile,
    Device,
    Frames,
    Method,
    Overwrite,
    made_calculator,
)
from ase_biasgrad.files import refuse_existing, refuse_own_input

if TYPE_CHECKING:
    import numpy as np

    from ase_biasgrad.bias import Bias
    from ase_biasgrad.composition_fit import Anchors

KINDS = ("", " (isolated atom)", " (anchor)")
AnchorFile = Annotated[
    Path | None,
    typer.Option(
        "--anchors",
        help='energies b known from elsewhere, as JSON: {"H": -13.6, "Si2": [-9.1, 0.2]} in eV, '
        "exact, or with a standard deviation as a prior",
    ),
]


def fit_bias(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="[CHECKPOINT] DATA",
            help="checkpoint (*.safetensors), unless there is a --calculator; dataset (HDF5)",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="new checkpoint; of a calculator: zero.json")
    ],
    calculator: Annotated[
        str | None, typer.Option(help=f"fit to the energies of this calculator: {CALCULATORS}")
    ] = None,
    calculator_arguments: Annotated[list[str] | None, typer.Option(help=ARGUMENTS)] = None,
    method: Method = "auto",
    anchors: AnchorFile = None,
    frames: Frames = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Fit the energy bias of a potential, or of any ASE calculator; forces do not change."""
    if len(files) != (1 if calculator else 2):
        raise typer.BadParameter(
            "name a checkpoint and a dataset, or a dataset alone with --calculator"
        )
    if calculator and device != "auto":
        raise typer.BadParameter("a calculator's device is one of its --calculator-arguments")
    refuse_existing(output, overwrite, files)
    if calculator is None:
        _fit_and_save(files[0], files[1], output, None, method, anchors, frames, device)
    else:
        _fit_calculator(calculator, calculator_arguments, files[0], output, method, anchors, frames)


def _fit_calculator(
    name: str,
    arguments: list[str] | None,
    data: Path,
    output: Path,
    method: str,
    anchors: Path | None,
    frames: str | None,
) -> None:
    if output.suffix != ".json":
        raise typer.BadParameter(f"{output}: the bias of a calculator is written as *.json")
    calculator, keywords = made_calculator(name, arguments)  # tblite comes before torch
    from ase_biasgrad.bias_file import save_bias
    from ase_biasgrad.cli.potential import chosen_frames
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.training.stages.calculator_bias import fit_calculator_bias

    dataset = Dataset(data)
    chosen = chosen_frames(dataset, frames)
    known = _anchors(anchors)
    fit = fit_calculator_bias(calculator, dataset, chosen, method, known, progress=True)
    fit.bias.fit_report["calculator"] |= {"name": name, "arguments": keywords}
    save_bias(output, fit.bias)
    _say(fit.bias, fit.left)
    if fit.failed:
        typer.echo(f"left out {len(fit.failed)} frames, whose calculation failed (named above)")
    typer.echo(f"bias: {output}")


def rebias(
    checkpoint: CheckpointFile,
    data: Annotated[Path, typer.Argument(help="dataset (HDF5) with the other energies")],
    reference: Annotated[
        str, typer.Option(help="name of the reference energies: r2scan, atomization, …")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="new checkpoint (default: the checkpoint itself)"),
    ] = None,
    method: Method = "auto",
    anchors: AnchorFile = None,
    frames: Frames = None,
    device: Device = "auto",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace an output, or a reference of this name")
    ] = False,
) -> None:
    """Add a bias for other reference energies; forces and other biases do not change."""
    from ase_biasgrad.checkpoint import load_checkpoint

    if output is None:
        refuse_own_input(checkpoint, [data])
    else:
        refuse_existing(output, overwrite, [checkpoint, data])
    known = load_checkpoint(checkpoint).potential.biases()
    if reference in known and not overwrite:
        raise ValueError(
            f"{checkpoint}: has a reference {reference!r} already (there are {', '.join(known)}); "
            "say --overwrite to replace it, or name another"
        )
    _fit_and_save(
        checkpoint, data, output or checkpoint, reference, method, anchors, frames, device
    )


def _fit_and_save(
    checkpoint: Path,
    data: Path,
    output: Path,
    reference: str | None,
    method: str,
    anchors: Path | None,
    frames: str | None,
    device: str,
) -> None:
    """Fit the bias of one reference of a checkpoint, its own by default; write all to `output`."""
    from ase_biasgrad.bias import Bias
    from ase_biasgrad.checkpoint import load_checkpoint, save_checkpoint
    from ase_biasgrad.cli.potential import chosen_frames, resident_frames
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.data.seen import frame_digests, with_more
    from ase_biasgrad.potential import freeze_energy_shifts
    from ase_biasgrad.training.stages.bias import fit_bias as fitted
    from ase_biasgrad.training.stages.calculator_bias import data_record

    loaded, dataset = load_checkpoint(checkpoint), Dataset(data)
    chosen = chosen_frames(dataset, frames)
    freeze_energy_shifts(loaded.potential)  # into every bias
    if reference not in (None, loaded.potential.reference):
        loaded.potential.add_reference(reference, Bias())
    potential = loaded.potential.of_reference(reference)
    resident = resident_frames(loaded, dataset, chosen, device)
    left = fitted(potential, resident, method, _anchors(anchors))
    potential.bias.fit_report["data"] = data_record(dataset, len(left))
    history = dict(loaded.training)
    if "seen" in history:
        history["seen"] = with_more(history["seen"], frame_digests(dataset, chosen))
    save_checkpoint(output, loaded.potential.cpu(), history)
    _say(potential.bias, left)
    names = ", ".join(loaded.potential.biases())
    typer.echo(f"checkpoint: {output}; fitted the reference {potential.reference} of {names}")


def _anchors(path: Path | None) -> Anchors | None:
    """Anchors of a file that holds energies, or pairs of energy and deviation, by formula."""
    import json

    import numpy as np
    from ase.formula import Formula

    from ase_biasgrad.composition_fit import Anchors
    from ase_biasgrad.units import N_ELEMENTS, counts_of

    if path is None:
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        pairs = {k: v if isinstance(v, list) else [v, 0.0] for k, v in table.items()}
        counts = np.array([counts_of(Formula(each).count()) for each in pairs], np.int64)
        counts = counts.reshape(len(pairs), N_ELEMENTS)
        energies, deviations = np.array(list(pairs.values()), float).reshape(len(pairs), 2).T
        return Anchors(counts, energies, deviations)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f'{path}: {error}; write anchors as {{"H": -13.6, "Si2": [-9.1, 0.2]}}'
        ) from error


def _say(bias: Bias, left: np.ndarray) -> None:
    """Print the fit: its state, its errors, the residual of each composition, their norms."""
    from ase_biasgrad.metrics import error_norms

    fit = bias.fit_report
    typer.echo(f"energy zero: {bias.zero}; {fit.get('why', fit['method'])}")
    typer.echo(
        f"{fit['frames']} frames of {fit['compositions']} compositions, rank {fit['rank']} of "
        f"{fit['elements']} elements"
    )
    if fit["rank"] < fit["elements"]:
        typer.echo(
            "the data does not determine every element: the smallest values were taken, and only "
            "compositions that combine those of the data have a known energy zero"
        )
    for line in (*_errors(fit), *_residuals_by_composition(bias)):
        typer.echo(line)
    norms = error_norms(left)
    typer.echo(
        f"energy residuals left: MAE {1000 * norms.mae:.3f} meV, RMSE {1000 * norms.rmse:.3f} meV"
    )


def _errors(fit: dict[str, Any]) -> list[str]:
    """Lines with the errors of a fit that are known."""
    by_element = ", ".join(
        f"{symbol} {'not determined' if error is None else f'{1000 * error:.3f}'}"
        for symbol, error in fit["standard_errors"].items()
    )
    left_out = fit["leave_one_composition_out"]
    spreads = {
        "spread of frames within a composition": fit["noise"],
        "misfit of compositions": fit["misfit"],
        "error of a composition that is left out, by atom": left_out["rmse_per_atom"],
    }
    return [
        f"standard errors by element, meV: {by_element}",
        *(f"{text}: {1000 * e:.3f} meV" for text, e in spreads.items() if e is not None),
    ]


def _residuals_by_composition(bias: Bias) -> list[str]:
    """Lines with the mean residual of each composition, the largest by atom first; 20 at most."""
    from ase_biasgrad.composition_fit import KNOWN_WITHIN
    from ase_biasgrad.data.dataset import formula

    rows = zip(bias.compositions.cpu().numpy(), bias.residuals.tolist(), bias.isolated, strict=True)
    table = sorted(
        ((abs(left) / counts.sum(), left, counts, kind) for counts, left, kind in rows),
        key=lambda row: -row[0],
    )
    lines = [
        f"  {formula(counts)}{KINDS[int(kind)]}: {1000 * left:.3f} meV"
        + (", too far off: its energy zero is not known" if by_atom > KNOWN_WITHIN else "")
        for by_atom, left, counts, kind in table[:20]
    ]
    more = [f"  and {len(table) - 20} more compositions, nearer"] if len(table) > 20 else []
    return ["mean residual left at each composition:", *lines, *more]


def convert_energies(
    source: Annotated[Path, typer.Argument(help="extxyz, or dataset (HDF5)")],
    checkpoint: Annotated[Path, typer.Option("--checkpoint", "-c", help="*.safetensors")],
    output: Annotated[Path, typer.Option("--output", "-o", help="new file of the same kind")],
    from_: Annotated[str, typer.Option("--from", help="reference that the energies are of")],
    to: Annotated[str, typer.Option("--to", help="reference to convert them to")],
    key: Annotated[
        list[str] | None,
        typer.Option(help="key of an energy in extxyz, by default energy and free_energy"),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert energies from one reference to another, by the difference of their biases.

    Everything else stays as it is. A composition whose difference is not known is an error.
    """
    import numpy as np
    import torch

    from ase_biasgrad.checkpoint import load_checkpoint
    from ase_biasgrad.data.dataset import DataError, formula
    from ase_biasgrad.data.shift_energies import shift_energies
    from ase_biasgrad.units import N_ELEMENTS

    refuse_existing(output, overwrite, [source, checkpoint])
    potential = load_checkpoint(checkpoint).potential
    biases = {name: potential.bias_of(name) for name in (from_, to)}
    errors: dict[str, float] = {}

    def shift(numbers: np.ndarray, frame: int) -> np.ndarray:
        counts = np.bincount(numbers, minlength=N_ELEMENTS)
        for name, bias in biases.items():
            if not bias.knows(counts):
                raise DataError(
                    f"{source}: frame {frame} ({formula(counts)}): the difference of {from_} and "
                    f"{to} is not known, since {name} was fitted to other compositions; add some "
                    f"with `biasgrad rebias --reference {name}`"
                )
        if (name := formula(counts)) not in errors:
            variances = [float(b.standard_error(counts[None])[0]) ** 2 for b in biases.values()]
            errors[name] = float(np.sqrt(sum(variances)))
        z = torch.from_numpy(numbers)
        one, two = (b.per_atom(z, torch.zeros_like(z), 1).numpy() for b in biases.values())
        return two - one

    count = shift_energies(source, output, shift, key)
    worst = max(errors, key=lambda name: np.nan_to_num(errors[name], nan=np.inf), default="")
    typer.echo(f"{output}: {count} frames, energies from {from_} to {to}")
    if worst:
        told = "which the data of a fit does not show"
        if np.isfinite(errors[worst]):
            told = f"{1000 * errors[worst]:.3f} meV ({worst}) at most"
        typer.echo(f"standard error of the difference: {told}")
