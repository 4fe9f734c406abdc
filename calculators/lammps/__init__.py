"""Potentials in LAMMPS, on one process or many. Importing this package loads neither."""

from typing import TYPE_CHECKING

from ase_biasgrad.lazy import lazy_names

if TYPE_CHECKING:
    from ase_biasgrad.calculators.lammps.attachment import attach
    from ase_biasgrad.calculators.lammps.data_file import write_data
    from ase_biasgrad.calculators.lammps.dynamics import run_dynamics
    from ase_biasgrad.calculators.lammps.force import LammpsError, LammpsForce
    from ase_biasgrad.calculators.lammps.launch import new_lammps, run_on
    from ase_biasgrad.calculators.lammps.script import run_script

__all__ = [
    "LammpsError",
    "LammpsForce",
    "attach",
    "new_lammps",
    "run_dynamics",
    "run_on",
    "run_script",
    "write_data",
]

_ROOM = "ase_biasgrad.calculators.lammps"

__getattr__ = lazy_names(
    __name__,
    {
        "LammpsError": f"{_ROOM}.force",
        "LammpsForce": f"{_ROOM}.force",
        "attach": f"{_ROOM}.attachment",
        "new_lammps": f"{_ROOM}.launch",
        "run_dynamics": f"{_ROOM}.dynamics",
        "run_on": f"{_ROOM}.launch",
        "run_script": f"{_ROOM}.script",
        "write_data": f"{_ROOM}.data_file",
    },
)
