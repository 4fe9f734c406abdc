"""`biasgrad relax` and `biasgrad md`: what people do every day, from a shell."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.lammps import MOST_SEEDS, Mpiexec, Ranks, run_md
from ase_biasgrad.cli.options import Device, Overwrite
from ase_biasgrad.files import refuse_existing, refuse_own_input, whole_file

if TYPE_CHECKING:
    from ase import Atoms

Structure = Annotated[str, typer.Argument(help="file that ASE reads, or a molecule's name")]
Structures = Annotated[
    list[str],
    typer.Argument(help="files that ASE reads, or names of molecules; several relax together"),
]
Checkpoints = Annotated[
    list[Path], typer.Option("--checkpoint", "-c", help="may be repeated: a committee")
]
Dtype = Annotated[str, typer.Option(help="float32 or float64")]


class Optimizer(StrEnum):
    """Optimizers of ASE."""

    lbfgs = "lbfgs"
    bfgs = "bfgs"
    fire = "fire"


class Ensemble(StrEnum):
    """Kinds of dynamics."""

    nve = "nve"
    langevin = "langevin"
    npt = "npt"


class Engine(StrEnum):
    """Programs that move the atoms."""

    ase = "ase"
    lammps = "lammps"


def relax(
    structures: Structures,
    checkpoint: Checkpoints,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="any format that ASE writes, one file for all"),
    ],
    fmax: Annotated[float, typer.Option(help="largest force left, eV/Å")] = 0.02,
    steps: Annotated[int, typer.Option(min=1)] = 500,
    optimizer: Annotated[
        Optimizer, typer.Option(help="several structures take lbfgs")
    ] = Optimizer.lbfgs,
    cell: Annotated[bool, typer.Option("--cell", help="relax the cell as well")] = False,
    frames: Annotated[
        str | None,
        typer.Option(help="frames of each file, as a slice such as : or ::10; by default the last"),
    ] = None,
    trajectory: Annotated[
        Path | None,
        typer.Option(help="write the path here; of several structures, paths into this folder"),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float64",
    overwrite: Overwrite = False,
) -> None:
    """Relax structures, several together; exit code 1 if one does not converge.

    Of several structures each converges on its own. One that fails is named in the table at the
    end, and left out of the output.
    """
    _check_writable(output)
    if trajectory is not None and trajectory.resolve() == output.resolve():
        raise typer.BadParameter(f"{output}: is named for the result and for --trajectory")
    refuse_existing(output, overwrite, [*structures, *checkpoint])
    if len(structures) == 1 and frames is None:
        converged = _relax_one(
            structures[0], checkpoint, output, fmax, steps, optimizer, cell, trajectory, device,
            dtype, overwrite,
        )  # fmt: skip
    else:
        converged = _relax_several(
            structures, frames, checkpoint, output, fmax, steps, optimizer, cell, trajectory,
            device, dtype, overwrite,
        )  # fmt: skip
    raise typer.Exit(0 if converged else 1)


def _relax_one(
    structure: str, checkpoint: list[Path], output: Path, fmax: float, steps: int,
    optimizer: Optimizer, cell: bool, trajectory: Path | None, device: str, dtype: str,
    overwrite: bool,
) -> bool:  # fmt: skip
    """Relax one structure by an optimizer of ASE; True if it converged."""
    from ase.filters import FrechetCellFilter
    from ase.io import write
    from ase.io.formats import filetype
    from ase.optimize import BFGS, FIRE, LBFGS

    if trajectory is not None:
        refuse_existing(trajectory, overwrite, [structure, *checkpoint])
    atoms = _with_calculator(structure, checkpoint, device, dtype)
    algorithm = {"lbfgs": LBFGS, "bfgs": BFGS, "fire": FIRE}[optimizer.value]
    target = FrechetCellFilter(atoms) if cell else atoms
    search = algorithm(target, trajectory=None if trajectory is None else str(trajectory))
    converged = bool(search.run(fmax=fmax, steps=steps))
    with whole_file(output) as temporary:
        write(temporary, atoms, format=filetype(str(output), read=False))
    verdict = "converged" if converged else "NOT converged"
    typer.echo(
        f"{verdict} after {search.nsteps} steps: energy {atoms.get_potential_energy():.6f} eV, "
        f"written to {output}"
    )
    return converged


def _relax_several(
    files: list[str], frames: str | None, checkpoint: list[Path], output: Path, fmax: float,
    steps: int, optimizer: Optimizer, cell: bool, trajectory: Path | None, device: str, dtype: str,
    overwrite: bool,
) -> bool:  # fmt: skip
    """Relax several structures at once; True if all converged."""
    from ase_biasgrad.calculators import BiasGradCalculator
    from ase_biasgrad.cli import relaxations

    if optimizer is not Optimizer.lbfgs:
        raise typer.BadParameter(
            f"--optimizer {optimizer.value}: several structures relax by lbfgs; leave it out"
        )
    relaxations.check_output_of_many(output)
    named = relaxations.named_structures(files, frames)
    paths: dict[str, Path] = {}
    if trajectory is not None:
        names = [name for name, _ in named]
        paths = relaxations.trajectories_of(trajectory, names, overwrite, [*files, *checkpoint])
    calculator = BiasGradCalculator(list(checkpoint), device=device, dtype=dtype)
    return relaxations.relax_together(named, calculator, output, fmax, steps, cell, paths)


def md(
    structure: Structure,
    checkpoint: Checkpoints,
    output: Annotated[Path, typer.Option("--output", "-o", help="trajectory (*.traj)")],
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    ensemble: Annotated[Ensemble, typer.Option()] = Ensemble.nve,
    temperature: Annotated[float, typer.Option(help="K")] = 300.0,
    pressure: Annotated[float, typer.Option(help="GPa, for npt")] = 0.0,
    timestep: Annotated[float, typer.Option(help="fs")] = 0.5,
    friction: Annotated[float, typer.Option(help="1/fs, for langevin")] = 0.01,
    interval: Annotated[int, typer.Option(min=1, help="steps between written frames")] = 10,
    log: Annotated[Path | None, typer.Option(help="write energies and temperatures here")] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="go on from the last frame of the trajectory")
    ] = False,
    stop_outside: Annotated[
        bool,
        typer.Option(
            "--stop-outside", help="end with the first structure outside of the training range"
        ),
    ] = False,
    stop_spread: Annotated[
        float | None,
        typer.Option(min=0.0, help="end where the forces of a committee spread more, eV/Å"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    engine: Annotated[Engine, typer.Option(help="lammps runs on several processes")] = Engine.ase,
    ranks: Ranks = None,
    mpiexec: Mpiexec = None,
) -> None:
    """Molecular dynamics."""
    import numpy as np
    from ase import units
    from ase.io import Trajectory
    from ase.md import MDLogger
    from ase.md.velocitydistribution import (
        Stationary,
        ZeroRotation,
        thermalize_momenta,
    )

    if engine is Engine.ase and (ranks or mpiexec):
        raise typer.BadParameter("--ranks and --mpiexec are for --engine lammps")
    if output.suffix != ".traj":
        raise typer.BadParameter(f"{output}: trajectories are written as *.traj")
    _check_writable(output)
    if output.exists() and not restart:
        raise typer.BadParameter(f"{output}: exists; say --restart to go on, or name another file")
    if restart and not output.exists():
        raise typer.BadParameter(f"{output}: does not exist; leave --restart out to begin")
    if log is not None and log.exists() and not restart:
        raise typer.BadParameter(f"{log}: exists; name another file for --log")
    if log is not None:
        refuse_own_input(log, [structure, *checkpoint, output])
    random = np.random.default_rng(seed)
    atoms = _with_calculator(structure, checkpoint, device, dtype)
    if stop_spread is not None and len(atoms.calc.biases) < 2:
        raise typer.BadParameter("--stop-spread needs a committee: spreads are those of members")
    if restart:
        # other random numbers than those of the frames that are there already
        random = np.random.default_rng([seed, _go_on(atoms, output)])
    else:
        thermalize_momenta(atoms, temperature, rng=random)
        Stationary(atoms)
        if not atoms.pbc.any():
            ZeroRotation(atoms)
    if engine is Engine.lammps:
        run_md(
            atoms, checkpoint, ranks, mpiexec, trajectory=str(output), steps=steps,
            timestep=timestep, ensemble=ensemble.value, temperature=temperature, pressure=pressure,
            friction=friction, interval=interval, seed=int(random.integers(1, MOST_SEEDS)),
            dtype=dtype, stop_outside=stop_outside, first=not restart,
            log=None if log is None else str(log),
        )  # fmt: skip
        return
    dynamics = _dynamics(
        atoms, ensemble, timestep * units.fs, temperature, pressure, friction, random
    )
    if not restart:
        atoms.get_forces()  # frames hold what is known, and nothing is before the first evaluation
        with whole_file(output) as part, Trajectory(str(part), "w", atoms) as first:
            first.write()  # a trajectory of no frame could not be gone on from
    frames = Trajectory(str(output), "a", atoms)
    dynamics.attach(frames.write, interval=interval)
    if log is not None:
        logger = MDLogger(dynamics, atoms, str(log), header=not log.exists(), mode="a")
        dynamics.attach(logger, interval=interval)
    reason = _why_stop(atoms, stop_outside, stop_spread)
    # both observers would fire again at step 0, which the file holds already
    # shown on a terminal alone
    ahead = 0 if reason else steps
    with typer.progressbar(_quietly(dynamics, ahead), ahead, "md", file=sys.stderr) as done:
        for _ in done:
            if reason := _why_stop(atoms, stop_outside, stop_spread):
                break
    if reason:
        if dynamics.nsteps % interval:
            frames.write()
        typer.echo(f"{output}: ended after {dynamics.nsteps} of {steps} steps: {reason}")
        return
    typer.echo(
        f"{output}: {steps} steps of {timestep:g} fs, {ensemble.value}; last temperature "
        f"{atoms.get_temperature():.1f} K, potential energy {atoms.get_potential_energy():.6f} eV"
    )


def _why_stop(atoms: Atoms, outside: bool, spread: float | None) -> str | None:
    """Say why dynamics should end after the last evaluation, or None."""
    from ase_biasgrad.calculators.spread import too_uncertain

    if outside and atoms.calc.outside:
        return str(atoms.calc.outside)
    return None if spread is None else too_uncertain(atoms.numbers, atoms.calc.results, spread)


def _check_writable(output: Path) -> None:
    """Before the work, not after it."""
    from ase.io.formats import UnknownFileTypeError, filetype, ioformats

    try:
        name = filetype(str(output), read=False)
    except UnknownFileTypeError:
        name = ""
    if name not in ioformats or not ioformats[name].can_write:
        raise typer.BadParameter(f"{output}: ASE writes no format of this name; try *.xyz or *.cif")
    if not output.parent.is_dir():
        raise typer.BadParameter(f"{output}: the folder {output.parent} does not exist")


def _go_on(atoms: Atoms, trajectory: Path) -> int:
    """Put `atoms` into the last state of `trajectory`; return the number of frames in it."""
    last, count = _last_whole_frame(trajectory)
    if last.numbers.tolist() != atoms.numbers.tolist() or (last.pbc != atoms.pbc).any():
        raise ValueError(
            f"{trajectory}: holds {last.get_chemical_formula()} with pbc {last.pbc.tolist()}, the "
            f"structure is {atoms.get_chemical_formula()} with pbc {atoms.pbc.tolist()}, or its "
            "atoms come in another order; go on with the structure that the trajectory began with"
        )
    atoms.set_cell(last.cell)
    atoms.positions = last.positions
    atoms.set_momenta(last.get_momenta(), apply_constraint=False)
    atoms.set_constraint(last.constraints)
    return count


def _last_whole_frame(trajectory: Path) -> tuple[Atoms, int]:
    """Last frame of a trajectory and number of frames; the torn end that a kill left is cut off."""
    from ase.io.trajectory import TrajectoryReader, TrajectoryWriter

    torn: Exception | None = None
    try:
        with TrajectoryReader(str(trajectory)) as frames:
            for k in reversed(range(len(frames))):
                try:
                    last = frames[k]
                    break
                except Exception as error:  # whatever the parsers of ASE's format raise
                    torn = error
            else:
                raise ValueError("no frame is whole") from torn
            if torn is None:
                return last, k + 1
            with whole_file(trajectory) as part, TrajectoryWriter(str(part)) as writer:
                for kept in range(k + 1):
                    writer.write(frames[kept])
    except Exception as error:
        raise ValueError(f"{trajectory}: cannot be gone on from: {error}") from error
    typer.echo(f"{trajectory}: the last frame is torn; it goes on from frame {k}", err=True)
    return last, k + 1


def _quietly(dynamics: Any, steps: int) -> Any:
    """Steps one by one, without the frame that `irun` gives before the first."""
    observers, dynamics.observers = dynamics.observers, []
    running = dynamics.irun(steps)
    next(running)
    dynamics.observers = observers
    return running


def _dynamics(
    atoms: Atoms,
    ensemble: Ensemble,
    timestep: float,
    temperature: float,
    pressure: float,
    friction: float,
    random: Any,
) -> Any:
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.nose_hoover_chain import MTKNPT
    from ase.md.verlet import VelocityVerlet

    if ensemble is Ensemble.nve:
        return VelocityVerlet(atoms, timestep)
    if ensemble is Ensemble.langevin:
        return Langevin(
            atoms,
            timestep,
            temperature_K=temperature,
            friction=friction / units.fs,
            fixcm=False,
            rng=random,
        )
    if not atoms.pbc.all():
        raise ValueError("npt needs a structure that is periodic in all three directions")
    return MTKNPT(
        atoms,
        timestep,
        temperature_K=temperature,
        pressure_au=pressure * units.GPa,
        tdamp=100 * timestep,
        pdamp=1000 * timestep,
    )


def _with_calculator(structure: str, checkpoint: list[Path], device: str, dtype: str) -> Atoms:
    from ase_biasgrad.calculators import BiasGradCalculator
    from ase_biasgrad.data.sampling import starting_structure

    atoms = starting_structure(structure)
    atoms.calc = BiasGradCalculator(list(checkpoint), device=device, dtype=dtype)
    return atoms
