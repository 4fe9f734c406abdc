"""`biasgrad benchmark ipi`: beads of a ring polymer together, beside one by one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ase_biasgrad.cli.benchmark.md import TITLES

if TYPE_CHECKING:
    from ase import Atoms

INPUT = """
<simulation verbosity='quiet'>
  <output prefix='x'> </output>
  <total_steps> {steps} </total_steps>
  <ffsocket name='f' mode='unix'>
    <address> {name} </address> <batch_size> {batch} </batch_size>
  </ffsocket>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='xyz'> start.xyz </file>
      <velocities mode='thermal' units='kelvin'> 300 </velocities>
    </initialize>
    <forces> <force forcefield='f'/> </forces>
    <motion mode='dynamics'>
      <dynamics mode='nve'> <timestep units='femtosecond'> 0.2 </timestep> </dynamics>
    </motion>
    <ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>
  </system>
</simulation>
"""


def ipi(
    beads: Annotated[list[int], typer.Option(min=1, help="may be repeated")] = [8, 32],  # noqa: B006
    seconds: Annotated[float, typer.Option(min=0.1, help="for each comparison")] = 4.0,
    steps: Annotated[int, typer.Option(min=2, help="of i-PI, where it is installed")] = 200,
) -> None:
    """Time the beads of a ring polymer evaluated in one call, beside one by one."""
    from ase_biasgrad.calculators import EnergyZeroWarning
    from ase_biasgrad.calculators import md_benchmark as bench
    from ase_biasgrad.machine import hardware, versions

    warnings.simplefilter("ignore", EnergyZeroWarning)  # random weights have no energy zero
    print(f"{versions()}\n{hardware('cpu', None)}")
    print(f"\n{'ethanol':44s} {'together':>11s} {'one by one':>12s}  ratio")
    server = shutil.which("i-pi")
    for name, title in TITLES.items():
        calc = bench.calculator(bench.random_backbone(name))
        for count in beads:
            frames = _beads(bench.molecules()["ethanol"], count)
            _row(f"{count} beads, {title}", *_evaluations(calc, frames, seconds))
            if server is not None:
                times = [_ipi_step(calc, frames[0], count, batch, steps) for batch in (count, 1)]
                _row(f"{count} beads, {title}, step of i-PI", *times)
    if server is None:
        print("whole steps: i-PI is not installed (pip install ipi)")


def _row(what: str, together: float, alone: float) -> None:
    ratio = f"{alone / together:5.1f}×"
    print(f"{what:44s} {1e3 * together:8.2f} ms {1e3 * alone:9.2f} ms  {ratio}", flush=True)


def _beads(atoms: Atoms, count: int) -> list[Atoms]:
    frames = []
    for k in range(count):
        bead = atoms.copy()
        bead.rattle(0.05, seed=k)
        bead.center(8)
        frames.append(bead)
    return frames


def _evaluations(calc: Any, frames: list[Atoms], seconds: float) -> tuple[float, float]:
    """Seconds of the processor for all beads, the fastest of many turns each."""
    best = [float("inf")] * 2
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or best[1] == float("inf"):
        start = time.process_time()
        calc.evaluate_many(frames)
        middle = time.process_time()
        for atoms in frames:
            calc.calculate(atoms, ["energy", "forces", "stress"])
        times = middle - start, time.process_time() - middle
        best = [min(old, new) for old, new in zip(best, times, strict=True)]
    return best[0], best[1]


def _ipi_step(calc: Any, atoms: Atoms, beads: int, batch: int, steps: int) -> float:
    """Seconds of a step of i-PI, the start of both programs left out."""
    from ase_biasgrad.calculators.ipi import run_driver

    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder).name
        cell = "CELL(abcABC): {} {} {} 90 90 90".format(*atoms.cell.lengths())
        comment = f"# {cell} positions{{angstrom}} cell{{angstrom}}"
        atoms.write(f"{folder}/start.xyz", comment=comment)
        text = INPUT.format(name=name, beads=beads, batch=batch, steps=steps)
        Path(folder, "input.xml").write_text(text)
        command = ["i-pi", "input.xml"]
        server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            run_driver(_Timed(calc, times), atoms, name, wait=60)  # type: ignore[arg-type]
            server.wait(60)
        finally:
            server.kill()
    first = len(times) // (steps + 1)  # evaluations of the start
    return (times[-1] - times[first]) / (steps - 1)


class _Timed:
    """A calculator that notes when it is asked."""

    def __init__(self, calc: Any, times: list[float]) -> None:
        self.check, self._calc, self._times = calc.check, calc, times

    def evaluate_many(self, structures: list[Atoms]) -> Any:
        self._times.append(time.perf_counter())
        return self._calc.evaluate_many(structures)
