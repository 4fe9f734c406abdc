"""The picture of the landing page: forces are learnt, a bias sets the energy, dynamics follow.

    python docs/overview.py [picture.png]

Reference data are dynamics of methanol with ASE's EMT. Takes about a minute.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from ase import units
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.md.velocitydistribution import Stationary, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from ase_biasgrad import BiasGradCalculator, Dataset, load_checkpoint, sample
from ase_biasgrad.training import config_from, train

BLUE, RED, GREY = "#3b6ea5", "#c2452d", "0.55"


def reference(folder: Path) -> tuple[Path, Path]:
    """Training and test frames."""
    start = molecule("CH3OH")
    start.calc = EMT()
    LBFGS(start, logfile=None).run(fmax=0.02)
    paths = folder / "train.h5", folder / "test.h5"
    for seed, (path, frames) in enumerate(zip(paths, (500, 100), strict=True)):
        sample(start, EMT(), path, temperatures=(300.0,), frames=frames, seed=seed, progress=False)
    return paths


def main(picture: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        data, test = reference(Path(name))
        config = config_from(
            {
                "data": {"path": str(data), "train": 450, "validation": 50},
                "backbone": {"name": "painn", "features": 32, "interactions": 2},
                "force_stage": {"epochs": 60, "batch_size": 10},
                "trainer": {"progress_bar": False},
            }
        )
        checkpoint = train(config, Path(name) / "run").checkpoint
        calculator = BiasGradCalculator(checkpoint)
        numbers = torch.tensor(Dataset(test)[0].numbers)
        with torch.no_grad():
            bias = float(load_checkpoint(checkpoint).potential.bias(numbers, 0 * numbers))
        frames = list(Dataset(test))
    structures = [frame.atoms() for frame in frames]
    results = calculator.evaluate_many(structures)
    forces = [np.concatenate([r["forces"].ravel() for r in results])]
    forces.append(np.concatenate([frame.forces.ravel() for frame in frames]))
    energies = np.array([r["energy"] for r in results]), np.array([f.energy for f in frames])
    draw(picture, forces, energies, bias, dynamics(structures[0], calculator))


def dynamics(atoms, calculator) -> np.ndarray:
    """Time in ps, potential and total energy in eV of NVE dynamics."""
    atoms.calc = calculator
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    Stationary(atoms)
    rows: list[tuple[float, float, float]] = []
    run = VelocityVerlet(atoms, 0.5 * units.fs)
    run.attach(
        lambda: rows.append(
            (
                run.get_time() / units.fs / 1000,
                atoms.get_potential_energy(),
                atoms.get_total_energy(),
            )
        ),
        interval=4,
    )
    run.run(4000)
    return np.array(rows).T


def draw(picture: Path, forces, energies, bias: float, trajectory: np.ndarray) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.9), layout="constrained")
    mae = 1000 * np.abs(forces[0] - forces[1]).mean()
    axes[0].plot(forces[1], forces[0], ".", color=BLUE, ms=2)
    axes[0].axline((0, 0), slope=1, color=GREY, lw=0.8, zorder=0)
    axes[0].set(
        title="1. Train on forces",
        xlabel="reference force, eV/Å",
        ylabel="force of the potential, eV/Å",
    )
    axes[0].text(0.05, 0.9, f"MAE {mae:.0f} meV/Å", transform=axes[0].transAxes)

    found, true = energies
    frames = np.arange(len(true))
    axes[1].plot(frames, found - bias - true, ".", color=RED, ms=4, label="before the bias")
    axes[1].plot(frames, found - true, ".", color=BLUE, ms=4, label="after the bias")
    axes[1].axhline(0, color=GREY, lw=0.8, zorder=0)
    middle = len(true) / 2
    arrow = {"arrowstyle": "-|>", "color": "black", "shrinkA": 8, "shrinkB": 8}
    axes[1].annotate("", (middle, 0), (middle, -bias), arrowprops=arrow)
    axes[1].text(middle + 3, -bias / 2, "b: one energy for all;\nno force changes", va="center")
    axes[1].set(
        title="2. Set the energy by a bias",
        xlabel="test frame",
        ylabel="energy error, eV",
        ylim=sorted((-1.15 * bias, 0.3 * bias)),
    )
    axes[1].legend(loc="center left", frameon=False, bbox_to_anchor=(0, 0.25))

    time, potential, total = trajectory
    axes[2].plot(time, potential, color=BLUE, lw=0.6, label="potential energy")
    axes[2].plot(time, total, color="black", lw=1.2, label="total energy")
    axes[2].set(
        title="3. Run it in ASE",
        xlabel="time, ps",
        ylabel="energy, eV",
        ylim=(potential.min() - 0.3 * np.ptp(potential), None),
    )
    axes[2].legend(loc="lower right", ncols=2, frameon=False)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(11)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    default = Path(__file__).parent / "pictures" / "overview.png"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
