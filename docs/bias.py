"""The picture of the page on the bias: what its error bars hold.

    python docs/bias.py qm7_7101.npz [picture.png]

QM7 as `biasgrad benchmark qm7` reads it (Z, R in Å, T in kcal/mol), GFN2-xTB as the model. Takes
some minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from ase import Atoms, units
from tblite.ase import TBLite  # before torch: on Python 3.11 it does not load after it

from ase_biasgrad import Bias

BLUE, RED, GREY = "#3b6ea5", "#c2452d", "0.55"
KCAL = units.kcal / units.mol
N_ELEMENTS = 119


def data(path: str) -> tuple[np.ndarray, np.ndarray]:
    """E_ref − E_GFN2 in eV `(m,)` and compositions `(m, N_ELEMENTS)`."""
    stored = np.load(path)
    numbers = stored["Z"].astype(int)
    counts = np.stack([np.bincount(z[z > 0], minlength=N_ELEMENTS) for z in numbers])
    energies = []
    for z, r in zip(numbers, stored["R"], strict=True):
        molecule = Atoms(z[z > 0], r[z > 0], calculator=TBLite(method="GFN2-xTB", verbosity=0))
        energies.append(molecule.get_potential_energy())
    return stored["T"] * KCAL - np.array(energies), counts


def held_out(residuals: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Atoms, error and standard error of the mean of each composition's frames, eV `(k, 3)`."""
    rows, row_of = np.unique(counts, axis=0, return_inverse=True)
    table = []
    for k, row in enumerate(rows):
        mine = row_of.ravel() == k
        bias = Bias()
        bias.fit(residuals[~mine], counts[~mine], "least-squares")
        error = float(bias.standard_error(row[None])[0])
        frames = int(mine.sum())
        spread = residuals[mine].std(ddof=1) if frames >= 5 else bias.fit_report["noise"]
        error = np.hypot(error, spread / np.sqrt(frames))
        b = float(bias.per_element.numpy() @ row)
        table.append((row.sum(), residuals[mine].mean() - b, error))
    return np.array(table)


def learning(residuals: np.ndarray, counts: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Mean standard error of compositions outside of the fit, and the misfit, eV `(sizes, 2)`."""
    rows, row_of = np.unique(counts, axis=0, return_inverse=True)
    random, table = np.random.default_rng(0), []
    for size in sizes:
        found = []
        for _ in range(10):
            order = random.permutation(len(rows))
            mine = np.isin(row_of.ravel(), order[:size])
            bias = Bias()
            bias.fit(residuals[mine], counts[mine], "least-squares")
            errors = bias.standard_error(rows[order[size:]]).numpy()
            found.append((np.nanmean(errors), float(bias.misfit)))
        table.append(np.mean(found, axis=0))
    return np.array(table)


def draw(picture: Path, table: np.ndarray, sizes: list[int], curve: np.ndarray) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
    atoms, off, error = table.T
    places = atoms + np.linspace(-0.35, 0.35, len(atoms))
    inside = np.abs(off) <= 1.96 * error
    for chosen, colour in ((inside, BLUE), (~inside, RED)):
        axes[0].errorbar(
            places[chosen], off[chosen], 1.96 * error[chosen], fmt=".", ms=4, lw=0.5, color=colour
        )
    axes[0].axhline(0, color=GREY, lw=0.8, zorder=0)
    axes[0].set(
        title=f"1. Left out: {100 * inside.mean():.0f} % within 95 % bars",
        xlabel="atoms of the composition",
        ylabel="error of the prediction, eV",
    )
    grid = np.linspace(-4, 4, 200)
    axes[1].hist(off / error, np.linspace(-4, 4, 33), density=True, color=BLUE, alpha=0.6)
    axes[1].plot(grid, np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi), color="black", lw=1)
    axes[1].set(
        title="2. Errors in units of their standard error",
        xlabel="error / standard error",
        ylabel="density",
    )
    axes[2].plot(sizes, curve[:, 0], "o-", color=BLUE, ms=4, label="standard error, not in the fit")
    axes[2].plot(sizes, curve[:, 1], "--", color=RED, lw=1, label="misfit")
    axes[2].set(
        title="3. More compositions help, to the misfit",
        xlabel="compositions in the fit",
        ylabel="eV",
        xscale="log",
        ylim=(0, None),
    )
    axes[2].legend(frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    default = Path(__file__).parent / "pictures" / "bias.png"
    given = data(sys.argv[1])
    numbers = [8, 12, 16, 24, 32, 48, 64, 96, 128, 160]
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else default
    draw(target, held_out(*given), numbers, learning(*given, numbers))
