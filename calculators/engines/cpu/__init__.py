"""SchNet and PaiNN as numba kernels with written-out derivatives, on the CPU."""
