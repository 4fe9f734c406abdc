"""One function compiled twice, for one thread and for several, and when which of them runs."""

from __future__ import annotations

import os
import threading
import types
from collections.abc import Callable
from typing import Any

import numba
import torch
from numba import njit

# below this many atoms, starting threads costs more than they save
THREADS_FROM = 64
# what all threads may take for messages of their own, in bytes
MOST_MEMORY = 2**28
# numba's threads must not be entered twice at once, nor in a process forked after their start
_entered = threading.Lock()
_process: int | None = None


def compiled(function: Callable[..., Any]) -> tuple[Any, Any]:
    """`function` on one thread, and with its `prange` loops spread over threads.

    Starting threads costs some 10 µs a loop, more than a molecule needs; and numba's cache tells
    functions apart by their names, so the second one gets its own.
    """
    twin = types.FunctionType(
        function.__code__, function.__globals__, f"{function.__name__}_threaded"
    )
    twin.__module__, twin.__qualname__ = function.__module__, f"{function.__qualname__}_threaded"
    return (
        njit(cache=True, nogil=True)(function),
        njit(cache=True, nogil=True, parallel=True)(twin),
    )


def blocks_for(atoms: int, bytes_per_block: int) -> int:
    """How many blocks to cut the work into: as many as torch and numba may use threads."""
    if atoms < THREADS_FROM:
        return 1
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    return max(1, min(threads, MOST_MEMORY // max(1, bytes_per_block)))


def run(kernels: tuple[Any, Any], blocks: int, arguments: tuple[Any, ...]) -> None:
    """Call the kernel for one thread or the one for several."""
    global _process
    single, several = kernels
    if blocks == 1 or (_process not in (None, os.getpid())):
        single(*arguments)
        return
    before = torch.get_num_threads()
    with _entered:
        _process = os.getpid()
        several(*arguments)
    if torch.get_num_threads() != before:  # numba's start sets OpenMP's number, which is torch's
        torch.set_num_threads(before)
