"""The table of N-body dynamics: networks of several seeds beside baselines and published figures.

Every trained network is kept in a folder, with its figures on the test set; the table is made of
all that is there, so that seeds may be trained one by one or side by side.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ase_biasgrad.data.sets.nbody import VARIANTS, NBodyData
from ase_biasgrad.files import whole_file
from ase_biasgrad.machine import hardware
from ase_biasgrad.training.benchmarks.nbody.network import NBodyNetwork, NBodyOptions, save_network
from ase_biasgrad.training.benchmarks.nbody.training import (
    Errors,
    Samples,
    Task,
    TrainingOptions,
    constant_velocity,
    errors,
    linear_regression,
    no_change,
    samples,
    train_network,
)

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
    },
}


@dataclass(frozen=True)
class Result:
    """A trained network's figures on the test set."""

    network: str
    seed: int
    test: Errors
    validation: Errors
    equivariance_error: float
    epochs: int
    best_epoch: int
    seconds: float
    cpu_seconds: float
    parameters: int
    hardware: str


def task_of(data: NBodyData) -> Task:
    """What the data set's variant asks for."""
    variant = VARIANTS[data.variant]
    return Task(variant.ahead, variant.start, data.system.timestep * data.system.interval)


def run(
    data: NBodyData,
    network: str,
    options: TrainingOptions,
    folder: Path,
    report: Callable[[str], None],
) -> Result:
    """Train one network of `NETWORKS`, test it once, and write both to `folder`.

    Raises
    ------
    ValueError
        If there is no such network.
    """
    if network not in NETWORKS:
        raise ValueError(f"there is no network {network!r}; choose one of {list(NETWORKS)}")
    task = task_of(data)
    validation = samples(data.read("validation"), task, per_simulation=4)
    trained = train_network(
        NETWORKS[network], options, task, data.read("train"), validation, report
    )
    test = samples(data.read("test"), task)
    result = Result(
        network=network,
        seed=options.seed,
        test=errors(trained.network, test),
        validation=trained.validation,
        equivariance_error=equivariance_error(trained.network, test.select(slice(0, 256))),
        epochs=options.epochs,
        best_epoch=trained.best_epoch,
        seconds=trained.seconds,
        cpu_seconds=trained.cpu_seconds,
        parameters=sum(p.numel() for p in trained.network.parameters()),
        hardware=hardware(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{data.variant} {network} {options.seed}".replace(",", "").replace(" ", "-")
    record = {"variant": data.variant, "options": asdict(options), **asdict(result)}
    save_network(folder / f"{name}.safetensors", trained.network, record)
    with whole_file(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return result


def equivariance_error(network: NBodyNetwork, of: Samples) -> float:
    """Largest |f(R x) − R f(x)| relative to the largest |f|, over random rotations R."""
    matrices = Rotation.random(len(of), random_state=0).as_matrix()
    turn = torch.from_numpy(matrices.astype(np.float32))[:, None]  # (m, 1, 3, 3)

    def turned(vectors: torch.Tensor) -> torch.Tensor:
        return (turn @ vectors[..., None]).squeeze(-1)

    with torch.no_grad():
        one = network(of.positions, of.velocities, of.charges)
        two = network(turned(of.positions), turned(of.velocities), of.charges)
    worst = max(float((turned(a) - b).abs().max()) for a, b in zip(one, two, strict=True))
    return worst / max(float(a.abs().max()) for a in one)


def table(data: NBodyData, folder: Path) -> str:
    """Markdown: baselines, every network in `folder` (mean ± standard deviation over seeds)."""
    task = task_of(data)
    test = samples(data.read("test"), task)
    baselines = {
        "no change": no_change,
        "constant velocity": constant_velocity(task),
        "linear regression": linear_regression(samples(data.read("train"), task, 4)),
    }
    lines = [
        "| | MSE x | MSE v | seeds | epochs | CPU time per seed | equivariance error |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, predict in baselines.items():
        found = errors(predict, test)
        lines.append(f"| {name} | {found.displacement:.4f} | {found.velocity:.4f} | | | | |")
    for name, found in PUBLISHED[data.variant].items():
        lines.append(f"| *{name}* | {found.displacement:.4f} | {found.velocity:.4g} | | | | |")
    return "\n".join([*lines, *(_line(results) for results in _by_network(data, folder))])


def _by_network(data: NBodyData, folder: Path) -> list[list[Result]]:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    found: dict[tuple[str, int], list[Result]] = {}
    for record in records:
        if record.pop("variant") == data.variant:
            record.pop("options")
            for name in ("test", "validation"):
                record[name] = Errors(**record[name])
            result = Result(**record)
            found.setdefault((result.network, result.epochs), []).append(result)
    order = list(NETWORKS)
    return [found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), key[1]))]


def _line(results: list[Result]) -> str:
    def spread(values: list[float]) -> str:
        deviation = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
        return f"{np.mean(values):.4f}{deviation}"

    x, v = ([getattr(r.test, name) for r in results] for name in ("displacement", "velocity"))
    minutes = np.mean([r.cpu_seconds for r in results]) / 60
    worst = max(r.equivariance_error for r in results)
    return (
        f"| {results[0].network} | {spread(x)} | {spread(v)} | {len(results)} | "
        f"{results[0].epochs} | {minutes:.1f} min | {worst:.1e} |"
    )
