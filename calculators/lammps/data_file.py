"""Data files of LAMMPS from ASE structures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase import Atoms
from ase.calculators.lammps import Prism
from ase.io.lammpsdata import write_lammps_data

from ase_biasgrad.files import whole_file
from ase_biasgrad.neighbours import bounding_cell

ANY = float("inf")  # Å: the box holds all atoms, however far apart


def box_of(atoms: Atoms) -> tuple[Prism, np.ndarray]:
    """LAMMPS' box for a structure, and the corner of it in the structure.

    Along directions without periodicity it is around the atoms, with boundary `s`.

    Raises `ValueError` if cell vectors of periodic directions have no volume.
    """
    cell, corner = bounding_cell(atoms.positions, atoms.cell.array, atoms.pbc, ANY)
    return Prism(cell, pbc=atoms.pbc), corner


def write_data(path: str | Path, atoms: Atoms, skew: bool = False) -> list[str]:
    """Write a data file in units `metal`, with masses and velocities, atoms in their order.

    Positions are turned into LAMMPS' frame, in which the cell is lower triangular. With `skew` the
    box is triclinic also where the cell is orthogonal, so that it can be sheared. Returns the
    symbols of the atom types, in order.

    Raises
    ------
    ValueError
        On a structure that such a file cannot hold.
    """
    if not len(atoms):
        raise ValueError("there are no atoms")
    if not np.isfinite(atoms.positions).all():
        atom = int(np.argmin(np.isfinite(atoms.positions).all(axis=1)))
        raise ValueError(f"the position of atom {atom} is not finite: {atoms.positions[atom]}")
    elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
    for symbol in elements:
        masses = set(atoms.get_masses()[atoms.symbols == symbol].tolist())
        if len(masses) > 1:
            raise ValueError(
                f"atoms of {symbol} have masses of {sorted(masses)} u; a type has one mass"
            )
    prism, corner = box_of(atoms)
    moved = Atoms(
        atoms.numbers, atoms.positions - corner, masses=atoms.get_masses(), cell=atoms.cell,
        pbc=atoms.pbc, momenta=atoms.get_momenta() if atoms.has("momenta") else None,
    )  # fmt: skip
    with whole_file(path) as part:
        write_lammps_data(
            str(part), moved, specorder=elements, prismobj=prism, force_skew=skew, masses=True,
            velocities=moved.has("momenta"), units="metal", atom_style="atomic",
        )  # fmt: skip
    return elements


def boundary(atoms: Atoms) -> str:
    """LAMMPS' `boundary` of a structure: periodic, or as wide as the atoms."""
    return " ".join("p" if periodic else "s" for periodic in atoms.pbc)
