"""The table of QM9: trained networks beside a regression on the composition and the paper's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.sets.qm9 import UNITS
from ase_biasgrad.data.splits import random_split
from ase_biasgrad.files import whole_file
from ase_biasgrad.machine import hardware
from ase_biasgrad.training.benchmarks.qm9.harmonics_cache import open_cache
from ase_biasgrad.training.benchmarks.qm9.network import QM9Network, QM9Options
from ase_biasgrad.training.benchmarks.qm9.training import (
    Part,
    TrainingOptions,
    composition_regression,
    mean_absolute_error,
    read_samples,
    train_network,
)

# mean absolute errors of the SE(3)-Transformer in Fuchs et al. 2020, table 3
PUBLISHED = {
    "alpha": 0.142, "gap": 53.0, "homo": 35.0, "lumo": 33.0, "mu": 0.051, "Cv": 0.054,
}  # fmt: skip
PAPER_SIZES: dict[str, int | float] = {"train": 100_000, "validation": 18_000}


@dataclass(frozen=True)
class Result:
    """Mean absolute errors on the test set in `UNITS`, and how they came about."""

    label: str
    test: float
    validation: float
    composition: float
    sizes: dict[str, int]
    epochs: int
    best_epoch: int
    seconds: float
    cpu_seconds: float
    parameters: int
    network: dict[str, int]
    cutoff: float | None
    hardware: str


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
) -> Result:
    """Train, test once, and write the result to `folder`, where caches of harmonics stay too.

    Raises
    ------
    ValueError
        If the data has no such label or not enough molecules.
    """
    if label not in UNITS:
        raise ValueError(f"there is no property {label!r}; choose one of {list(UNITS)}")
    dataset = Dataset(data)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    order = QM9Network(options).transformer.highest_order
    for name, frames in split(len(dataset), sizes, training_options.seed).items():
        samples = read_samples(dataset, frames, label, cutoff)
        kind = "bonds" if cutoff is None else f"{cutoff:g}"
        file = f"harmonics-{name}-{len(frames)}-{training_options.seed}-{kind}-{order}.h5"
        vectors = [sample.vectors for sample in samples]
        parts[name] = Part(samples, open_cache(folder / file, vectors, order, progress=True))
    trained = train_network(options, training_options, parts["train"], parts["validation"], report)
    result = Result(
        label=label,
        test=mean_absolute_error(trained.network, trained.mean, trained.deviation, parts["test"]),
        validation=trained.validation,
        composition=composition_regression(parts["train"].samples, parts["test"].samples),
        sizes={name: len(part.samples) for name, part in parts.items()},
        epochs=training_options.epochs,
        best_epoch=trained.best_epoch,
        seconds=trained.seconds,
        cpu_seconds=trained.cpu_seconds,
        parameters=sum(p.numel() for p in trained.network.parameters()),
        network={k: int(v) for k, v in asdict(options).items()},
        cutoff=cutoff,
        hardware=hardware(),
    )
    name = f"{label}-{result.parameters}-{sizes['train']}-{result.epochs}-{training_options.seed}"
    with whole_file(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=1), encoding="utf-8")
    return result


def table(folder: Path) -> str:
    """Markdown of all results in `folder`."""
    lines = [
        "| property | MAE | composition only | the paper | trained on | epochs | parameters | "
        "CPU time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*.json")):
        result = Result(**json.loads(path.read_text(encoding="utf-8")))
        lines.append(
            f"| {result.label} ({UNITS[result.label]}) | {result.test:.3f} | "
            f"{result.composition:.3f} | {PUBLISHED[result.label]:g} | {result.sizes['train']} | "
            f"{result.epochs} | {result.parameters} | {result.cpu_seconds / 60:.1f} min |"
        )
    return "\n".join(lines)
