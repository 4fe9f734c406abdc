"""Commands about a potential at hand: `evaluate`, `convert`, `info`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.baselines import TrustBaseline, trusted_baseline
from ase_biasgrad.cli.options import CheckpointFile, Device, Frames, Method, Overwrite, frame_slice
from ase_biasgrad.files import file_hash, refuse_existing, refuse_own_input

if TYPE_CHECKING:
    import numpy as np

    from ase_biasgrad.checkpoint import Checkpoint, StoredPotential
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.training.frames.device_frames import DeviceFrames


class Seen(StrEnum):
    """Treatments of frames that were seen in training or in a fit of the bias."""

    keep = "keep"
    skip = "skip"
    refuse = "refuse"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint (*.safetensors) or run folder")],
    data: Annotated[
        Path | None,
        typer.Argument(
            help="dataset (HDF5) of `biasgrad data …`; without one, the test part of the run folder"
        ),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="write the numbers here")] = None,
    report: Annotated[
        Path | None, typer.Option(help="write a report with pictures into this folder")
    ] = None,
    frames: Frames = None,
    seen: Annotated[
        Seen,
        typer.Option(
            help="frames that were seen in training or in a fit of the bias: keep them, and say "
            "that their errors are flattered; skip them; or refuse to go on"
        ),
    ] = Seen.keep,
    reference: Annotated[
        str | None, typer.Option(help="reference that the energies are of, by name")
    ] = None,
    device: Device = "auto",
    trust_baseline: TrustBaseline = False,
    overwrite: Overwrite = False,
) -> None:
    """Measure the errors of a potential on labelled frames, or on the test part of its run."""
    from dataclasses import replace

    from ase_biasgrad.checkpoint import load_checkpoint
    from ase_biasgrad.data.dataset import Dataset
    from ase_biasgrad.training.evaluation.evaluate import evaluate as measured
    from ase_biasgrad.training.evaluation.evaluate import save_json, table
    from ase_biasgrad.training.run_folder import CHECKPOINT_NAME

    run = checkpoint if checkpoint.is_dir() else None
    if run is not None:
        checkpoint = run / CHECKPOINT_NAME
        if not checkpoint.exists():
            raise ValueError(f"{run}: holds no finished potential ({CHECKPOINT_NAME})")
    if json is not None:
        refuse_existing(json, overwrite, [checkpoint, data])
    if report is not None and not overwrite and any(report.glob("*")):
        refuse_existing(report, overwrite)
    loaded = load_checkpoint(checkpoint)
    potential = loaded.potential.of_reference(reference)
    by: str | None = None
    if data is not None:
        dataset = Dataset(data)
        chosen, known = _unseen(loaded, dataset, chosen_frames(dataset, frames), seen)
    elif run is not None and frames is None:
        dataset, chosen, by = _test_part(run)
        chosen, known = _unseen(loaded, dataset, chosen, Seen.keep)
    else:
        raise typer.BadParameter("name a dataset, or a run folder alone for its test part")
    if json is not None:
        refuse_own_input(json, [dataset.path])
    resident = resident_frames(loaded, dataset, chosen, device, trust_baseline)
    if by is not None:
        from ase_biasgrad.training.stages.levels import at_one_level, levels_by_label

        biases, levels = loaded.potential.biases(), levels_by_label(dataset, by)[chosen]
        resident = at_one_level(biases, potential.reference, resident, levels)
    result = replace(measured(potential, resident, progress=True), seen=known)
    typer.echo(table(result))
    if json is not None:
        save_json(result, json)
    if report is not None:
        from ase_biasgrad.training.evaluation.report import write_report

        metrics = checkpoint.parent / "metrics.csv"
        pictures = write_report(report, result, metrics if metrics.exists() else None)
        typer.echo("pictures: " + ", ".join(str(picture) for picture in pictures))


def _test_part(folder: Path) -> tuple[Dataset, np.ndarray, str | None]:
    """Dataset, test frames and label of their levels of theory, if any, of a run."""
    from ase_biasgrad.training.run_folder import RunFolder

    run = RunFolder.read(folder)
    frames = run.split.get("test")
    if frames is None or not len(frames):
        why = "is of a version without one" if frames is None else "left no frames for it"
        raise ValueError(
            f"{folder}: has no test part; its training {why}. Name a dataset: "
            f"biasgrad evaluate {folder} DATA"
        )
    return run.dataset, frames, run.config.bias_stage.by


def _unseen(
    loaded: Checkpoint, dataset: Dataset, chosen: np.ndarray, seen: Seen
) -> tuple[np.ndarray, int | None]:
    """Frames to evaluate on, and how many of them were seen in training, if known."""
    import numpy as np

    from ase_biasgrad.data.seen import frame_digests, lists_all, recorded_digests

    record = loaded.training.get("seen")
    if record is None:
        typer.echo(f"{loaded.path}: does not say which frames its training saw", err=True)
        return chosen, None
    trained_on = np.isin(frame_digests(dataset, chosen), recorded_digests(record))
    number, sample = int(trained_on.sum()), not lists_all(record)
    if not number:
        return chosen, None if sample else 0
    first = ", ".join(map(str, chosen[trained_on][:5])) + (", …" if number > 5 else "")
    found = (
        f"{dataset.path}: {'at least ' if sample else ''}{number} of these {len(chosen)} frames "
        f"({first}) have structures that were seen in training or in a fit of the bias"
    )
    if seen is Seen.skip:
        if sample or number == len(chosen):
            why = "the checkpoint lists a sample alone" if sample else "no other frame is left"
            raise ValueError(f"{found}, and cannot be left out: {why}")
        typer.echo(f"left out {number} frames that were seen in training or in a fit of the bias")
        return chosen[~trained_on], 0
    found += (
        ", and their errors are flattered. `biasgrad evaluate RUN` takes the test part of a run"
    )
    if seen is Seen.refuse:
        raise ValueError(f"{found}; --seen skip leaves these frames out; --seen keep goes on")
    typer.echo(f"warning: {found}; --seen skip leaves these frames out", err=True)
    return chosen, None if sample else number


def convert(
    model: Annotated[Path, typer.Argument(help="SchNetPack model file (best_model)")],
    output: Annotated[Path, typer.Option("--output", "-o", help="new checkpoint")],
    energy_unit: Annotated[str, typer.Option(help="unit of the model's energies")],
    length_unit: Annotated[str, typer.Option(help="unit of the model's lengths")] = "Angstrom",
    data: Annotated[Path | None, typer.Option(help="dataset to fit the bias to")] = None,
    method: Method = "auto",
    trust: Annotated[
        bool,
        typer.Option(
            "--trust-pickle", help="read the file although this runs code that it contains"
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Convert a SchNetPack model (SchNet or PaiNN), and fit its bias if data is given."""
    from ase_biasgrad.checkpoint import save_checkpoint
    from ase_biasgrad.convert import convert_schnetpack

    refuse_existing(output, overwrite, [model, data])
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


