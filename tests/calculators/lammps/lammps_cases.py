"""Structures, and what LAMMPS says of them; imported by tests and by the processes they start."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.lammps import convert
from conftest import copper, ethanol, mixed

from ase_biasgrad.calculators.lammps import LammpsForce, attach, new_lammps, write_data
from ase_biasgrad.calculators.lammps.data_file import boundary, box_of

QUIET = ("-log", "none", "-screen", "none")


def alloy() -> Atoms:
    """A sheared crystal of two elements, several chunks of atoms, larger than a domain's halo."""
    atoms = copper() * (5, 3, 2)
    atoms.numbers[::3] = 8
    atoms.rattle(0.05, seed=1)
    return atoms


def in_a_corner() -> Atoms:
    """Two molecules in a large periodic box, most of which is empty, across its border."""
    atoms = ethanol()
    atoms.positions += 0.3
    other = ethanol(1)
    other.positions += (2.0, 4.0, 0.0)
    atoms += other
    atoms.set_cell([40.0, 40.0, 40.0])
    atoms.pbc = True
    return atoms


def close() -> Atoms:
    """Ethanol in a box, two hydrogens closer than any in training."""
    atoms = ethanol()
    atoms.set_cell([9.0, 8.0, 7.0])
    atoms.center()
    atoms.pbc = True
    atoms.positions[5] = atoms.positions[4] + (0.9, 0.3, 0.1)
    return atoms


CASES = {
    "molecule": ethanol,
    "fewer atoms than ranks": lambda: molecule("H2O"),
    "atom": lambda: Atoms("O", [[0.1, 0.2, 0.3]]),
    "cell smaller than the cutoff": copper,
    "slab": mixed,
    "alloy": alloy,
    "empty domains": in_a_corner,
    "close": close,
}


def instance(
    atoms: Atoms, checkpoints: list[str], data: Path, **arguments: Any
) -> tuple[Any, LammpsForce]:
    """LAMMPS with a structure and a potential; every process calls this."""
    lmp = new_lammps(QUIET)
    comm = lmp.get_mpi_comm()
    if comm.rank == 0:
        write_data(data, atoms)
    comm.Barrier()
    lmp.commands_string(
        f"units metal\natom_style atomic\natom_modify map array\nboundary {boundary(atoms)}\n"
        f"read_data {data}"
    )
    elements = list(dict.fromkeys(atoms.get_chemical_symbols()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the energy zero of random weights
        return lmp, attach(lmp, checkpoints, elements, **arguments)


def evaluate(
    folder: str, networks: dict[str, list[str]], cases: list[str], dtype: str = "float64"
) -> None:
    """Save what LAMMPS finds for cases and networks, turned to ASE's frame."""
    for name, checkpoints in networks.items():
        for case in cases:
            atoms = CASES[case]()
            lmp, force = instance(atoms, checkpoints, Path(folder) / "data", dtype=dtype)
            lmp.commands_string(
                "compute own all pe/atom\ncompute sum all reduce sum c_own\n"
                "compute virial all pressure NULL virial\n"
                "thermo_style custom step pe c_virial[1] c_sum\nrun 0"
            )
            prism, n = box_of(atoms)[0], len(atoms)
            forces = np.array(lmp.gather_atoms("f", 1, 3)).reshape(n, 3)
            pressure = lmp.extract_compute("virial", 0, 1)
            xx, yy, zz, xy, xz, yz = (pressure[k] for k in range(6))
            tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
            strain = prism.tensor2_to_ase(force.total_strain_gradient())
            members = range(2) if len(checkpoints) > 1 else ()
            spread = [lmp.extract_fix("biasgrad", 0, 1, k) for k in members]
            results = {
                "energy": lmp.get_thermo("pe"),
                "energies": np.array(lmp.gather("c_own", 1, 1)),
                "forces": prism.vector_to_ase(forces),
                "stress": -convert(prism.tensor2_to_ase(tensor), "pressure", "metal", "ASE"),
                "strain_gradient": strain,
                "spread": spread,
            }
            if force.comm.rank == 0:
                np.savez(Path(folder) / f"{name} {case}.npz", **results)
            lmp.close()


def evaluate_all(calls: list[dict[str, Any]]) -> None:
    """Several evaluations in one start of the processes."""
    for arguments in calls:
        evaluate(**arguments)


def messages(checkpoints: list[str], data: str, cases: list[Any], output: str) -> None:
    """Save the messages of what fails with potentials attached as said, before commands."""
    found = []
    for attached, commands in cases:
        lmp = new_lammps(QUIET)
        lmp.command(f"units {attached.pop('units', 'metal')}")
        lmp.commands_string(f"atom_style atomic\nboundary f f f\nread_data {data}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                attach(lmp, checkpoints, **attached)
                lmp.commands_string(commands)
            found.append("nothing")
        except Exception as error:
            found.append(str(error))
        lmp.close()
    Path(output).write_text(json.dumps(found))
