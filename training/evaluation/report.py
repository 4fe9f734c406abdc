"""Pictures of an evaluation: parity, error histograms, learning curves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ase_biasgrad.files import whole_file, write_whole
from ase_biasgrad.training.evaluation.evaluate import Report, save_json, table
from ase_biasgrad.training.lightning.loggers import read_epoch_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOUR, ACCENT = "#2a6f97", "#c1440e"


def write_report(folder: str | Path, report: Report, metrics: Path | None = None) -> list[Path]:
    """Write `summary.txt`, `summary.json`, `errors.png` and, with a metrics table of a run,
    `learning_curve.png` into `folder`; return the pictures.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "summary.txt", table(report) + "\n")
    save_json(report, folder / "summary.json")
    pictures = [folder / "errors.png"]
    save_picture(pictures[0], _errors(report))
    if metrics is not None and len(read_epoch_table(metrics)) > 1:
        pictures.append(folder / "learning_curve.png")
        save_picture(pictures[1], _learning_curve(metrics))
    return pictures


def _errors(report: Report) -> Figure:
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


def _parity(axis: Axes, reference: np.ndarray, predicted: np.ndarray, name: str) -> None:
    low, high = min(reference.min(), predicted.min()), max(reference.max(), predicted.max())
    axis.plot([low, high], [low, high], color=ACCENT, linewidth=1)
    axis.plot(reference, predicted, ".", color=COLOUR, markersize=2, alpha=0.4, rasterized=True)
    axis.set_xlabel("reference")
    axis.set_ylabel("predicted")
    axis.set_title(name, fontsize=10)
    axis.set_aspect("equal", adjustable="box")


def _learning_curve(metrics: Path) -> Figure:
    from matplotlib.figure import Figure

    rows = read_epoch_table(metrics)
    epoch = [int(row["epoch"]) + 1 for row in rows]
    figure = Figure(figsize=(5.5, 3.8), layout="constrained")
    axis = figure.subplots()
    losses = {"train_loss": ("training", COLOUR), "val_loss": ("validation", ACCENT)}
    for column, (label, colour) in losses.items():
        axis.plot(epoch, [float(row[column] or "nan") for row in rows], color=colour, label=label)
    axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.set_ylabel("loss (units of the RMS force)")
    axis.legend(frameon=False)
    return figure


def save_picture(path: Path, figure: Figure) -> None:
    """Write a PNG, whole or not at all."""
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
