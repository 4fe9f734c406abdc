"""Vectors of this processor: how many numbers they hold, and memory that suits them.

No Numba is loaded.
"""

from __future__ import annotations

import os

import llvmlite.binding as llvm
import numpy as np

LINE = 64  # bytes of a line of the cache: a vector that lies in two of them takes twice as long


def _width() -> int:
    """Numbers of a vector: float32 fill a register, float64 one or two."""
    features = os.environ.get("NUMBA_CPU_FEATURES")  # that code is compiled for, if it is given
    try:
        if features is None:
            features = llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # of processors whose features LLVM does not tell
        return 8
    return 16 if "+avx512f" in features.split(",") else 8


WIDTH = _width()


def aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """Numbers `(count,)` that mean nothing yet, from the beginning of a line of the cache on."""
    size = count * np.dtype(dtype).itemsize
    memory = np.empty(size + LINE, np.uint8)
    first = -memory.ctypes.data % LINE
    return memory[first : first + size].view(dtype)


def aligned_copy(numbers: np.ndarray) -> np.ndarray:
    """The same numbers `(n,)` in such memory."""
    out = aligned(len(numbers), numbers.dtype)
    out[:] = numbers
    return out
