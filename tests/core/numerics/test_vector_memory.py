"""Widths of vectors, and memory that suits them."""

import json
import os
import subprocess
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest
from ase.build import molecule
from conftest import small_potential

from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.checkpoint import save_checkpoint
from ase_biasgrad.numerics.vector_memory import WIDTH, aligned, aligned_copy

FEATURES = llvm.get_host_cpu_features()
OTHER = """
import json, sys
from ase.build import molecule
from ase_biasgrad import BiasGradCalculator
from ase_biasgrad.numerics.vector_memory import WIDTH

atoms = molecule("CH3CH2OH")
atoms.calc = BiasGradCalculator(sys.argv[1], device="cpu", dtype="float64")
print(json.dumps([WIDTH, atoms.get_potential_energy(), atoms.get_forces().tolist()]))
"""


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [1, 1000])
def test_memory_begins_with_a_line_of_the_cache(count, dtype):
    numbers = aligned(count, np.dtype(dtype))
    assert numbers.shape == (count,)
    assert numbers.dtype == dtype
    assert numbers.ctypes.data % 64 == 0
    assert numbers.flags.c_contiguous
    numbers[:] = np.arange(count)
    copy = aligned_copy(numbers)
    numbers[:] = -1
    np.testing.assert_array_equal(copy, np.arange(count))
    assert copy.ctypes.data % 64 == 0


def test_vectors_are_as_wide_as_registers_of_single_precision():
    assert (16 if FEATURES.get("avx512f") else 8) == WIDTH


@pytest.mark.filterwarnings("ignore")  # of the energy zero
@pytest.mark.skipif(WIDTH == 8, reason="this processor has no wider vectors")
def test_narrow_vectors_give_the_same(tmp_path):
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, small_potential("tensornet"), {})
    narrow = {name: has and not name.startswith("avx512") for name, has in FEATURES.items()}
    listed = ",".join(f"{'+' if has else '-'}{name}" for name, has in narrow.items())
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True,
        env={**os.environ, "NUMBA_CPU_FEATURES": listed},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    width, energy, forces = json.loads(done.stdout)
    assert width == 8
    atoms = molecule("CH3CH2OH")
    atoms.calc = BiasGradCalculator(path, device="cpu", dtype="float64")
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-10)
