"""Energy drift of NVE dynamics with a checkpoint: slope of the total energy in meV/atom/ps.

python tests/benchmarks/nve_drift.py CHECKPOINT [--picoseconds 100] [--engine reference]
"""

import argparse
import time

import numpy as np
from ase import units
from ase.build import molecule
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

from ase_biasgrad import BiasGradCalculator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--molecule", default="CH3CH2OH")
    parser.add_argument("--picoseconds", type=float, default=100.0)
    parser.add_argument("--temperature", type=float, default=300.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--engine", default="auto")
    options = parser.parse_args()
    atoms = molecule(options.molecule)
    atoms.calc = BiasGradCalculator(
        options.checkpoint, device="cpu", dtype=options.dtype, engine=options.engine
    )
    LBFGS(atoms, logfile=None).run(fmax=0.01, steps=300)
    # from a minimum half of the kinetic energy becomes potential energy
    thermalize_momenta(atoms, 2 * options.temperature, rng=np.random.default_rng(0))
    Stationary(atoms)
    ZeroRotation(atoms)
    energies, temperatures = [], []

    def record() -> None:
        energies.append(atoms.get_total_energy())
        temperatures.append(atoms.get_temperature())

    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.attach(record, interval=20)
    steps = int(options.picoseconds * 2000)
    begin = time.monotonic()
    dynamics.run(steps)
    seconds = time.monotonic() - begin
    picoseconds = np.arange(len(energies)) * 0.01
    slope = np.polyfit(picoseconds, energies, 1)[0] / len(atoms)
    print(
        f"{options.picoseconds:g} ps, mean temperature {np.mean(temperatures):.0f} K, "
        f"{atoms.calc.engine} engine, {options.dtype}: drift {1000 * slope:.6f} meV/atom/ps, "
        f"fluctuation {1000 * np.std(energies) / len(atoms):.5f} meV/atom, "
        f"{1000 * seconds / steps:.3f} ms per step"
    )


if __name__ == "__main__":
    main()
