"""Potentials of `biasgrad learn` beside their references, where blind sampling shows too little.

    python tests/benchmarks/learned_potentials.py crystal -o crystal
    python tests/benchmarks/learned_potentials.py proton-transfer -o transfer

crystal: Cu₃Au (EMT), perfect and with a vacancy. Elastic constants of the perfect crystal by both,
each in its own minimum; dynamics of the committee at 900 K, ended by `--limit`, and the errors of
the forces there by the reference; coverage of the 90 % intervals on dynamics of the reference.

proton-transfer: malonaldehyde (GFN2-xTB), between its two enols. The barrier by both, each with its
own band of images and its own minima, and the same coverage. A third potential is trained in the
same way on as many frames of dynamics at 300 K.

What is done is kept in the folder, so the same line goes on after an interruption. Prints the
command of the learning and Markdown tables.
"""

import argparse
import shlex
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from active_learning import coverage_on, force_errors, trained_as
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

from ase_biasgrad.data.dataset import Dataset
from ase_biasgrad.data.labelling import Reference, prepare
from ase_biasgrad.data.sampling import sample
from ase_biasgrad.machine import hardware, versions

# an enol of malonaldehyde, relaxed by GFN2-xTB to 0.3 eV/Å or better; its last H is that between O
ENOL = Atoms(
    "CCCOOHHHH",
    [
        (-1.20, -0.05, 0.0), (0.02, -0.72, 0.0), (1.22, 0.03, 0.0), (-1.27, 1.27, 0.0),
        (1.25, 1.26, 0.0), (-2.15, -0.57, 0.0), (0.03, -1.80, 0.0), (2.17, -0.53, 0.0),
        (-0.33, 1.62, 0.0),
    ],
)  # fmt: skip
MIRRORED = [2, 1, 0, 4, 3, 7, 6, 5, 8]  # atoms that a mirror puts in the place of each
IMAGES = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=("crystal", "proton-transfer"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--calculator", help="the reference; by default that of the study")
    parser.add_argument("--learn", default="", help="more options of `biasgrad learn`, in a text")
    parser.add_argument("--limit", type=float, default=0.3, help="eV/Å, of an expected error")
    parser.add_argument("--picoseconds", type=float, default=50.0, help="of each dynamics")
    parser.add_argument("--seeds", type=int, default=10, help="dynamics of the committee")
    parser.add_argument("--test", type=int, default=200, help="frames at each temperature")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    default = {"crystal": "emt", "proton-transfer": "gfn2-xtb"}[options.study]
    options.calculator = options.calculator or default
    prepare(Reference(options.calculator))  # tblite has to be loaded before torch
    print(f"{versions()}\n{hardware('cpu', 1)}\n")
    warnings.simplefilter("ignore")  # of the energy zero, and of what is outside of the range
    STUDIES[options.study](options)


# --- a crystal with a vacancy ----------------------------------------------------------------


def crystal(options: argparse.Namespace) -> None:
    """Tables of the crystal."""
    perfect = bulk("Cu", cubic=True, a=3.75)
    perfect.symbols[0] = "Au"
    perfect = perfect.repeat(2)
    vacancy = perfect.copy()
    del vacancy[1]
    folder = learned(
        options,
        {"perfect.xyz": perfect, "vacancy.xyz": vacancy},
        "--explorer md --explorer strain --temperature 900 --timestep 5 --steps 5000 "
        "--limit 0.1 --budget 150 --per-round 20 --option force_stage.batch_size=2",
    )
    elastic_table(folder, options, perfect)
    dynamics_table(folder, options, vacancy)
    coverage_table(folder, options, vacancy, [600.0, 900.0, 1200.0], timestep=5.0)


def elastic_table(folder: Path, options: argparse.Namespace, perfect: Atoms) -> None:
    """Lattice and elastic constants by both."""
    learned_one = potential(folder / "potential.safetensors")
    of = {"reference": reference(options), "learned": learned_one}
    found = {name: lattice_and_elastic_constants(perfect, calc) for name, calc in of.items()}
    print("| | a, Å | C₁₁, GPa | C₁₂ | C₄₄ |\n|---|---|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {values[0]:.4f} | " + " | ".join(f"{c:.1f}" for c in values[1:]) + " |")
    errors = np.abs(found["learned"] / found["reference"] - 1)
    print(f"\nlargest error of an elastic constant: {errors[1:].max():.1%}\n", flush=True)


def lattice_and_elastic_constants(perfect: Atoms, calc: Calculator) -> np.ndarray:
    """Lattice constant in Å, and C₁₁, C₁₂, C₄₄ in GPa by finite strains."""
    from matscipy.elasticity import measure_triclinic_elastic_constants

    atoms = perfect.copy()
    atoms.calc = calc
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-3, steps=200)
    a = atoms.cell.lengths().mean() / 2
    c = measure_triclinic_elastic_constants(atoms, delta=2e-3, optimizer=BFGS, fmax=1e-3, steps=200)
    c = np.asarray(c) / units.GPa  # (3, 3, 3, 3)
    normal = np.einsum("iijj->ij", c)
    coupled = normal[np.triu_indices(3, 1)].mean()
    shear = np.mean([c[1, 2, 1, 2], c[0, 2, 0, 2], c[0, 1, 0, 1]])
    return np.array([a, np.diag(normal).mean(), coupled, shear])


