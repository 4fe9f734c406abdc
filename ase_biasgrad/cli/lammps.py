"""`biasgrad lammps`, `biasgrad lammps-data`, and `biasgrad md --engine lammps`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.options import Checkpoints, Dtype, Overwrite, Structure
from ase_biasgrad.files import refuse_existing

if TYPE_CHECKING:
    from ase import Atoms

MOST_SEEDS = 900_000_000  # of LAMMPS' generator

Ranks = Annotated[
    int | None,
    typer.Option(
        "--ranks", "-n", min=1, help="processes, started by mpiexec; without it the one(s) at hand"
    ),
]
Mpiexec = Annotated[
    str | None, typer.Option(help="command that starts processes, such as 'srun --mpi=pmi2'")
]


def lammps(
    script: Annotated[
        Path, typer.Argument(help="input script with a line `fix NAME all biasgrad ELEMENT …`")
    ],
    checkpoint: Checkpoints,
    arguments: Annotated[
        list[str] | None, typer.Argument(help="of LAMMPS, behind --: -- -var T 300 -log my.log")
    ] = None,
    ranks: Ranks = None,
    dtype: Dtype = "float32",
    mpiexec: Mpiexec = None,
) -> None:
    """Run a LAMMPS input script with a potential."""
    from ase_biasgrad.calculators.lammps.launch import run_on
    from ase_biasgrad.calculators.lammps.script import read_script, run_script

    read_script(script)
    for path in checkpoint:
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
    settings = {
        "script": str(script),
        "checkpoints": [str(path) for path in checkpoint],
        "arguments": arguments or [],
        "dtype": dtype,
    }
    run_on(ranks, run_script, settings, mpiexec)


def lammps_data(
    structure: Structure,
    output: Annotated[Path, typer.Option("--output", "-o", help="new data file")],
    overwrite: Overwrite = False,
) -> None:
    """Write a LAMMPS data file from a structure, and show how a script reads it."""
    from ase_biasgrad.calculators.lammps.data_file import boundary, write_data
    from ase_biasgrad.data.sampling import starting_structure

    refuse_existing(output, overwrite, [structure])
    atoms = starting_structure(structure)
    elements = write_data(output, atoms)
    typer.echo(
        f"units metal\natom_style atomic\nboundary {boundary(atoms)}\nread_data {output}\n"
        f"fix potential all biasgrad {' '.join(elements)}"
    )


def run_md(
    atoms: Atoms, checkpoint: list[Path], ranks: int | None, mpiexec: str | None, **settings: Any
) -> None:
    """MD of a structure with momenta in LAMMPS; see `calculators.lammps.run_dynamics`."""
    from ase.io import write

    from ase_biasgrad.calculators.lammps.dynamics import run_dynamics
    from ase_biasgrad.calculators.lammps.launch import run_on

    if atoms.constraints:
        raise ValueError(
            f"the structure has constraints ({type(atoms.constraints[0]).__name__}), which this "
            "engine does not know; leave out --engine lammps, or write an input script"
        )
    if settings["ensemble"] == "npt" and not atoms.pbc.all():
        raise ValueError("npt needs a structure that is periodic in all three directions")
    if settings["ensemble"] == "langevin" and not settings["friction"] > 0:
        raise ValueError("langevin needs --friction above 0")
    with tempfile.TemporaryDirectory(prefix="biasgrad-") as folder:
        start = Path(folder) / "start.traj"
        bare = atoms.copy()
        bare.info = {}
        write(start, bare)
        files = {"structure": str(start), "checkpoints": [str(path) for path in checkpoint]}
        said = Path(folder) / "said"
        run_on(ranks, run_dynamics, {**files, **settings, "report": str(said)}, mpiexec)
        typer.echo(said.read_text())
