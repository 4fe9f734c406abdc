"""`biasgrad md`: molecular dynamics in ASE or LAMMPS."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.lammps import MOST_SEEDS, Mpiexec, Ranks, run_md
from ase_biasgrad.cli.options import Checkpoints, Device, Dtype, Seed, Structure, check_writable
from ase_biasgrad.files import refuse_own_input, whole_file

if TYPE_CHECKING:
    from ase import Atoms


class Ensemble(StrEnum):
    """Kinds of dynamics."""

    nve = "nve"
    langevin = "langevin"
    npt = "npt"


class Engine(StrEnum):
    """Programs that move the atoms."""

    ase = "ase"
    lammps = "lammps"


def md(
    structure: Structure,
    checkpoint: Checkpoints,
    output: Annotated[Path, typer.Option("--output", "-o", help="trajectory (*.traj)")],
    steps: Annotated[int, typer.Option(min=1, help="number of steps")] = 1000,
    ensemble: Annotated[Ensemble, typer.Option(help="what is kept constant")] = Ensemble.nve,
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
        typer.Option(
            min=0.0,
            help="end where a committee expects a larger error of a force, eV/Å (of a potential "
            "with readouts looked at every --interval steps)",
        ),
    ] = None,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Dtype = "float32",
    engine: Annotated[Engine, typer.Option(help="lammps runs on several processes")] = Engine.ase,
    ranks: Ranks = None,
    mpiexec: Mpiexec = None,
) -> None:
    """Run molecular dynamics."""
    import numpy as np
    from ase import units
    from ase.io import Trajectory
    from ase.md import MDLogger
    from ase.md.velocitydistribution import Stationary, ZeroRotation, thermalize_momenta

    from ase_biasgrad.calculators import BiasGradCalculator
    from ase_biasgrad.data.sampling import starting_structure

    if engine is Engine.ase and (ranks or mpiexec):
        raise typer.BadParameter("--ranks and --mpiexec are for --engine lammps")
    if output.suffix != ".traj":
        raise typer.BadParameter(f"{output}: trajectories are written as *.traj")
    check_writable(output)
    if output.exists() and not restart:
        raise typer.BadParameter(f"{output}: exists; say --restart to go on, or name another file")
    if restart and not output.exists():
        raise typer.BadParameter(f"{output}: does not exist; leave --restart out to begin")
    if log is not None and log.exists() and not restart:
        raise typer.BadParameter(f"{log}: exists; name another file for --log")
    if log is not None:
        refuse_own_input(log, [structure, *checkpoint, output])
    random = np.random.default_rng(seed)
    atoms = starting_structure(structure)
    atoms.calc = BiasGradCalculator(list(checkpoint), device=device, dtype=dtype)
    if stop_spread is not None and not atoms.calc.has_spreads:
        raise typer.BadParameter("--stop-spread needs a committee file (`biasgrad committee`)")
    several = len(atoms.calc.biases) > 1  # whose spreads come with each evaluation
    if stop_spread is not None and engine is Engine.lammps and not several:
        raise typer.BadParameter("--stop-spread with --engine lammps needs several potentials")
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
            dtype=dtype, stop_outside=stop_outside, stop_spread=stop_spread, first=not restart,
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
    ahead = 0 if reason else steps
    with typer.progressbar(_quietly(dynamics, ahead), ahead, "md", file=sys.stderr) as done:
        for _ in done:
            look = several or dynamics.nsteps % interval == 0
            if reason := _why_stop(atoms, stop_outside, stop_spread if look else None):
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
    if spread is None:
        return None
    return too_uncertain(atoms.numbers, atoms.calc.get_property("forces_std", atoms), spread)


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
    """Steps one by one, without the frame that `irun` gives before the first: the file holds it."""
    observers, dynamics.observers = dynamics.observers, []
    running = dynamics.irun(steps)
    next(running)
    dynamics.observers = observers
    return running


def _dynamics(
    atoms: Atoms, ensemble: Ensemble, timestep: float, temperature: float, pressure: float,
    friction: float, random: Any,
) -> Any:  # fmt: skip
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.nose_hoover_chain import MTKNPT
    from ase.md.verlet import VelocityVerlet

    if ensemble is Ensemble.nve:
        return VelocityVerlet(atoms, timestep)
    if ensemble is Ensemble.langevin:
        friction /= units.fs
        return Langevin(
            atoms, timestep, temperature_K=temperature, friction=friction, fixcm=False, rng=random
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
