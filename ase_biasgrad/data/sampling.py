"""Reference data by Langevin dynamics with a calculator that labels every frame it keeps."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ase_biasgrad.data.dataset import DataError
from ase_biasgrad.data.writer import DatasetWriter
from ase_biasgrad.progress import progress_bar

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

TBLITE_METHODS = {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB", "ipea1-xtb": "IPEA1-xTB"}


def labelling_calculator(name: str, arguments: dict[str, Any] | None = None) -> Calculator:
    """A calculator by name.

    Parameters
    ----------
    name
        `gfn2-xtb`, `gfn1-xtb`, `ipea1-xtb` (tblite, extra `xtb`); a calculator that ASE knows,
        such as `emt`; or `module:Class` of your own.
    arguments
        Keyword arguments of the calculator.

    Raises
    ------
    ImportError
        If a package is missing; the message says what to install.
    ValueError
        If there is no such calculator.
    """
    arguments = dict(arguments or {})
    if name.lower() in TBLITE_METHODS:
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            raise ImportError(_why_no_tblite(name, error)) from error
        return TBLite(**{"method": TBLITE_METHODS[name.lower()], "verbosity": 0, **arguments})
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)(**arguments)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"calculator {name!r}: {error}") from error
    from ase.calculators.calculator import get_calculator_class

    try:
        return get_calculator_class(name)(**arguments)
    except (ImportError, AttributeError) as error:
        known = ", ".join(TBLITE_METHODS)
        raise ValueError(
            f"there is no calculator {name!r}; use {known}, one that ASE knows (emt, lj, …), or "
            "module:Class"
        ) from error


def _why_no_tblite(name: str, error: ImportError) -> str:
    if importlib.util.find_spec("tblite") is None:
        return f"{name} needs tblite; install it with: pip install 'ase-biasgrad[xtb]'"
    if "torch" in sys.modules:
        return (
            f"{name}: tblite does not load after this torch, which brings an older OpenMP; put "
            "`import tblite.ase` before everything that imports torch"
        )
    return f"{name}: tblite is installed but does not load: {error.__cause__ or error}"


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
        for k, temperature in enumerate(temperatures):
            dynamics, moving = _langevin(
                atoms, calculator, temperature, timestep, friction, np.random.default_rng([seed, k])
            )
            dynamics.run(equilibration)
            for frame in progress_bar(range(frames), f"{temperature:g} K", progress):
                dynamics.run(interval)
                _keep(moving, writer, f"frame {frame} at {temperature:g} K")


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


def _keep(atoms: Atoms, writer: DatasetWriter, where: str) -> None:
    energy, forces = atoms.get_potential_energy(), atoms.get_forces(apply_constraint=False)
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise DataError(f"{where}: the calculator gave NaN; use a smaller timestep")
    stress = None
    if atoms.pbc.all() and "stress" in atoms.calc.implemented_properties:
        stress = atoms.get_stress(apply_constraint=False)
    writer.append(
        atoms.numbers,
        atoms.positions,
        energy=float(energy),
        forces=forces,
        stress=stress,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        source=where,
    )


def starting_structure(name: str) -> Atoms:
    """A file that ASE reads, or a molecule that `ase.build.molecule` knows.

    Raises
    ------
    ValueError
        If it is neither, or a file that ASE cannot read.
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


def relaxed(atoms: Atoms, calculator: Calculator, fmax: float = 0.02, steps: int = 500) -> Atoms:
    """A relaxed copy (LBFGS until no force exceeds `fmax` eV/Å)."""
    from ase.optimize import LBFGS

    copy = atoms.copy()
    copy.calc = calculator
    LBFGS(copy, logfile=None).run(fmax=fmax, steps=steps)
    return copy
