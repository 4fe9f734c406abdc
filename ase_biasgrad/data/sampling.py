"""Reference data by Langevin dynamics with a calculator that labels every frame it keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.data.dataset import DataError, Frame
from ase_biasgrad.data.labelling import label_of
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.progress import progress_bar

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


def sample(
    atoms: Atoms,
    calculator: Calculator,
    output: str | Path,
    *,
    temperatures: Sequence[float] = (500.0,),
    frames: int = 1000,
    interval: int = 10,
    timestep: float = 0.5,
    friction: float = 0.02,
    equilibration: int = 500,
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
    progress: bool = True,
) -> None:
    """Write labelled frames of Langevin dynamics into a new dataset file.

    Parameters
    ----------
    atoms
        Where the dynamics start; not changed.
    temperatures
        In K; each gets `frames` frames of its own trajectory.
    frames, interval, equilibration
        Frames kept, steps between them, and steps before the first.
    timestep, friction
        In fs and 1/fs.

    Raises
    ------
    ase_biasgrad.data.dataset.DataError
        If the dynamics leave what the calculator can describe; no file is left behind.
    """
    history = {"temperatures_K": list(temperatures), "timestep_fs": timestep, "seed": seed}
    with DatasetWriter(output, {**(provenance or {}), "langevin": history}) as writer:
        for frame in dynamics_frames(
            atoms,
            calculator,
            temperatures=temperatures,
            frames=frames,
            interval=interval,
            timestep=timestep,
            friction=friction,
            equilibration=equilibration,
            seed=seed,
            progress=progress,
        ):
            writer.append_frame(frame)


def dynamics_frames(
    atoms: Atoms,
    calculator: Calculator,
    *,
    temperatures: Sequence[float],
    frames: int,
    interval: int,
    timestep: float,
    friction: float = 0.02,
    equilibration: int,
    seed: int,
    progress: bool = False,
) -> Iterator[Frame]:
    """Labelled frames of Langevin dynamics, in which temperature comes after temperature.

    Parameters and errors are those of `sample`.
    """
    for k, temperature in enumerate(temperatures):
        dynamics, moving = _langevin(
            atoms, calculator, temperature, timestep, friction, np.random.default_rng([seed, k])
        )
        dynamics.run(equilibration)
        for frame in progress_bar(range(frames), f"{temperature:g} K", progress):
            dynamics.run(interval)
            yield _labelled(moving, f"frame {frame} at {temperature:g} K")


def _langevin(
    atoms: Atoms,
    calculator: Calculator,
    temperature: float,
    timestep: float,
    friction: float,
    random: np.random.Generator,
) -> tuple[Any, Atoms]:
    from ase import units
    from ase.constraints import FixCom
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import Stationary, thermalize_momenta

    if temperature <= 0 or timestep <= 0 or friction <= 0:
        raise ValueError("temperature, timestep and friction must be positive")
    moving = atoms.copy()
    moving.calc = calculator
    if not moving.constraints:
        moving.set_constraint(FixCom())
    thermalize_momenta(moving, temperature, rng=random)
    Stationary(moving)
    dynamics = Langevin(
        moving,
        timestep * units.fs,
        temperature_K=temperature,
        friction=friction / units.fs,
        fixcm=False,
        rng=random,
    )
    return dynamics, moving


def _labelled(atoms: Atoms, where: str) -> Frame:
    try:
        label = label_of(atoms)
    except DataError as error:
        raise DataError(f"{where}: {error}; use a smaller timestep") from error
    cell, pbc = atoms.cell.array.copy(), atoms.pbc.copy()
    return Frame(atoms.numbers.copy(), atoms.positions.copy(), cell, pbc, **vars(label))


def starting_structure(name: str) -> Atoms:
    """A file that ASE reads, or a molecule that `ase.build.molecule` knows.

    Raises `ValueError` if it is neither, or a file that ASE cannot read.
    """
    from ase.build import molecule
    from ase.io import read

    if Path(name).exists():
        try:
            atoms = read(name, do_not_split_by_at_sign=True)
        except Exception as error:
            # readers of ASE raise whatever their format makes them
            said = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name}: ASE cannot read it as a structure: {said}") from error
        assert not isinstance(atoms, list)
        return atoms
    try:
        return molecule(name)
    except KeyError as error:
        raise ValueError(
            f"{name!r} is no file and no molecule that ase.build.molecule knows"
        ) from error


def relaxed(atoms: Atoms, calculator: Calculator) -> Atoms:
    """A relaxed copy (LBFGS until no force exceeds 0.02 eV/Å, 500 steps at most)."""
    from ase.optimize import LBFGS

    copy = atoms.copy()
    copy.calc = calculator
    LBFGS(copy, logfile=None).run(fmax=0.02, steps=500)
    return copy
