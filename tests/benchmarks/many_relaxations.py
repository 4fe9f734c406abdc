"""Relaxations together beside one by one, in turns: wall and CPU time, and their ratios.

python tests/benchmarks/many_relaxations.py CHECKPOINT [--molecule CH3CH2OH] [--count 32]
    [--dtype float64] [--threads 2] [--rounds 5] [--commands]

Both begin from the same structures, in one process, with one calculator and compiled kernels. One
by one is ASE's LBFGS. The fastest round of each counts, which other work on the machine disturbs
least; its load is printed. With --commands, `biasgrad relax` is also timed, once for all files and
once for each.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from ase.optimize import LBFGS

from ase_biasgrad.calculators import BiasGradCalculator, relax_many
from ase_biasgrad.machine import hardware, versions


def timed(action) -> tuple[float, float, list[Atoms]]:
    """Wall and CPU seconds of an action, and the structures that it leaves."""
    wall, cpu = time.perf_counter(), time.process_time()
    structures = action()
    return time.perf_counter() - wall, time.process_time() - cpu, structures


def compare_commands(checkpoint: str, starts: list[Atoms], dtype: str, fmax: float) -> None:
    """Print the wall times of one command for all structures, and of one for each."""
    common = [sys.executable, "-m", "ase_biasgrad.cli", "relax", "-c", os.path.abspath(checkpoint)]
    common += ["--dtype", dtype, "--fmax", str(fmax), "--overwrite", "-o", "out.xyz"]
    with tempfile.TemporaryDirectory() as folder:
        files = [f"{k}.xyz" for k in range(len(starts))]
        for file, atoms in zip(files, starts, strict=True):
            write(Path(folder) / file, atoms)

        def seconds(commands: list[list[str]]) -> float:
            begin = time.perf_counter()
            for names in commands:
                subprocess.run([*common, *names], cwd=folder, capture_output=True, check=True)
            return time.perf_counter() - begin

        together, alone = seconds([files]), seconds([[file] for file in files])
    print(
        f"biasgrad relax: {len(files)} commands {alone:.1f} s, one command {together:.1f} s, "
        f"{alone / together:.1f}×"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--molecule", default="CH3CH2OH", help="name, or a file that ASE reads")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fmax", type=float, default=0.02)
    parser.add_argument("--commands", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    calculator = BiasGradCalculator(options.checkpoint, device="cpu", dtype=options.dtype)
    file = os.path.exists(options.molecule)
    first = read(options.molecule) if file else molecule(options.molecule)
    starts = []
    for seed in range(options.count):
        starts.append(first.copy())
        starts[-1].rattle(0.05, seed=seed)
    steps = np.zeros(2, int)

    def one_by_one() -> list[Atoms]:
        structures = [atoms.copy() for atoms in starts]
        steps[0] = 0
        for atoms in structures:
            atoms.calc = calculator
            search = LBFGS(atoms, logfile=None)
            search.run(fmax=options.fmax, steps=1000)
            steps[0] += search.nsteps
        return structures

    def together() -> list[Atoms]:
        structures = [atoms.copy() for atoms in starts]
        outcomes = relax_many(structures, calculator, fmax=options.fmax, steps=1000)
        steps[1] = sum(outcome.steps for outcome in outcomes)
        return structures

    times = []
    one_by_one()
    together()  # loads compiled code
    for _ in range(options.rounds):
        wall, cpu, alone = timed(one_by_one)
        many_wall, many_cpu, joined = timed(together)
        times.append((wall, many_wall, cpu, many_cpu))
    walls, cpus = np.array(times)[:, :2], np.array(times)[:, 2:]
    apart = max(np.abs(a.positions - b.positions).max() for a, b in zip(alone, joined, strict=True))
    print(f"{versions()}\n{hardware('cpu', options.threads)}")
    print(
        f"{options.count} relaxations of {first.get_chemical_formula()} ({len(first)} atoms), "
        f"{options.dtype}, {steps[0]} and {steps[1]} steps, ends {apart:.1e} Å apart; load of "
        f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    for name, both in (("wall", walls), ("CPU", cpus)):
        alone_best, joined_best = both.min(axis=0)
        ratios = both[:, 0] / both[:, 1]
        print(
            f"{name}: one by one {alone_best:.3f} s, together {joined_best:.3f} s, "
            f"{alone_best / joined_best:.2f}×; in single rounds {ratios.min():.2f} to "
            f"{ratios.max():.2f}×"
        )
    if options.commands:
        compare_commands(options.checkpoint, starts, options.dtype, options.fmax)


if __name__ == "__main__":
    main()