def dynamics_table(folder: Path, options: argparse.Namespace, start: Atoms) -> None:
    """Dynamics of the committee from the vacancy, and what the reference says where they ended."""
    print("| seed | ps | largest expected error, eV/Å | stop: largest error by the reference |")
    print("|---|---|---|---|")
    checked, stops, confirmed = reference(options), 0, 0
    for seed in range(options.seeds):
        atoms, done, largest = dynamics(folder, options, start, seed)
        told = ""
        if largest > options.limit:
            forces = atoms.get_forces()
            error = np.linalg.norm(forces - checked.get_forces(atoms), axis=1).max()
            stops, confirmed = stops + 1, confirmed + (error > options.limit)
            told = f"{error:.3f}"
        print(f"| {seed} | {done:.1f} | {largest:.3f} | {told} |", flush=True)
    print(f"\n{stops} stops, of which the reference confirms {confirmed}\n", flush=True)


def dynamics(
    folder: Path, options: argparse.Namespace, start: Atoms, seed: int
) -> tuple[Atoms, float, float]:
    """The last structure, picoseconds, and the largest expected error of a force, eV/Å."""
    atoms, random = start.copy(), np.random.default_rng([7, seed])
    atoms.calc = committee(folder)
    MaxwellBoltzmannDistribution(atoms, temperature_K=900, rng=random)
    Stationary(atoms)
    runner = Langevin(atoms, 5 * units.fs, temperature_K=900, friction=0.002 / units.fs, rng=random)
    largest, steps = 0.0, round(options.picoseconds / 0.005)
    for _ in runner.irun(steps):
        spread = np.linalg.norm(atoms.calc.get_property("forces_std", atoms), axis=1).max()
        largest = max(largest, float(spread))
        if largest > options.limit:
            break
    return atoms, runner.nsteps * 0.005, largest


# --- a proton on its way ---------------------------------------------------------------------


def proton_transfer(options: argparse.Namespace) -> None:
    """Tables of malonaldehyde."""
    calc = reference(options)
    first = relaxed(ENOL, calc)
    folder = learned(
        options,
        {"enol.xyz": first, "other_enol.xyz": mirrored(first)},
        "--explorer md --explorer neb --temperature 300 --budget 150 --per-round 20",
    )
    print("| | barrier, meV | images | seconds |\n|---|---|---|---|")
    barriers = []
    blind = blind_checkpoint(folder, options, first)
    of = {"learned": folder / "potential.safetensors", "dynamics at 300 K": blind}
    calculators = {"reference": calc, **{name: potential(path) for name, path in of.items()}}
    for name, calculator in calculators.items():
        begun = time.monotonic()
        barriers.append(1000 * barrier(relaxed(first, calculator), calculator))
        print(f"| {name} | {barriers[-1]:.1f} | {IMAGES} | {time.monotonic() - begun:.0f} |")
    print(f"\nerror of the barrier: {abs(barriers[0] - barriers[1]):.1f} meV")
    for name, path in (("learned", folder / "data.h5"), ("dynamics", options.output / "blind.h5")):
        print(
            f"{name}: {transferring(path)} of {len(Dataset(path))} frames have the proton between"
        )
    print()
    coverage_table(folder, options, first, [300.0, 600.0], timestep=0.5)


