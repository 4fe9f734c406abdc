"""The table of QM9: trained networks beside a regression on the composition and the paper's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.sets.qm9 import UNITS
from ase_biasgrad.data.splits import random_split
from ase_biasgrad.training.benchmarks import tables
from ase_biasgrad.training.benchmarks.loop import Trained, TrainingOptions, measured
from ase_biasgrad.training.benchmarks.qm9.network import QM9Network, QM9Options
from ase_biasgrad.training.benchmarks.qm9.training import (
    Sample,
    composition_regression,
    mean_absolute_error,
    read_samples,
    train_network,
)
from ase_biasgrad.training.benchmarks.results import Result, Store, differences

# mean absolute errors of the SE(3)-Transformer in Fuchs et al. 2020, table 3
PUBLISHED = {
    "alpha": 0.142, "gap": 53.0, "homo": 35.0, "lumo": 33.0, "mu": 0.051, "Cv": 0.054,
}  # fmt: skip


def split(molecules: int, sizes: dict[str, int], seed: int) -> dict[str, np.ndarray]:
    """Seeded, shuffled; the test set is `sizes["test"]` molecules, or all the rest."""
    rest = molecules - sizes["train"] - sizes["validation"]
    return random_split(molecules, {"test": max(rest, 0), **sizes}, seed)


def run(
    data: Path,
    label: str,
    options: QM9Options,
    training_options: TrainingOptions,
    sizes: dict[str, int],
    cutoff: float | None,
    folder: Path,
    report: Callable[[str], None],
    device: torch.device | str = "cpu",
) -> Result:
    """Train, test once, and keep result and network in `folder`.

    The network is written as soon as it is trained; a run that failed afterwards goes on there,
    and a training that was interrupted from its last epoch.

    Raises
    ------
    ValueError
        If the data has no such label or not enough molecules, or a dipole is read out for another
        property than mu.
    """
    if label not in UNITS:
        raise ValueError(f"there is no property {label!r}; choose one of {list(UNITS)}")
    if options.readout == "dipole" and label != "mu":
        raise ValueError(
            f"the length of a dipole is the property mu, not {label}; read out the mean"
        )
    dataset = Dataset(data)
    identity = {
        "property": label,
        "network": asdict(options),
        "sizes": sizes,
        "cutoff": cutoff,
        **asdict(training_options),
    }

    @cache
    def part(name: str) -> list[Sample]:
        frames = split(len(dataset), sizes, training_options.seed)[name]
        return read_samples(dataset, frames, label, cutoff)

    def train(state: Path | None) -> Trained[QM9Network]:
        training, validation = part("train"), part("validation")
        return train_network(options, training_options, training, validation, report, device, state)

    def test(network: QM9Network) -> dict[str, Any]:
        of = part("test")
        error = mean_absolute_error(network, of)
        composition = composition_regression(part("train"), of)
        return {"test": error, "composition": composition, "tested_on": len(of)}

    store, record = Store(folder, "qm9"), {"unit": UNITS[label]}
    return measured(
        store, dataset.hash(), identity, QM9Network, record, train, test, report, device
    )


def table(data: Path, folder: Path) -> str:
    """Markdown of all results in `folder` on these data."""
    results = Store(folder, "qm9").results(Dataset(data).hash())
    results.sort(key=lambda result: (result.options["property"], result.options["epochs"]))
    same = {"property": None, "epochs": None}
    differ = differences([{**result.options, **same} for result in results])
    rows = []
    for result, options in zip(results, differ, strict=True):
        label, figures = result.options["property"], result.figures
        train = result.options["sizes"]["train"]
        steps_of_epoch = -(-train // result.options["batch_size"])
        rows.append(
            [
                f"{label} ({UNITS[label]})",
                f"{figures['test']:.3f}",
                f"{figures['composition']:.3f}",
                f"{PUBLISHED[label]:g}",
                train,
                -(-figures["steps"] // steps_of_epoch),  # those made, which a time may have ended
                figures["parameters"],
                f"{figures['cpu_seconds'] / 60:.1f} min",
                options,
            ]
        )
    columns = ("property", "MAE", "composition only", "the paper", "trained on", "epochs")
    more = ("parameters", "CPU time", "options that differ")
    return tables.table([*columns, *more], rows)
