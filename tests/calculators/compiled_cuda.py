"""Compile what the CUDA engine launches for NVIDIA GPUs, without one; prints the kernels.

python tests/calculators/compiled_cuda.py 90   (a compute capability, times ten)
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from conftest import copper, small_potential, structure_of
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ase_biasgrad.calculators.cuda.engine import CudaEngine

names: set[str] = set()
run = JITFunction.run


class Driver:
    """What the compiler asks of a driver."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", int(sys.argv[1]), 32)


def compiled(self, *arguments, grid, warmup, **keywords):
    """Compile for these arguments, as a launch does, and launch nothing."""
    kernel = run(self, *arguments, grid=grid, warmup=True, **keywords)
    assert len(kernel.asm["cubin"]) > 0
    names.add(self.fn.__name__)


driver.set_active(Driver())
JITFunction.run = compiled
structure = structure_of(copper())
for name in ("schnet", "painn"):
    engine = CudaEngine([small_potential(name).backbone], torch.device("cpu"), 0.3)
    engine.evaluate(structure, True)
print(*sorted(names))