def info(checkpoint: CheckpointFile) -> None:
    """Show the content and the history of a checkpoint or a committee."""
    import json

    from ase_biasgrad.committee_file import read_committee

    found = read_committee(checkpoint)
    members = [_content(member) for member in found.members]
    content = members[0]
    if len(members) > 1 or found.readouts is not None:
        readouts = 0 if found.readouts is None else len(found.readouts.weights)
        content = {"sha256": found.sha256, **found.metadata, "readouts": readouts}
        content["members"] = members
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False))


def _content(stored: StoredPotential) -> dict[str, Any]:
    """Metadata of a potential, without the long list of the frames that it saw."""
    content = {"sha256": stored.sha256, **stored.metadata}
    if seen := stored.training.get("seen"):
        content["training"] = {**stored.training, "seen": {**seen, "digests": "…"}}
    if "data" in stored.training:
        own = stored.metadata["references"][stored.potential.reference]
        own["fit"].setdefault("data", "the data of the training")
    content["training"].setdefault("range", "not recorded: structures outside are not noticed")
    return content


def chosen_frames(dataset: Dataset, frames: str | None) -> np.ndarray:
    """Indices of the frames that a slice names."""
    import numpy as np

    chosen = np.arange(len(dataset))[slice(None) if frames is None else frame_slice(frames)]
    if not len(chosen):
        raise ValueError(
            f"--frames {frames}: holds none of the {len(dataset)} frames of {dataset.path}"
        )
    return chosen


def resident_frames(
    loaded: Checkpoint, dataset: Dataset, chosen: np.ndarray, device: str, trust: bool = False
) -> DeviceFrames:
    """Frames on the device, which the potential is moved to; it must know their elements.

    Of a potential with a baseline the labels are differences to it.
    """
    from ase_biasgrad.machine import torch_device
    from ase_biasgrad.training.frames.device_frames import DeviceFrames

    device = str(torch_device(device))
    loaded.potential.to(device)
    unknown = set(dataset.compositions()[chosen].sum(axis=0).nonzero()[0].tolist()) - set(
        loaded.potential.elements
    )
    if unknown:
        from ase.data import chemical_symbols

        raise ValueError(
            f"{dataset.path}: holds {sorted(chemical_symbols[z] for z in unknown)}, which "
            f"{loaded.path} was not trained for; it knows "
            f"{[chemical_symbols[z] for z in loaded.potential.elements]}"
        )
    frames = DeviceFrames(dataset, chosen, loaded.potential.cutoff, device, progress=True)
    if (record := loaded.potential.baseline) is None:
        return frames
    from ase_biasgrad.baseline import Baseline
    from ase_biasgrad.training.baseline import baseline_labels

    baseline = Baseline.from_record(record)
    calculator = trusted_baseline(loaded.path, trust) or baseline.made()
    return frames.less(baseline_labels(baseline, calculator, dataset, chosen, progress=True))