def blind_checkpoint(folder: Path, options: argparse.Namespace, start: Atoms) -> Path:
    """Checkpoint of a training on as many frames of dynamics at 300 K as were learned from."""
    path = options.output / "blind.h5"
    if not path.exists():
        frames = len(Dataset(folder / "data.h5"))
        sample(
            start, reference(options), path, temperatures=[300.0], frames=frames, interval=50,
            seed=5, progress=False,
        )  # fmt: skip
    return trained_as(folder, path, len(Dataset(path)), options.output / "blind")


def mirrored(enol: Atoms) -> Atoms:
    """The enol with the proton at its other oxygen, atoms in the same order."""
    other = enol.copy()
    other.positions = enol.positions[MIRRORED] * (-1, 1, 1)
    return other


def relaxed(atoms: Atoms, calc: Calculator) -> Atoms:
    """The nearest minimum."""
    found = atoms.copy()
    found.calc = calc
    BFGS(found, logfile=None).run(fmax=0.005, steps=300)
    found.calc = None
    return found


def barrier(first: Atoms, calc: Calculator) -> float:
    """Energy of the highest image over the first, eV."""
    images = [first.copy() for _ in range(IMAGES - 1)] + [mirrored(first)]
    for image in images:
        image.calc = calc
    band = NEB(images, climb=True, allow_shared_calculator=True, method="improvedtangent")
    band.interpolate("idpp")
    FIRE(band, logfile=None).run(fmax=0.03, steps=400)
    energies = [image.get_potential_energy() for image in images]
    return float(max(energies) - energies[0])


def transferring(data: Path) -> int:
    """Frames whose proton is nearly as close to the one oxygen as to the other."""
    count = 0
    for frame in Dataset(data):
        a, b = np.linalg.norm(frame.positions[8] - frame.positions[[3, 4]], axis=1)
        count += abs(a - b) < 0.2
    return count


# --- what both have in common ----------------------------------------------------------------


def learned(options: argparse.Namespace, starts: dict[str, Atoms], arguments: str) -> Path:
    """Folder of the learning, which is finished."""
    for name, atoms in starts.items():
        if not (options.output / name).exists():
            write(options.output / name, atoms)
    command = f"learn {' '.join(starts)} --calculator {options.calculator} -o learned "
    command += f"{arguments} {options.learn}"
    print(f"biasgrad {command}\n", flush=True)
    folder = options.output / "learned"
    if not (folder / "potential.safetensors").exists():
        if (folder / "learn.json").exists():
            command = "learn --resume learned"
        begun = time.monotonic()
        words = [sys.executable, "-m", "ase_biasgrad.cli", *shlex.split(command)]
        subprocess.run(words, cwd=options.output, check=True)
        print(f"\n{(time.monotonic() - begun) / 60:.1f} min\n", flush=True)
    return folder


def coverage_table(
    folder: Path, options: argparse.Namespace, start: Atoms, heats: list[float], timestep: float
) -> None:
    """Errors on dynamics of the reference, and coverage of the intervals of the committee."""
    from ase_biasgrad.checkpoint import load_checkpoint

    final = load_checkpoint(folder / "potential.safetensors").potential
    print("| K | force MAE, meV/Å | inside of the 90 % intervals | by element |\n|---|---|---|---|")
    for kelvin in heats:
        path = options.output / f"test{kelvin:g}.h5"
        if not path.exists():
            sample(
                start, reference(options), path, temperatures=[kelvin], frames=options.test,
                interval=20, timestep=timestep, friction=0.02 / timestep, equilibration=1000,
                seed=99, progress=False,
            )  # fmt: skip
        mae = force_errors(final, path)["mae"]
        covered = coverage_on(folder / "committee.safetensors", path)
        each = ", ".join(f"{z} {share:.0%}" for z, share in covered["by_element"].items())
        print(f"| {kelvin:g} | {1000 * mae:.1f} | {covered['forces']:.1%} | {each} |", flush=True)


def reference(options: argparse.Namespace) -> Calculator:
    """A calculator of the reference."""
    return Reference(options.calculator).calculator()


def potential(checkpoint: Path) -> Calculator:
    """A potential in float64."""
    from ase_biasgrad import BiasGradCalculator

    return BiasGradCalculator(checkpoint, device="cpu", dtype="float64")


def committee(folder: Path) -> Calculator:
    """The last committee."""
    from ase_biasgrad import BiasGradCalculator

    return BiasGradCalculator(folder / "committee.safetensors", device="cpu")


STUDIES = {"crystal": crystal, "proton-transfer": proton_transfer}


if __name__ == "__main__":
    main()
