"""Forces of graph models trained on energies or on forces, beside SchNet's and no forces at all.

    python tests/benchmarks/graph_forces.py TRAIN.extxyz TEST.extxyz --epochs 50

Every model sees every training frame as often. The energy stage (bias by least squares, then
energies) and the two-stage recipe (forces and stress, then the bias) see the same training and
validation frames; errors are those of the test frames. Prints a Markdown table.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ase_biasgrad.backbones import build_backbone
from ase_biasgrad.checkpoint import load_checkpoint
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.importers import import_files
from ase_biasgrad.data.splits import random_split
from ase_biasgrad.potential import Potential
from ase_biasgrad.training.benchmarks.loop import TrainingOptions
from ase_biasgrad.training.benchmarks.qm7.energy_stage import fit_energies
from ase_biasgrad.training.config import config_from
from ase_biasgrad.training.evaluation.evaluate import Report, evaluate
from ase_biasgrad.training.frames.device_frames import DeviceFrames
from ase_biasgrad.training.run import train

VALIDATION = 20
SIZES = {
    "schnet": {"interactions": 3, "radial_functions": 25},
    "graph_convolution": {"interactions": 3, "radial_functions": 25},
    "atomgraph": {"features": 80},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--epochs", type=int, default=50)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--cutoff", type=float, default=5.0)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--models",
        nargs="+",
        default=[
            "schnet:forces",
            "graph_convolution:energies",
            "graph_convolution:forces",
            "atomgraph:energies",
            "atomgraph:forces",
        ],
        metavar="BACKBONE:LABELS",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("train", "test"):
            import_files([getattr(options, part)], folder / f"{part}.h5", progress=False)
        test = Dataset(folder / "test.h5")
        print(
            "| model | trained on | force MAE, meV/Å | force RMSE, meV/Å | energy MAE, meV/atom |"
        )
        print("|---|---|---|---|---|", flush=True)
        no_forces(DeviceFrames(test, range(len(test)), 1.0))
        for model in options.models:
            backbone, labels = model.split(":")
            begin = time.process_time()
            fit = {"energies": on_energies, "forces": on_forces}[labels]
            potential = fit(options, backbone, folder)
            seconds = time.process_time() - begin
            frames = DeviceFrames(test, range(len(test)), potential.cutoff)
            row(backbone, f"{labels} ({seconds:.0f} s of CPU time)", evaluate(potential, frames))


def arguments(options: argparse.Namespace, backbone: str) -> dict:
    return {"features": options.features, "cutoff": options.cutoff, **SIZES[backbone]}


def on_forces(options: argparse.Namespace, backbone: str, folder: Path) -> Potential:
    """The two-stage recipe."""
    data = folder / "train.h5"
    n_train = len(Dataset(data)) - VALIDATION
    config = config_from(
        {
            "data": {"path": str(data), "train": n_train, "validation": VALIDATION},
            "backbone": {"name": backbone, **arguments(options, backbone)},
            "force_stage": {
                "epochs": options.epochs,
                "batch_size": options.batch_size,
                "learning_rate": options.learning_rate,
                "schedule": {"warmup_steps": 50},
            },
            "bias_stage": {"method": "least-squares"},
            "trainer": {"progress_bar": False},
        }
    )
    return load_checkpoint(train(config, folder / f"{backbone}-forces").checkpoint).potential


def on_energies(options: argparse.Namespace, backbone: str, folder: Path) -> Potential:
    """The bias first, then the backbone on the energies that are left."""
    dataset = Dataset(folder / "train.h5")
    sizes = {"train": len(dataset) - VALIDATION, "validation": VALIDATION}
    split = random_split(len(dataset), sizes, seed=0)
    torch.manual_seed(0)
    elements = np.flatnonzero(dataset.compositions().sum(axis=0)).tolist()
    backbone_ = build_backbone(backbone, arguments(options, backbone))
    potential = Potential(backbone_, elements=elements)
    frames = DeviceFrames(dataset, split["train"], potential.cutoff)
    how = (options.epochs, options.batch_size, options.learning_rate)
    fit_energies(potential, frames, TrainingOptions(*how, ema_decay=0.995))
    return potential


def no_forces(frames: DeviceFrames) -> None:
    assert frames.forces is not None
    forces = 1000 * frames.forces.numpy()
    mae, rmse = np.abs(forces).mean(), np.sqrt(np.mean(forces**2))
    print(f"| no forces | – | {mae:.0f} | {rmse:.0f} | – |", flush=True)


def row(model: str, trained: str, report: Report) -> None:
    assert report.energy_per_atom is not None
    print(
        f"| {model} | {trained} | {1000 * report.forces.mae:.1f} | "
        f"{1000 * report.forces.rmse:.1f} | {1000 * report.energy_per_atom.mae:.2f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
