"""`biasgrad benchmark …`: tables that a user makes on his own machine."""

from __future__ import annotations

import typer

from ase_biasgrad.cli.benchmark.ipi import ipi
from ase_biasgrad.cli.benchmark.lammps import lammps
from ase_biasgrad.cli.benchmark.md import md
from ase_biasgrad.cli.benchmark.md17 import md17
from ase_biasgrad.cli.benchmark.nbody import nbody
from ase_biasgrad.cli.benchmark.peers import peers
from ase_biasgrad.cli.benchmark.qm7 import qm7
from ase_biasgrad.cli.benchmark.qm9 import qm9
from ase_biasgrad.cli.benchmark.training import benchmark_training

app = typer.Typer(no_args_is_help=True)
app.command("ipi")(ipi)
app.command("lammps")(lammps)
app.command("md")(md)
app.command("md17")(md17)
app.command("peers")(peers)
app.command("training")(benchmark_training)
app.command("qm7")(qm7)
app.command("nbody")(nbody)
app.command("qm9")(qm9)
