"""Pictures of an evaluation: parity, error histograms, learning curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ase_biasgrad.files import whole_file
from ase_biasgrad.training.evaluation.evaluate import Report, save_json, table
from ase_biasgrad.training.lightning.loggers import read_epoch_table

COLOUR, ACCENT = "#2a6f97", "#c1440e"


def write_report(folder: str | Path, report: Report, metrics: Path | None = None) -> list[Path]:
    """Write `summary.txt`, `summary.json`, `errors.png` and, with a metrics table of a run,
    `learning_curve.png` into `folder`; return the pictures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / "summary.txt") as temporary:
        temporary.write_text(table(report) + "\n", encoding="utf-8")
    save_json(report, folder / "summary.json")
    pictures = [folder / "errors.png"]
    _save(pictures[0], _errors(report))
    if metrics is not None and len(read_epoch_table(metrics)) > 1:
        pictures.append(folder / "learning_curve.png")
        _save(pictures[1], _learning_curve(metrics))
    return pictures


def _errors(report: Report):  # type: ignore[no-untyped-def]
    """Parity plots above, histograms below; forces left, energies (if any) right."""
    from matplotlib.figure import Figure

    kinds = [("force component", "eV/Å", report.force_pairs)]
    if report.energy_pairs is not None:
        kinds.append(("energy, centred per composition", "eV", report.energy_pairs))
    figure = Figure(figsize=(4.2 * len(kinds), 7.2), layout="constrained")
    axes = figure.subplots(2, len(kinds), squeeze=False)
    for column, (name, unit, pairs) in enumerate(kinds):
        assert pairs is not None
        reference, predicted = (np.ravel(values) for values in pairs)
        _parity(axes[0, column], reference, predicted, f"{name} ({unit})")
        errors = 1000 * (predicted - reference)
        axes[1, column].hist(errors, bins=60, color=COLOUR)
        axes[1, column].set_yscale("log")
        axes[1, column].set_xlabel(f"error (m{unit})")
        axes[1, column].set_ylabel("count")
        axes[1, column].locator_params(axis="x", nbins=5)
        axes[1, column].set_title(f"MAE {np.abs(errors).mean():.2f} m{unit}", fontsize=10)
    return figure


def _parity(axis, reference: np.ndarray, predicted: np.ndarray, name: str) -> None:  # type: ignore[no-untyped-def]
    low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
    axis.plot([low, high], [low, high], color=ACCENT, linewidth=1)
    axis.plot(reference, predicted, ".", color=COLOUR, markersize=2, alpha=0.4, rasterized=True)
    axis.set_xlabel("reference")
    axis.set_ylabel("predicted")
    axis.set_title(name, fontsize=10)
    axis.set_aspect("equal", adjustable="box")


def _learning_curve(metrics: Path):  # type: ignore[no-untyped-def]
    from matplotlib.figure import Figure

    rows = read_epoch_table(metrics)
    epoch = [int(row["epoch"]) + 1 for row in rows]
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = figure.subplots()
    axis.plot(epoch, [_number(row["train_loss"]) for row in rows], color=COLOUR, label="training")
    axis.plot(epoch, [_number(row["val_loss"]) for row in rows], color=ACCENT, label="validation")
    axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.set_ylabel("loss (units of the RMS force)")
    axis.legend(frameon=False)
    return figure


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def _save(path: Path, figure) -> None:  # type: ignore[no-untyped-def]
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
