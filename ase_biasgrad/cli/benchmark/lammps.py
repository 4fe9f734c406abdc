"""`biasgrad benchmark lammps`: MD steps in LAMMPS on one process and on several, beside ASE."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from ase_biasgrad.cli.options import check_writable

TITLES = {"schnet": "SchNet 128×3", "tensornet": "TensorNet 64×2"}


def lammps(
    atoms: Annotated[int, typer.Option(min=8, help="of a periodic fluid")] = 8000,
    ranks: Annotated[
        list[int] | None, typer.Option("--ranks", "-n", help="processes; may be repeated")
    ] = None,
    mpiexec: Annotated[str | None, typer.Option(help="command that starts processes")] = None,
    picture: Annotated[Path | None, typer.Option(help="draw the speed-ups here (*.png)")] = None,
) -> None:
    """Time MD steps in LAMMPS on one process and on several, beside one process in ASE."""
    from ase_biasgrad.calculators.lammps.scaling import measured
    from ase_biasgrad.machine import hardware, versions

    if picture is not None:
        check_writable(picture)
    print(f"{versions()}\n{hardware('cpu', 1)}; load {os.getloadavg()[0]:.1f}")
    print(
        f"\n{atoms} atoms; ms of CPU time that the busiest process computes a step\n"
        f"{'':16s}{'processes':>10s}{'ms':>9s}{'speedup':>9s}{'wall':>9s}{'ASE':>9s}"
        f"{'callback':>10s}{'list':>9s}{'copies':>8s}{'MB sent':>9s}"
    )
    speedups: dict[str, dict[int, float]] = {}
    for name, title in TITLES.items():
        one = None
        for count in ranks or [1, 2]:
            t = measured(name, atoms, count, mpiexec=mpiexec)
            one = one or t
            speedups.setdefault(title, {})[count] = one.computing / t.computing
            ase = "" if t.ase is None else f"{t.ase * 1e3:.1f}"
            print(
                f"{title:16s}{count:10d}{t.computing * 1e3:9.1f}"
                f"{one.computing / t.computing:8.2f}×{t.wall * 1e3:9.1f}{ase:>9s}"
                f"{t.callback * 1e3:10.2f}{t.lists * 1e3:9.1f}{t.copies:8.2f}{t.sent / 1e6:9.2f}",
                flush=True,
            )
    if picture is not None:
        _draw(picture, speedups)


def _draw(picture: Path, speedups: dict[str, dict[int, float]]) -> None:
    """Draw speed-ups over the number of processes, beside what would be ideal."""
    from matplotlib.figure import Figure

    from ase_biasgrad.training.evaluation.report import save_picture

    figure = Figure(figsize=(4.5, 3.2), layout="constrained")
    axis = figure.subplots()
    counts = sorted({count for found in speedups.values() for count in found})
    axis.plot(counts, [count / counts[0] for count in counts], color="0.7", label="ideal")
    for title, found in speedups.items():
        axis.plot(list(found), list(found.values()), "o-", label=title)
    axis.set(xscale="log", yscale="log", xlabel="processes", ylabel="speed-up")
    for ticks in (axis.set_xticks, axis.set_yticks):
        ticks(counts, [str(count) for count in counts], minor=False)
        ticks([], minor=True)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    save_picture(picture, figure)
