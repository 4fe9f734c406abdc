"""The whole job on one molecule: data, force stage, bias stage, relaxation, dynamics.

Reference data comes from GFN2-xTB (tblite). Takes a few minutes on two cores.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS

# before torch: on Python 3.11 torch 2.4 brings an OpenMP that tblite cannot use
from tblite.ase import TBLite

from ase_biasgrad import BiasGradCalculator, Dataset, load_checkpoint, sample
from ase_biasgrad.training import (
    DeviceFrames,
    Report,
    config_from,
    evaluate,
    table,
    train,
    write_report,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"))
    parser.add_argument("--frames", type=int, default=1000, help="training and validation frames")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10_000, help="MD steps of 0.5 fs")
    options = parser.parse_args()
    folder = options.output / time.strftime("%Y-%m-%d_%H-%M-%S")
    folder.mkdir(parents=True)

    print("1. reference data: ethanol at 500 K by GFN2-xTB (about 2 minutes)", flush=True)
    xtb = TBLite(method="GFN2-xTB", verbosity=0)
    start = molecule("CH3CH2OH")
    start.calc = xtb
    LBFGS(start, logfile=None).run(fmax=0.02)
    training, testing = folder / "train.h5", folder / "test.h5"
    sample(start, xtb, training, frames=options.frames, interval=20, seed=0, progress=False)
    sample(start, xtb, testing, frames=options.frames // 4, interval=20, seed=1, progress=False)

    print("2. force stage and bias stage: TensorNet (about 3 minutes)", flush=True)
    config = config_from(
        {
            "data": {"path": str(training), "train": 0.9, "validation": 0.1, "test": 0},
            "backbone": {"features": options.features},
            "force_stage": {"epochs": options.epochs},
            "trainer": {"progress_bar": False},
        }
    )
    begin = time.monotonic()
    result = train(config, folder / "run")
    training_time = time.monotonic() - begin

    print("3. evaluation on a trajectory of its own", flush=True)
    after = tested(result.checkpoint, testing)
    pictures = write_report(folder / "report", after, folder / "run" / "metrics.csv")
    before = result.before_bias

    print("4. relaxation and NVE dynamics with the potential\n", flush=True)
    atoms = molecule("CH3CH2OH")
    atoms.calc = BiasGradCalculator(result.checkpoint)
    relaxation = LBFGS(atoms, logfile=None)
    converged = relaxation.run(fmax=0.02, steps=300)
    distance = np.abs(sorted_distances(atoms) - sorted_distances(start)).max()
    drift, step_time = nve(atoms, options.steps)

    print(table(after))
    print(f"""
force MAE before the bias stage   {1000 * before.forces.mae:12.3f} meV/Å (validation)
force MAE after it                {1000 * result.after_bias.forces.mae:12.3f} meV/Å (validation)
energy MAE before                 {1000 * before.energy.mae:12.3f} meV (validation)
energy MAE after                  {1000 * result.after_bias.energy.mae:12.3f} meV (validation)
EFwT on the test trajectory       {after.efwt.both:12.3f}
training time                     {training_time:12.1f} s
relaxation                        {"converged" if converged else "NOT converged":>12} in \
{relaxation.nsteps} steps; distances within {distance:.3f} Å of GFN2-xTB's
energy drift of NVE               {1000 * drift:12.5f} meV/atom/ps
time per MD step                  {1000 * step_time:12.3f} ms ({atoms.calc.engine} engine)
checkpoint                        {result.checkpoint}
pictures                          {", ".join(str(picture) for picture in pictures)}""")


def tested(checkpoint: Path, data: Path) -> Report:
    potential = load_checkpoint(checkpoint).potential
    dataset = Dataset(data)
    return evaluate(potential, DeviceFrames(dataset, range(len(dataset)), potential.cutoff))


def sorted_distances(atoms: Atoms) -> np.ndarray:
    return np.sort(atoms.get_all_distances(), None)


def nve(atoms: Atoms, steps: int) -> tuple[float, float]:
    """Slope of the total energy in eV/atom/ps, and seconds per step."""
    thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
    Stationary(atoms)
    ZeroRotation(atoms)
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    energies: list[float] = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()), interval=10)
    begin = time.monotonic()
    dynamics.run(steps)
    seconds = (time.monotonic() - begin) / steps
    picoseconds = np.arange(len(energies)) * 10 * 0.5e-3
    return float(np.polyfit(picoseconds, energies, 1)[0]) / len(atoms), seconds


if __name__ == "__main__":
    main()
