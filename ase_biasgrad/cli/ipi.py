"""`biasgrad ipi`: a driver of i-PI, for path integrals and whatever else i-PI does."""

from __future__ import annotations

from typing import Annotated

import typer

from ase_biasgrad.cli.options import Checkpoints, Device, Dtype, Structure


def ipi(
    structure: Structure,
    checkpoint: Checkpoints,
    address: Annotated[str, typer.Option(help="host that i-PI runs on")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port of its <ffsocket>")] = 31415,
    unix: Annotated[
        str | None, typer.Option(help="name of its UNIX socket, in place of host and port")
    ] = None,
    sockets: Annotated[
        int, typer.Option(min=1, help="connections: one for each bead, unless i-PI sends batches")
    ] = 1,
    wait: Annotated[float, typer.Option(min=0, help="seconds until i-PI must answer")] = 10.0,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Serve i-PI with energies, forces and virials, all beads in one call."""
    from ase_biasgrad.calculators import BiasGradCalculator
    from ase_biasgrad.calculators.ipi import run_driver
    from ase_biasgrad.data.sampling import starting_structure

    atoms = starting_structure(structure)
    calculator = BiasGradCalculator(list(checkpoint), device=device, dtype=dtype)
    served = run_driver(calculator, atoms, unix or (address, port), sockets, wait)
    typer.echo(
        f"i-PI has ended: {served.structures} structures in {served.calls} calls of the potential"
    )
