"""The table of N-body dynamics: networks of several seeds beside baselines and published figures.

Every trained network is kept in a folder, with its figures on the test set; the table is made of
all that is there for the data at hand, so that seeds may be trained one by one or side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ase_biasgrad.data.sets.nbody import VARIANTS, NBodyData
from ase_biasgrad.files import file_hash
from ase_biasgrad.training.benchmarks import tables
from ase_biasgrad.training.benchmarks.loop import Trained, TrainingOptions, measured
from ase_biasgrad.training.benchmarks.nbody.network import NBodyNetwork, NBodyOptions
from ase_biasgrad.training.benchmarks.nbody.training import (
    Errors,
    Samples,
    Task,
    constant_velocity,
    errors,
    linear_regression,
    no_change,
    samples,
    train_network,
)
from ase_biasgrad.training.benchmarks.results import Result, Store, differences
from ase_biasgrad.training.benchmarks.tables import spread

NETWORKS = {
    "se3-transformer": NBodyOptions(),
    "degree 0 only": NBodyOptions(max_degree=0),
    "se3-transformer, pair scalars": NBodyOptions(odd_paths=False, pair_scalars=True),
    "degree 0 only, pair scalars": NBodyOptions(max_degree=0, odd_paths=False, pair_scalars=True),
}
# mean square errors of displacements and velocity changes that were published for the variants
PUBLISHED = {
    "paper": {
        "SE(3)-Transformer (Fuchs et al. 2020)": Errors(0.0076, 0.075),
        "a re-implementation's best claims": Errors(0.0042, 0.071),
    },
    "egnn": {
        "SE(3)-Transformer (Satorras et al. 2021)": Errors(0.0244, np.nan),
        "EGNN (Satorras et al. 2021)": Errors(0.0071, np.nan),
        "SEGNN (Brandstetter et al. 2022)": Errors(0.0043, np.nan),
    },
}


def task_of(data: NBodyData) -> Task:
    """The task of the data set's variant."""
    variant = VARIANTS[data.variant]
    interval = data.system.timestep * data.system.interval
    return Task(variant.ahead, variant.start, interval, velocities=data.variant == "paper")


def run(
    data: NBodyData,
    network: str,
    options: TrainingOptions,
    folder: Path,
    report: Callable[[str], None],
    device: torch.device | str = "cpu",
) -> Result:
    """Train one network of `NETWORKS`, test it once, and keep both in `folder`.

    A training that was interrupted goes on from its last epoch.

    Raises
    ------
    ValueError
        If there is no such network.
    """
    if network not in NETWORKS:
        raise ValueError(f"there is no network {network!r}; choose one of {list(NETWORKS)}")
    digest, task, architecture = file_hash(data.path), task_of(data), NETWORKS[network]
    identity = {"network": network, "architecture": asdict(architecture), **asdict(options)}
    if not task.velocities:
        identity["loss"] = "displacements"

    def train(state: Path | None) -> Trained[NBodyNetwork]:
        validation = samples(data.read("validation"), task, per_simulation=4)
        return train_network(
            architecture, options, task, data.read("train"), validation, report, device, state
        )

    def test(model: NBodyNetwork) -> dict[str, Any]:
        of = samples(data.read("test"), task)
        error = equivariance_error(model, of.select(slice(0, 256)).to(device))
        return {"test": errors(model, of, device=device), "equivariance_error": error}

    store, record = Store(folder, "nbody"), {"variant": data.variant}
    return measured(store, digest, identity, NBodyNetwork, record, train, test, report, device)


def equivariance_error(network: NBodyNetwork, of: Samples) -> float:
    """Largest |f(R x) − R f(x)| relative to the largest |f|, over random rotations R."""
    matrices = Rotation.random(len(of), random_state=0).as_matrix()
    turn = torch.from_numpy(matrices.astype(np.float32))[:, None].to(of.positions)  # (m, 1, 3, 3)

    def turned(vectors: torch.Tensor) -> torch.Tensor:
        return (turn @ vectors[..., None]).squeeze(-1)

    with torch.no_grad():
        one = network(of.positions, of.velocities, of.charges)
        two = network(turned(of.positions), turned(of.velocities), of.charges)
    worst = max(float((turned(a) - b).abs().max()) for a, b in zip(one, two, strict=True))
    return worst / max(float(a.abs().max()) for a in one)


def table(data: NBodyData, folder: Path) -> str:
    """Markdown: baselines, and networks trained on these data (mean ± deviation over seeds)."""
    task = task_of(data)
    test = samples(data.read("test"), task)
    baselines = {
        "no change": no_change,
        "constant velocity": constant_velocity(task),
        "linear regression": linear_regression(samples(data.read("train"), task, 4)),
    }
    columns = ("", "MSE x", "MSE v", "seeds", "epochs", "CPU time per seed", "equivariance error")
    blank = [None] * 5
    rows: list[list[object]] = []
    for name, predict in baselines.items():
        rows.append([name, *(f"{error:.4f}" for error in errors(predict, test)), *blank])
    for name, (x, v) in PUBLISHED[data.variant].items():
        rows.append([f"*{name}*", f"{x:.4f}", None if np.isnan(v) else f"{v:.4g}", *blank])
    groups: dict[str, list[Result]] = {}
    for result in Store(folder, "nbody").results(file_hash(data.path)):
        groups.setdefault(json.dumps({**result.options, "seed": None}), []).append(result)
    order, asked = list(NETWORKS), 2 if task.velocities else 1
    found = sorted(
        groups.values(),
        key=lambda group: (order.index(group[0].options["network"]), group[0].options["epochs"]),
    )
    same = {"network": None, "architecture": None, "epochs": None, "seed": None}
    differ = differences([{**group[0].options, **same} for group in found])
    for group, options in zip(found, differ, strict=True):
        figures = [result.figures for result in group]
        rows.append(
            [
                group[0].options["network"],
                *(spread([values["test"][k] for values in figures], 4) for k in range(asked)),
                *[None] * (2 - asked),
                len(group),
                group[0].options["epochs"],
                f"{np.mean([values['cpu_seconds'] for values in figures]) / 60:.1f} min",
                f"{max(values['equivariance_error'] for values in figures):.1e}",
                options,
            ]
        )
    return tables.table([*columns, "options that differ"], rows)
