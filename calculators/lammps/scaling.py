"""Times of MD steps in LAMMPS on one process and on several, beside ASE, in one run.

What a process computes is counted by its own clock (CPU time of its thread, without what it waits
for others), so that other work on the machine and a lack of cores disturb it least. A step takes as
long as the process that computes most.
"""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ase_biasgrad.calculators.lammps.launch import new_lammps, run_on

STEPS, ROUNDS = 5, 3


@dataclass(frozen=True)
class Times:
    """Seconds a step; of several processes the largest."""

    wall: float  # best round
    computing: float  # CPU time without waiting
    callback: float  # of that, what is neither the network nor neighbour lists
    lists: float  # neighbour lists, per list
    ase: float | None  # CPU time of a step in ASE, on one process
    copies: float  # copies of atoms of others, in own atoms
    sent: int  # bytes that a process sends at each step, largest


def measured(name: str, atoms: int, ranks: int, **arguments: Any) -> Times:
    """Times of a network of `md_benchmark` on a fluid; arguments are those of `run_on`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "times.json"
        run_on(ranks, _measure, {"report": str(report), "name": name, "atoms": atoms}, **arguments)
        return Times(**json.loads(report.read_text()))


class _Clock:
    """CPU time in functions, without that of `other` clocks."""

    def __init__(self, *other: _Clock) -> None:
        self.seconds, self.calls, self.other = 0.0, 0, other

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time counts here."""

        def now() -> float:
            return time.thread_time() - sum(clock.seconds for clock in self.other)

        def run(*arguments: Any, **keywords: Any) -> Any:
            begun = now()
            result = function(*arguments, **keywords)
            self.seconds += now() - begun
            self.calls += 1
            return result

        return run


def _timed(owner: Any, name: str, *other: _Clock) -> _Clock:
    """A clock on a method of `owner`."""
    clock = _Clock(*other)
    setattr(owner, name, clock.timed(getattr(owner, name)))
    return clock


def _measure(report: str, name: str, atoms: int) -> None:
    """On all processes of this run."""
    warnings.simplefilter("ignore")  # random weights have no energy zero
    from ase_biasgrad.calculators import md_benchmark as bench
    from ase_biasgrad.calculators.engines.cpu.subdomain import SubDomain
    from ase_biasgrad.calculators.lammps.attachment import attach
    from ase_biasgrad.calculators.lammps.data_file import write_data
    from ase_biasgrad.calculators.lammps.halo import MpiHalo

    backbone = bench.random_backbone(name, **bench.LARGE.get(name, {}))
    structure = bench.fluid(atoms)
    structure.set_momenta(np.zeros((atoms, 3)))
    lmp = new_lammps(("-log", "none", "-screen", "none"))
    data = Path(report).with_name("data")
    if lmp.get_mpi_comm().rank == 0:
        write_data(data, structure)
    lmp.get_mpi_comm().Barrier()
    lmp.commands_string(f"units metal\natom_style atomic\nread_data {data}\ntimestep 0.0005")
    elements = list(dict.fromkeys(structure.get_chemical_symbols()))
    force = attach(lmp, bench.potential(backbone), elements)
    lmp.commands_string("velocity all create 300 1\nfix move all nve\nthermo 0\nrun 1 post no")

    comm, agreeing = force.comm, _Clock()
    force.comm = _Communicator(comm, agreeing)
    packs = _timed(MpiHalo, "packed")
    fills = _timed(MpiHalo, "fill", packs)  # mostly waiting, if there are others
    network = _timed(SubDomain, "evaluate", fills)
    lists, whole = _timed(force, "_arrange", agreeing), _timed(force, "_call", fills, agreeing)
    walls, in_ase = [], _Clock()
    if comm.size == 1:
        ase = bench.dynamics(structure, bench.calculator(backbone))
        ase(1)
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        lmp.command(f"run {STEPS} pre no post no")
        walls.append((time.perf_counter() - begun) / STEPS)
        if comm.size == 1:
            in_ase.timed(ase)(STEPS)
    steps, lists_made = STEPS * ROUNDS, max(1, lists.calls)
    callback = whole.seconds - network.seconds - lists.seconds
    sent = sum(len(rows) for rows in force.halo.sent.values()) * _bytes_of_a_row(force)
    copied = sum(rows.stop - rows.start for rows in force.halo.received.values())
    mine = [whole.seconds / steps, callback / steps, lists.seconds / lists_made]
    mine += [copied / max(1, len(force.order)), sent]
    computing, others, a_list, copies, most_sent = (
        np.array(comm.allgather(mine)).max(axis=0).tolist()
    )
    if comm.rank == 0:
        of_ase = in_ase.seconds / steps if in_ase.calls else None
        times = Times(min(walls), computing, others, a_list, of_ase, copies, int(most_sent))
        Path(report).write_text(json.dumps(vars(times)))
    lmp.close()


class _Communicator:
    """A communicator with a clock on its collective calls: they wait for other processes."""

    def __init__(self, comm: Any, clock: _Clock) -> None:
        self._comm, self._clock = comm, clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._comm, name)
        collective = name in ("Allreduce", "Allgather", "allgather", "recv")
        return self._clock.timed(value) if collective else value


def _bytes_of_a_row(force: Any) -> int:
    """Numbers that a process sends of one atom at each step."""
    from ase_biasgrad.calculators.engines.cpu.subdomain import read_before

    count = 3 * 8  # its position
    for network in force.engine.networks:
        width = sum(w for variables in read_before(network.program) for _, w in variables)
        count += width * network.program.weights.itemsize
    return count
