"""Triton kernels on CPU tensors: import this before anything that imports Triton.

Triton's interpreter runs a kernel as NumPy code, program by program. Its loads and stores are
replaced by ones that look for races, and that NumPy 2 does not break as it does Triton 3.0's.
"""

import ctypes
import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
from triton.runtime import interpreter


def at_addresses(addresses: np.ndarray, dtype) -> tuple[np.ndarray, np.ndarray]:
    """A view of the memory that holds all of the addresses, and where in it they lie."""
    size = np.dtype(dtype).itemsize
    low, high = int(addresses.min()), int(addresses.max())
    memory = (ctypes.c_char * (high - low + size)).from_address(low)
    assert ((addresses - low) % size == 0).all()
    return np.frombuffer(memory, dtype), ((addresses - low) // size).astype(np.int64)


class Memory:
    """Loads and stores of blocks of addresses."""

    @staticmethod
    def load(addresses, mask, other, dtype):
        mask, out = np.broadcast_to(mask, addresses.shape), np.array(other, dtype=dtype)
        if mask.any():
            memory, places = at_addresses(addresses[mask], dtype)
            out[mask] = memory[places]
        return out

    @staticmethod
    def store(addresses, value, mask):
        mask = np.broadcast_to(mask, addresses.shape)
        if mask.any():
            memory, places = at_addresses(addresses[mask], value.dtype)
            assert len(np.unique(places)) == len(places), "two values for one place"
            memory[places] = np.broadcast_to(value, addresses.shape)[mask]


def patched_tensor(tensor, *rest):
    patch_tensor(tensor, *rest)
    tensor.__index__ = lambda self: int(self.handle.data.item())


def patched_language(function):
    """Once for each module, where that lasts: it takes longer than most kernels."""
    if function.__module__ in lasting:
        return None
    scope = patch_language(function)
    if scope is None:
        lasting.add(function.__module__)
    return scope


lasting: set[str] = set()
interpreter._interpreter = Memory
patch_tensor, interpreter._patch_lang_tensor = interpreter._patch_lang_tensor, patched_tensor
patch_language, interpreter._patch_lang = interpreter._patch_lang, patched_language
