"""The CPU engine: kernels in numba, with written-out derivatives."""

from ase_biasgrad.calculators.cpu.kernel_cache import forget_stale_kernels

forget_stale_kernels()
