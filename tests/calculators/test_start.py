"""The start of a process: what it loads, and how it is measured."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_potential

import ase_biasgrad.fused
from ase_biasgrad.calculators.start_benchmark import (
    FIRST_FORCES,
    first_start,
    seconds_and_memory,
    start_of,
)
from ase_biasgrad.checkpoint import save_checkpoint
from ase_biasgrad.numerics.kept_files import folder_for

SOURCES = Path(ase_biasgrad.fused.__file__).parent


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("start") / "p.safetensors"
    save_checkpoint(path, small_potential("tensornet"))
    return path


@pytest.mark.skipif(folder_for(SOURCES) is None, reason="there is no place to keep compiled code")
def test_a_second_start_loads_neither_torch_nor_numba_nor_scipy(checkpoint):
    """ASE itself loads scipy with `ase.build`; atoms are made without it here."""
    work = FIRST_FORCES.format(checkpoint=str(checkpoint), engine="auto")
    work = work.replace("from ase.build import molecule", "from ase import Atoms")
    work = work.replace('molecule("CH3CH2OH")', 'Atoms("OH2", [[0, 0, 0], [0, 0, 1], [0, 1, 0]])')
    work += '\nimport sys\nprint(sorted({"torch", "numba", "scipy", "h5py"} & set(sys.modules)))'
    work += "\nprint(atoms.get_forces().tolist(), atoms.get_potential_energy(), atoms.calc.engine)"
    said = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", work], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]
    assert "'numba'" in said[0][0]  # the filters were sampled
    assert said[1][0] == "[]"
    assert said[1][1] == said[0][1]
    assert said[0][1].endswith("cpu")


def test_starts_are_measured(checkpoint):
    found = start_of(checkpoint, "reference", repeats=1)
    assert found.of_torch > 0.1
    assert found.ratio == found.seconds / found.of_torch > 1  # autograd imports torch
    assert not found.memory < 100
    with pytest.raises(RuntimeError, match="no such checkpoint"):
        start_of(checkpoint.parent / "q.safetensors", repeats=1)
    with pytest.raises(RuntimeError, match="no such checkpoint"):
        first_start(checkpoint.parent / "q.safetensors", checkpoint.parent)


def test_seconds_and_memory_are_those_of_the_process():
    small = seconds_and_memory("import time; time.sleep(0.2)")
    large = seconds_and_memory("a = bytearray(100_000_000)")
    assert small[0] > 0.2
    assert not large[1] < small[1] + 80
