"""Symmetric gradient-domain machine learning (Chmiela et al. 2018, Nat. Commun. 9, 3887)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from ase_biasgrad.training.benchmarks.peers.protocol import Frames, Job

TITLE = "sGDML"
REQUIREMENTS = ("sgdml==1.0.3", "ase")
SOURCE = "sgdml 1.0.3, the defaults of `sgdml all`: symmetries found, λ = 1e-10, σ = 10, 20, … 90"
SIGMAS = tuple(range(10, 100, 10))
# training frames: σ is chosen with few, then as many as finish in the time
FEW, SIZES = 200, (300, 400, 500, 600, 700, 800)
WORSE = 1.2  # than the best σ: larger ones are not tried


def settings() -> dict[str, Any]:
    """All settings of the authors."""
    return {"sigmas": SIGMAS, "lambda": 1e-10, "few": FEW, "sizes": SIZES, "worse": WORSE}


def train(job: Job) -> dict[str, Any]:
    """Fit by Cholesky factors; all frames if the time and this machine's memory allow it."""
    import psutil
    from sgdml.predict import GDMLPredict
    from sgdml.train import GDMLTrain

    free = max(1, int(psutil.virtual_memory().available / 2**30))
    trainer = GDMLTrain(max_memory=free, max_processes=1)
    data, validation = _dataset(job.train), _dataset(job.validation)
    assert job.validation.forces is not None
    permutations: list[Any] = []  # found once, with the first task
    places = np.random.default_rng(job.seed).permutation(len(job.train))

    def fit(size: tuple[int, int]) -> Any:
        frames, sigma = size
        chosen = _part(data, np.sort(places[:frames]))
        task = trainer.create_task(
            chosen, frames, validation, len(job.validation), sigma, lam=1e-10,
            perms=permutations[0] if permutations else None,
        )  # fmt: skip
        if not permutations:
            permutations.append(task["perms"])
        return trainer.train(task)

    def error(model: Any) -> float:
        frames, forces = len(job.validation), job.validation.forces
        assert forces is not None
        positions = job.validation.positions.reshape(frames, -1)
        found = GDMLPredict(model, max_processes=1).predict(positions)[1]
        return float(np.abs(found.reshape(forces.shape) - forces).mean())

    def cost(size: tuple[int, int]) -> float:
        return float(size[0]) ** 3

    tool, every = job.tool("ladder"), len(job.train)
    few = min(FEW, every)
    ladder = tool.Ladder(job, fit, error, cost)
    for sigma in SIGMAS:
        ladder.climb([(few, sigma)])
        if ladder.tried[-1]["validation_force_mae"] > WORSE * ladder.least:
            break
    best = ladder.size[1]
    larger = [n for n in (*SIZES, every) if few < n <= every and _memory(n, job) < 0.8 * free]
    ladder.climb([(n, best) for n in larger])
    if ladder.size[0] == every:  # time is left: other length scales
        ladder.climb([(every, s) for s in (best + 10, best - 10, best + 20) if s in SIGMAS])
    np.savez_compressed(job.model / "model.npz", **ladder.best)
    frames, sigma = ladder.size
    return {**ladder.told(), "size": f"{frames} frames, σ = {sigma}"}


def _memory(frames: int, job: Job) -> float:
    """GiB of the kernel's matrix."""
    return float((3 * len(job.train.numbers) * frames) ** 2 * 8 / 2**30)


def _dataset(frames: Frames) -> dict[str, Any]:
    """Frames as sgdml reads them from a file, with their fingerprint."""
    from sgdml.utils.io import dataset_md5

    data = {
        "type": np.array("d"),
        "code_version": np.array("1.0.3"),
        "name": np.array("frames"),
        "theory": np.array("unknown"),
        "z": np.asarray(frames.numbers, dtype=np.uint8),
        "R": frames.positions,
        "E": frames.energy,
        "F": frames.forces,
        "r_unit": np.array("Ang"),
        "e_unit": np.array("eV"),
    }
    return {**data, "md5": dataset_md5(data)}


def _part(data: dict[str, Any], places: np.ndarray) -> dict[str, Any]:
    from sgdml.utils.io import dataset_md5

    part = {**data, **{name: data[name][places] for name in "REF"}}
    return {**part, "md5": dataset_md5(part)}


def calculator(model: Path) -> Calculator:
    """Its own ASE calculator, in eV and Å, on one process."""
    import logging

    logging.getLogger("sgdml").setLevel(logging.ERROR)
    from sgdml.intf.ase_calc import SGDMLCalculator
    from sgdml.predict import GDMLPredict

    found: Calculator = SGDMLCalculator(str(model / "model.npz"), E_to_eV=1.0, F_to_eV_Ang=1.0)
    stored = np.load(model / "model.npz", allow_pickle=True)
    found.gdml_predict = GDMLPredict(stored, max_processes=1)
    return found
