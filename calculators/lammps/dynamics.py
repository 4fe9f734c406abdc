"""Molecular dynamics of an ASE structure in LAMMPS, written as ASE's trajectory."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms, units
from ase.calculators.lammps import convert
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import Trajectory, read
from ase.md import MDLogger
from ase.stress import full_3x3_to_voigt_6_stress

from ase_biasgrad.calculators.lammps.attachment import attach
from ase_biasgrad.calculators.lammps.data_file import boundary, box_of, write_data
from ase_biasgrad.calculators.lammps.launch import box, new_lammps
from ase_biasgrad.files import whole_file

if TYPE_CHECKING:
    from ase.calculators.lammps import Prism

    from ase_biasgrad.calculators.lammps.force import LammpsForce

BAR = 1e-4  # GPa


@dataclass
class _Frames:
    """The structure of a run, which every process keeps, and process 0 writes."""

    lmp: Any
    force: LammpsForce
    atoms: Atoms
    prism: Prism
    corner: np.ndarray
    timestep: float  # fs
    step: int = 0

    def get_time(self) -> float:
        """Time in ASE's units, which ASE's logger asks for."""
        return self.step * self.timestep * units.fs

    def update(self) -> None:
        """Take the state of all atoms from LAMMPS; every process must ask."""
        atoms, turned, (cell, *_) = self.atoms, self.prism.vector_to_ase, box(self.lmp)
        # forces of the potential alone, without those of a thermostat
        x, v, f = (
            np.array(self.lmp.gather(name, 1, 3), float).reshape(-1, 3)
            for name in ("x", "v", f"f_{self.force.fix}")
        )
        x += np.array(self.lmp.gather("image", 0, 3)).reshape(-1, 3) @ cell
        strain_gradient = self.force.total_strain_gradient()
        atoms.cell[atoms.pbc] = turned(cell)[atoms.pbc]
        atoms.positions = turned(x) + self.corner
        atoms.set_velocities(turned(convert(v, "velocity", "metal", "ASE")))
        results = {"energy": self.force.energy, "forces": turned(f)}
        if atoms.cell.rank == 3:
            stress = self.prism.tensor2_to_ase(strain_gradient) / atoms.get_volume()
            results["stress"] = full_3x3_to_voigt_6_stress(stress)
        atoms.calc = SinglePointCalculator(atoms, **results)


def run_dynamics(
    structure: str,  # file of ASE's with positions and momenta
    checkpoints: Sequence[str],  # of the potential, or of a committee
    trajectory: str,  # of ASE's
    steps: int,
    timestep: float,  # fs
    ensemble: str,  # `nve`, `langevin` or `npt`
    temperature: float,  # K
    pressure: float,  # GPa
    friction: float,  # 1/fs
    interval: int,  # steps between frames
    seed: int,  # of the random forces, from 1 to 900 000 000
    dtype: str,  # of the networks
    stop_outside: bool,  # end with the first structure outside of the training range
    stop_spread: float | None,  # end where a committee expects a larger error of a force, eV/Å
    first: bool,  # begin a new trajectory with the state before the first step
    report: str,  # file for a line about how it ended
    log: str | None = None,  # file for a line of ASE's `MDLogger` with each frame
) -> None:
    """Run MD on the processes of this run and append frames to a trajectory."""
    atoms = read(structure)
    assert isinstance(atoms, Atoms)
    lmp = new_lammps(("-log", "none", "-screen", "none"))
    prism, corner = box_of(atoms)
    force = _set_up(lmp, atoms, checkpoints, dtype, skew=ensemble == "npt")
    lmp.command(f"timestep {timestep / 1000!r}")  # ps
    force.stop_outside, force.stop_spread = stop_outside, stop_spread
    for line in _fixes(ensemble, timestep, temperature, pressure, friction, seed):
        lmp.command(line)
    frames = _Frames(lmp, force, atoms, prism, corner, timestep)
    writes = force.comm.rank == 0
    lmp.command("run 0 post no")
    frames.update()
    if writes and first:
        with whole_file(trajectory) as part, Trajectory(str(part), "w") as begun:
            begun.write(atoms)
    target = Trajectory(trajectory, "a") if writes else None
    logger = None
    if writes and log is not None:
        logger = MDLogger(frames, atoms, log, header=not Path(log).exists(), mode="a")
    while frames.step < steps and not force.stop_reason:
        lmp.command(f"run {min(interval, steps - frames.step)} pre no post no")
        frames.step = lmp.extract_global("ntimestep")
        frames.update()
        if target is None or (frames.step % interval and not force.stop_reason):
            continue
        target.write(atoms)
        if logger is not None:
            logger()
    if target is not None:
        target.close()
        Path(report).write_text(_report(frames, steps, force.stop_reason))
    lmp.close()


def _report(frames: _Frames, steps: int, reason: str | None) -> str:
    atoms = frames.atoms
    end = (
        f"ended after {frames.step} of {steps} steps: {reason}; " if reason else f"{steps} steps; "
    )
    return (
        f"LAMMPS: {end}last temperature {atoms.get_temperature():.1f} K, potential energy "
        f"{atoms.get_potential_energy():.6f} eV"
    )


def _set_up(
    lmp: Any, atoms: Atoms, checkpoints: Sequence[str], dtype: str, skew: bool
) -> LammpsForce:
    """Give LAMMPS the atoms and the potential."""
    lmp.commands_string(
        f"units metal\natom_style atomic\natom_modify map array\nboundary {boundary(atoms)}\n"
        "neighbor 0.5 bin\nthermo 0"
    )
    with tempfile.TemporaryDirectory(prefix="biasgrad-") as folder:
        path = Path(folder) / "structure.data"
        elements = write_data(path, atoms, skew)
        lmp.command(f"read_data {path}")  # by process 0
        force = attach(lmp, list(checkpoints), elements, dtype=dtype)
    # LAMMPS rounds its constants to eight digits; with these masses atoms move as in ASE
    unit = units.fs**-2 / 1e6 / lmp.extract_global("mvv2e")
    masses = dict(zip(atoms.symbols, atoms.get_masses(), strict=True))
    for k, symbol in enumerate(elements, start=1):
        lmp.command(f"mass {k} {float(masses[symbol]) * unit!r}")
    return force


def _fixes(
    ensemble: str, timestep: float, temperature: float, pressure: float, friction: float, seed: int
) -> list[str]:
    t, damp = f"{temperature!r} {temperature!r}", timestep / 10  # ps, of a hundred steps
    if ensemble == "nve":
        return ["fix move all nve"]
    if ensemble == "langevin":
        bath = f"fix bath all langevin {t} {1e-3 / friction!r} {seed}"
        return ["fix move all nve", bath]
    p = f"{pressure / BAR!r} {pressure / BAR!r} {10 * damp!r}"
    return [f"fix move all npt temp {t} {damp!r} tri {p} flip no"]
