"""Time and memory of a new process up to its first forces, beside the import of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROCESS = """
import time
start = time.perf_counter()
{work}
print(time.perf_counter() - start)
try:
    print(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])
except OSError:
    print("nan")
"""
FIRST_FORCES = """
from ase.build import molecule
from ase_biasgrad import BiasGradCalculator
atoms = molecule("CH3CH2OH")
atoms.calc = BiasGradCalculator({checkpoint!r}, device="cpu", engine={engine!r})
atoms.get_forces()
"""


@dataclass(frozen=True)
class Start:
    """Seconds from the first import to the forces on ethanol and, in the same run, of the import of
    torch; largest resident memory in MB, NaN where there is no /proc."""

    seconds: float
    of_torch: float
    memory: float

    @property
    def ratio(self) -> float:
        """Time in units of the import of torch."""
        return self.seconds / self.of_torch


def start_of(checkpoint: str | Path, engine: str = "cpu", repeats: int = 5) -> Start:
    """Start of a process that evaluates a checkpoint with compiled code that is there already.

    New processes of both kinds take turns, and the fastest of each counts.
    """
    work = FIRST_FORCES.format(checkpoint=str(checkpoint), engine=engine)
    seconds_and_memory(work)  # compiles what is not kept yet
    ours, torch = [], []
    for _ in range(repeats):
        ours.append(seconds_and_memory(work))
        torch.append(seconds_and_memory("import torch"))
    return Start(min(t for t, _ in ours), min(t for t, _ in torch), max(m for _, m in ours))


def first_start(checkpoint: str | Path, cache: str | Path) -> float:
    """Seconds of a start that finds no compiled code, and keeps it in the folder `cache`."""
    work = FIRST_FORCES.format(checkpoint=str(checkpoint), engine="cpu")
    return seconds_and_memory(work, NUMBA_CACHE_DIR=str(cache))[0]


def seconds_and_memory(work: str, **environment: str) -> tuple[float, float]:
    """Wall time in s and largest memory in MB of a new process that does this work.

    Raises `RuntimeError` if it fails; the message is its last line.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROCESS.format(work=work)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "killed").splitlines()[-1])
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), float(memory) / 1024
