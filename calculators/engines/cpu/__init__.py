"""The CPU engine: kernels in numba, with written-out derivatives."""

from pathlib import Path

from ase_biasgrad.numerics.kernel_cache import forget_stale_kernels

forget_stale_kernels(Path(__file__).parent)
