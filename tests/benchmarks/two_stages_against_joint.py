"""Two stages against joint losses: same backbone, data, steps and seeds; errors on test frames.

    python tests/benchmarks/two_stages_against_joint.py TRAIN.npz TEST.npz --epochs 60 --seeds 0 1 2

TRAIN and TEST are rMD17 files (kcal/mol). Prints a line per run, then Markdown tables: means over
the seeds with their standard deviations, and each joint loss's errors over those of the two
stages. Weights are those of SchNetPack's tasks, WEIGHT_OF_ENERGY:WEIGHT_OF_FORCES: with the
optimizer's rule free of the loss's scale only their ratio counts, in whatever unit.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.importers import ImportOptions, import_files
from ase_biasgrad.training.config import TrainConfig, config_from
from ase_biasgrad.training.evaluation.evaluate import Report, evaluate
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.run import train
from ase_biasgrad.training.stages.bias import fit_bias

BIAS_FITS = ("mean", "median", "efwt")
FIGURES = ("energy MAE, meV", "force MAE, meV/Å", "EFwT", "energy half", "force half", "s")


@dataclass(frozen=True)
class Recipe:
    """A loss for forces, and what the energies count beside it (nothing: two stages)."""

    loss: str
    weights: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        if self.weights is None:
            return f"two stages, {self.loss}"
        return f"joint, {self.loss}, {self.weights[0]:g} : {self.weights[1]:g}"


Errors = dict[str, list[tuple[float, ...]]]  # by recipe, for each seed the FIGURES


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--backbone", default="painn")
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--interactions", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--losses", nargs="+", default=["l1", "l2"], help="of the two stages")
    parser.add_argument(
        "--joint", nargs="*", default=["l2:0.01:0.99", "l2:0.05:0.95"], help="LOSS:ENERGY:FORCES"
    )
    options = parser.parse_args()
    recipes = [Recipe(loss) for loss in options.losses]
    for text in options.joint:
        loss, energy, forces = text.split(":")
        recipes.append(Recipe(loss, (float(energy), float(forces))))
    errors: Errors = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        units = ImportOptions(energy_unit="kcal/mol", length_unit="Angstrom")
        for part in ("train", "test"):
            import_files([getattr(options, part)], folder / f"{part}.h5", units, progress=False)
        for seed in options.seeds:
            for recipe in recipes:
                run(options, recipe, seed, folder, errors)
    table(errors)
    ratios(errors, [recipe.name for recipe in recipes if recipe.weights])


def run(
    options: argparse.Namespace, recipe: Recipe, seed: int, folder: Path, errors: Errors
) -> None:
    config = configuration(options, recipe, seed, folder / "train.h5")
    begin = time.monotonic()
    result = train(config, folder / f"{recipe.name}-{seed}")
    seconds = time.monotonic() - begin
    potential = load_checkpoint(result.checkpoint).potential
    test, training = Dataset(folder / "test.h5"), Dataset(folder / "train.h5")
    frames = DeviceFrames(test, range(len(test)), potential.cutoff)
    if recipe.weights is not None:
        return note(recipe.name, seed, evaluate(potential, frames), seconds, errors)
    fitted_on = DeviceFrames(training, range(len(training)), potential.cutoff)
    for method in BIAS_FITS:
        fit_bias(potential, fitted_on, method)
        note(f"{recipe.name}, {method}", seed, evaluate(potential, frames), seconds, errors)


def configuration(
    options: argparse.Namespace, recipe: Recipe, seed: int, data: Path
) -> TrainConfig:
    joint = recipe.weights and {"energy_weight": recipe.weights[0] / recipe.weights[1]}
    return config_from(
        {
            "data": {"path": str(data), "train": 950, "validation": 50},
            "backbone": {
                "name": options.backbone,
                "features": options.features,
                "interactions": options.interactions,
            },
            "force_stage": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "loss": recipe.loss,
                "elastic_weight": 0.0,  # SchNetPack's tasks have none
                "joint": joint,
            },
            "trainer": {"progress_bar": False},
            "seed": seed,
        }
    )


def note(name: str, seed: int, report: Report, seconds: float, errors: Errors) -> None:
    assert report.energy is not None
    assert report.efwt is not None
    efwt = report.efwt
    figures = (
        1000 * report.energy.mae,
        1000 * report.forces.mae,
        efwt.both,
        efwt.energy,
        efwt.forces,
        seconds,
    )
    errors[name].append(figures)
    said = "  ".join(f"{what} {value:.4g}" for what, value in zip(FIGURES, figures, strict=True))
    print(f"{name}, seed {seed}: {said}", flush=True)


def table(errors: Errors) -> None:
    print(f"\n| recipe | {' | '.join(FIGURES)} |\n|---|{'---|' * len(FIGURES)}")
    for name, runs in errors.items():
        means, spreads = np.mean(runs, axis=0), np.std(runs, axis=0, ddof=len(runs) > 1)
        cells = [f"{m:.2f} ± {s:.2f}" for m, s in zip(means[:2], spreads[:2], strict=True)]
        cells += [f"{m:.3f} ± {s:.3f}" for m, s in zip(means[2:5], spreads[2:5], strict=True)]
        print(f"| {name} | {' | '.join(cells)} | {means[5]:.0f} |")


def ratios(errors: Errors, joint: list[str]) -> None:
    """Errors of two stages over those of joint losses, seed by seed: below 1 two stages win."""
    print("\n| two stages / joint | energy MAE | force MAE |\n|---|---|---|")
    for name in [name for name in errors if name not in joint]:
        for other in joint:
            ratio = np.array(errors[name])[:, :2] / np.array(errors[other])[:, :2]
            cells = [f"{np.mean(r):.3f} ({min(r):.3f} … {max(r):.3f})" for r in ratio.T]
            print(f"| {name} / {other} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
