"""Spreads of one potential's readouts: coverage and ranks on test frames, and what they cost.

python tests/benchmarks/readout_spreads.py FILE DATASET [--frames 300] [--rounds 5]

FILE is made by `biasgrad committee RUN`, and no frame of DATASET was in its training. Times are of
the processor, the fastest round of each: an ASE step's forces, and forces with spreads.
"""

import argparse
import time

import numpy as np
from scipy.stats import spearmanr

from ase_biasgrad import BiasGradCalculator, Potential
from ase_biasgrad.committee_file import read_committee
from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.machine import hardware, versions
from ase_biasgrad.training import DeviceFrames
from ase_biasgrad.training.evaluation.committee import coverage, readout_errors


def milliseconds(calc, atoms, name: str, steps: int = 200) -> float:
    """Processor time of a property of a structure that moves a little at each step."""
    begin = time.process_time()
    for k in range(steps):
        atoms.positions += 1e-4 * np.sin(k + np.arange(3 * len(atoms)).reshape(-1, 3))
        calc.get_property(name, atoms)
    return 1000 * (time.process_time() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("dataset")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    stored, dataset = read_committee(options.file), Dataset(options.dataset)
    potential = Potential.from_arrays(stored.members[0].potential)
    chosen = range(min(options.frames, len(dataset)))
    frames = DeviceFrames(dataset, chosen, potential.cutoff)
    errors = readout_errors(potential, stored.readouts, frames)
    inside = coverage(stored.calibration, errors)
    print(f"{versions()}\n{hardware('cpu', 1)}\n{len(chosen)} frames of {options.dataset}")
    print(f"inside of 90 % intervals: forces {inside.forces:.1%}, energies {inside.energy:.1%}")
    _, half_widths = stored.calibration.of_forces(errors.numbers, errors.forces_spread)
    ranks = spearmanr(np.abs(errors.forces).mean(axis=1), half_widths[:, 0]).statistic
    print(f"rank correlation of errors and spreads over atoms: {ranks:.2f}")
    calc, atoms = BiasGradCalculator(options.file, device="cpu"), dataset[0].atoms()
    rounds = [
        [milliseconds(calc, atoms, name) for name in ("forces", "forces_std")]
        for _ in range(options.rounds)
    ]
    step, spread = np.min(rounds, axis=0)
    print(f"forces {step:.3f} ms, with spreads {spread:.3f} ms: {spread / step:.2f} times")


if __name__ == "__main__":
    main()
