"""Linear atomic cluster expansion, package ace-jax of the authors of ACEpotentials.jl."""

from __future__ import annotations

import contextlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from ase_biasgrad.training.benchmarks.peers.protocol import Frames, Job

TITLE = "linear ACE"
REQUIREMENTS = ("ace-jax==0.4.1",)
SOURCE = "Witt et al. 2023, J. Chem. Phys. 159, 164101: the scripts for rMD17 of ACEpotentials.jl"
# correlation order and total degree, from small to the authors'; the fit regularises itself by
# evidence where theirs tried several dampings
SIZES = ([2, 8], [3, 8], [3, 10], [4, 8], [4, 9])
OPTIONS = {"rcut": 4.4, "rin": 0.77, "r0": 1.43, "wL": 2.0}  # Å; weight of l in the degree
BOX = 100.0  # Å, not periodic
WEIGHTS = {"default": {"E": 30.0, "F": 1.0, "V": 1.0}}


def settings() -> dict[str, Any]:
    """All settings of the authors."""
    return {"sizes": SIZES, **OPTIONS, "weights": WEIGHTS}


def train(job: Job) -> dict[str, Any]:
    """Fit larger and larger bases while they finish in the time."""
    _in_float64_on_one_thread()
    from ace_jax.basis.export import save_npz
    from ace_jax.basis.model import build_model
    from ace_jax.cli import main
    from ase.io import write

    for part, frames in (("train", job.train), ("validation", job.validation)):
        write(job.folder / f"{part}.extxyz", frames.atoms())

    def fit(size: list[int]) -> Path:
        folder = job.folder / f"ace-{size[0]}-{size[1]}"
        folder.mkdir()
        elements = sorted({int(z) for z in job.train.numbers})
        save_npz(folder / "basis.npz", build_model(elements, *size, **OPTIONS))
        arguments = [
            *("fit", "--model", str(folder / "basis.npz"), "--r0", str(OPTIONS["r0"])),
            *("--weights", json.dumps(WEIGHTS), "--e0", "lsq", "--seed", str(job.seed)),
            *(
                "--map-polish",
                "off",
            ),  # of an optimum that is found already: time for a larger basis
            *("--train", str(job.folder / "train.extxyz")),
            *("--test", str(job.folder / "validation.extxyz"), "--out", str(folder)),
        ]
        with (job.folder / "ace.log").open("a") as log, contextlib.redirect_stdout(log):
            main(arguments)
        return folder / "model.npz"

    def error(path: Path) -> float:
        return _force_mae(calculator(path.parent), job.validation)

    def cost(size: list[int]) -> float:
        order, degree = size
        functions = degree**order / math.factorial(order)  # about
        return functions**2

    ladder = job.tool("ladder").Ladder(job, fit, error, cost)
    ladder.climb(SIZES)
    (job.model / "model.npz").write_bytes(ladder.best.read_bytes())
    order, degree = ladder.size
    return {**ladder.told(), "size": f"order {order}, degree {degree}"}


def _in_float64_on_one_thread() -> None:
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ.setdefault("XLA_FLAGS", flags)
    import jax

    jax.config.update("jax_enable_x64", True)


def _force_mae(calculator: Calculator, frames: Frames) -> float:
    errors = []
    assert frames.forces is not None
    for atoms, forces in zip(frames.atoms(), frames.forces, strict=True):
        atoms.calc = calculator
        errors.append(np.abs(atoms.get_forces() - forces).mean())
    return float(np.mean(errors))


def calculator(model: Path) -> Calculator:
    """Its own ASE calculator."""
    _in_float64_on_one_thread()
    from ace_jax import ACECalculator

    class Boxed(ACECalculator):  # type: ignore[misc]  # asks each structure for its volume
        def calculate(self, atoms: Any = None, *arguments: Any, **keywords: Any) -> None:
            boxed = atoms.copy()
            boxed.cell = [BOX] * 3
            super().calculate(boxed, *arguments, **keywords)
            self.atoms = atoms.copy()  # the results are of this one

    found: Calculator = Boxed(str(model / "model.npz"))
    return found
