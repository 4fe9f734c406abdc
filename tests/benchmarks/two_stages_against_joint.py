"""Two stages against joint losses: same backbone, data, steps and seed; errors on test frames.

    python tests/benchmarks/two_stages_against_joint.py TRAIN.npz TEST.npz --epochs 60

TRAIN and TEST are rMD17 files (kcal/mol). Prints a Markdown table.
"""

import argparse
import tempfile
import time
from pathlib import Path

from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.dataset import Dataset
from ase_biasgrad.importers import ImportOptions, import_files
from ase_biasgrad.training.bias_stage import fit_bias
from ase_biasgrad.training.config import config_from
from ase_biasgrad.training.evaluate import Report, evaluate
from ase_biasgrad.training.resident import ResidentFrames
from ase_biasgrad.training.run import train

BIAS_FITS = ("mean", "median", "efwt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--backbone", default="painn")
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--weights", type=float, nargs="*", default=[0.05, 1.0])
    options = parser.parse_args()
    print("| recipe | energy MAE, meV | force MAE, meV/Å | EFwT | energy half | force half | s |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        compare(options, Path(name))


def compare(options: argparse.Namespace, folder: Path) -> None:
    units = ImportOptions(energy_unit="kcal/mol", length_unit="Angstrom")
    for part in ("train", "test"):
        import_files([getattr(options, part)], folder / f"{part}.h5", units, progress=False)
    test, training = Dataset(folder / "test.h5"), Dataset(folder / "train.h5")
    for weight in (None, *options.weights):
        config = config_from(
            {
                "data": {"path": str(folder / "train.h5"), "train": 950, "validation": 50},
                "backbone": {"name": options.backbone, "features": options.features},
                "force_stage": {
                    "epochs": options.epochs,
                    "batch_size": 10,
                    "joint": None if weight is None else {"energy_weight": weight},
                },
                "trainer": {"progress_bar": False},
            }
        )
        begin = time.monotonic()
        result = train(config, folder / f"run-{weight}")
        seconds = time.monotonic() - begin
        potential = load_checkpoint(result.checkpoint).potential
        frames = ResidentFrames(test, range(len(test)), potential.cutoff)
        if weight is not None:
            row(f"joint, energy weight {weight:g}", evaluate(potential, frames), seconds)
            continue
        fitted_on = ResidentFrames(training, range(len(training)), potential.cutoff)
        for method in BIAS_FITS:
            fit_bias(potential, fitted_on, method)
            row(f"two stages, bias by {method}", evaluate(potential, frames), seconds)


def row(name: str, report: Report, seconds: float) -> None:
    assert report.energy is not None
    assert report.efwt is not None
    efwt = report.efwt
    print(
        f"| {name} | {1000 * report.energy.mae:.2f} | {1000 * report.forces.mae:.2f} | "
        f"{efwt.both:.3f} | {efwt.energy:.3f} | {efwt.forces:.3f} | {seconds:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
