"""Reliability of a committee in pictures: errors beside the spreads that should tell them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import chemical_symbols

from ase_biasgrad.calibration import LEVEL
from ase_biasgrad.files import write_whole
from ase_biasgrad.training.evaluation.committee import CommitteeReport
from ase_biasgrad.training.evaluation.report import ACCENT, COLOUR, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 12


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
    save_picture(folder / "reliability.png", _diagram(report))
    return [folder / "reliability.png"]


def _diagram(report: CommitteeReport) -> Figure:
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
