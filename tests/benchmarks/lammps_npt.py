"""Volume, pressure and temperature of NPT in ASE and in LAMMPS, with statistical errors.

    python tests/benchmarks/lammps_npt.py POTENTIAL STRUCTURE --steps 6000

The structure is periodic; both runs begin with the same momenta. Errors are those of eight blocks
behind the first fifth.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.io import Trajectory, read, write
from ase.md.nose_hoover_chain import MTKNPT
from ase.md.velocitydistribution import thermalize_momenta

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.calculators.lammps import run_dynamics

INTERVAL, BLOCKS = 25, 8


def in_ase(atoms: Atoms, a: argparse.Namespace, trajectory: Path) -> None:
    atoms.calc = BiasGradCalculator(a.potential, device="cpu")
    step = a.timestep * units.fs
    dynamics = MTKNPT(
        atoms, step, temperature_K=a.temperature, pressure_au=a.pressure * units.GPa,
        tdamp=100 * step, pdamp=1000 * step,
    )  # fmt: skip
    dynamics.attach(Trajectory(trajectory, "w", atoms).write, interval=INTERVAL)
    dynamics.run(a.steps)


def in_lammps(atoms: Atoms, a: argparse.Namespace, trajectory: Path) -> None:
    start = trajectory.with_name("start.traj")
    write(start, atoms)
    run_dynamics(
        structure=str(start), checkpoints=[a.potential], trajectory=str(trajectory), steps=a.steps,
        timestep=a.timestep, ensemble="npt", temperature=a.temperature, pressure=a.pressure,
        friction=0.0, interval=INTERVAL, seed=1, dtype="float32", stop_outside=False,
        stop_spread=None, first=True, report=str(trajectory.with_suffix(".txt")),
    )  # fmt: skip


def mean_and_error(values: list[float]) -> str:
    x = np.array(values)[len(values) // 5 :]
    blocks = np.array([block.mean() for block in np.array_split(x, BLOCKS)])
    return f"{x.mean():10.3f} ± {blocks.std(ddof=1) / BLOCKS**0.5:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("potential")
    parser.add_argument("structure")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--timestep", type=float, default=2.0, help="fs")
    parser.add_argument("--temperature", type=float, default=600.0, help="K")
    parser.add_argument("--pressure", type=float, default=3.0, help="GPa")
    a = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    print(f"{'':8s}{'Å³/atom':>18s}{'GPa':>18s}{'K':>18s}")
    for name, run in (("ASE", in_ase), ("LAMMPS", in_lammps)):
        with tempfile.TemporaryDirectory() as folder:
            atoms = read(a.structure)
            thermalize_momenta(atoms, a.temperature, rng=np.random.default_rng(0))
            run(atoms, a, Path(folder) / "md.traj")
            frames = list(Trajectory(Path(folder) / "md.traj"))
        stress = [f.get_stress(include_ideal_gas=True)[:3].mean() for f in frames]
        print(
            f"{name:8s}{mean_and_error([f.get_volume() / len(f) for f in frames]):>18s}"
            f"{mean_and_error([-s / units.GPa for s in stress]):>18s}"
            f"{mean_and_error([f.get_temperature() for f in frames]):>18s}",
            flush=True,
        )


if __name__ == "__main__":
    main()
