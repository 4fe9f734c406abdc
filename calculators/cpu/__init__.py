"""The CPU engine: kernels in numba, with written-out derivatives."""
