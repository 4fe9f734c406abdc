"""Texts and pictures of evaluations, and of committees: are errors as large as spreads tell?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from ase_biasgrad.calibration import LEVEL
from ase_biasgrad.files import whole_file, write_whole
from ase_biasgrad.training.evaluation.evaluate import Report, save_json, table
from ase_biasgrad.training.lightning.loggers import read_epoch_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ase_biasgrad.training.evaluation.committee import CommitteeReport

COLOUR, ACCENT = "#2a6f97", "#c1440e"
BINS = 12  # of the reliability diagram


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


# --- committees -----------------------------------------------------------------------------


def binned(std: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Root mean squares of predicted standard deviations and of errors in bins of equal counts."""
    order = np.argsort(std)
    parts = np.array_split(order, min(BINS, max(1, len(order) // 20)))
    squares = [(np.mean(std[part] ** 2), np.mean(error[part] ** 2)) for part in parts]
    predicted, found = np.sqrt(np.array(squares)).T
    return predicted, found


def reliability_table(report: CommitteeReport) -> str:
    """Scales and coverage for a terminal."""
    lines = [f"{'':<10}{'std / spread':>14}{'90 % / spread':>15}{'covered':>10}"]
    covered = report.coverage.by_element
    for z, scale in sorted(report.calibration.forces.items()):
        name = chemical_symbols[z] if z else "forces"
        share = covered.get(name, report.coverage.forces)
        lines.append(f"{name:<10}{scale.std:>14.2f}{scale.interval:>15.2f}{share:>10.1%}")
    if (energy := report.calibration.energy) is not None:
        share_of_energy = report.coverage.energy
        said = "" if share_of_energy is None else f"{share_of_energy:>10.1%}"
        lines.append(f"{'energy':<10}{energy.std:>14.2f}{energy.interval:>15.2f}{said}")
    lines.append(
        f"from {report.errors.frames} frames that no member was trained on; covered: errors within "
        f"their {LEVEL:.0%} intervals, of frames left out of the scaling"
    )
    return "\n".join(lines)


def write_reliability(folder: str | Path, report: CommitteeReport) -> list[Path]:
    """Write `reliability.txt`, `reliability.json` and `reliability.png`; return the pictures."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "reliability.txt", reliability_table(report) + "\n")
    write_whole(folder / "reliability.json", json.dumps(report.summary(), indent=1))
    save_picture(folder / "reliability.png", _reliability(report))
    return [folder / "reliability.png"]


def _reliability(report: CommitteeReport) -> Figure:
    """Left: error beside its predicted standard deviation. Right: observed beside stated shares."""
    from matplotlib.figure import Figure
    from scipy.special import erfinv

    errors = report.errors
    std, _ = report.calibration.of_forces(errors.numbers, errors.forces_spread)
    figure = Figure(figsize=(8.4, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends: list[float] = []
    for z in np.unique(errors.numbers):
        own = errors.numbers == z
        predicted, found = binned(std[own].ravel(), errors.forces[own].ravel())
        left.plot(1000 * predicted, 1000 * found, "o-", markersize=3, label=chemical_symbols[z])
        ends += [*(1000 * predicted), *(1000 * found)]
    positive = [end for end in ends if end > 0] or [1.0]
    low, high = min(positive), max(positive)
    left.plot([low, high], [low, high], color="#888888", linewidth=1)
    left.set(xscale="log", yscale="log")
    left.set_xlabel("predicted standard deviation (meV/Å)")
    left.set_ylabel("RMS error (meV/Å)")
    left.legend(frameon=False)
    levels = np.linspace(0.05, 0.95, 19)
    ratios = np.abs(errors.forces) / np.maximum(std, 1e-300)
    # half widths, in standard deviations, that hold these shares of a normal distribution
    expected = [float(np.mean(ratios <= width)) for width in np.sqrt(2) * erfinv(levels)]
    right.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    right.plot(levels, expected, "o-", color=COLOUR, markersize=3, label="if errors were normal")
    right.plot([LEVEL], [report.coverage.forces], "D", color=ACCENT, label="conformal, left out")
    right.set_xlabel("stated share")
    right.set_ylabel("share of force errors inside")
    right.legend(frameon=False)
    return figure
